"""The repository's own rules."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from efface.attacks import TABLE as ATTACKS
from efface.erasers import TABLE, find

TESTS = Path(__file__).parent
SOURCE = TESTS.parent / "src" / "efface"
METHODS = sorted(p for p in (SOURCE / "erasers").glob("*.py") if p.stem not in ("__init__", "base"))
ATTACK_FILES = sorted(p for p in (SOURCE / "attacks").glob("*.py") if p.stem not in ("__init__", "base"))
FIELDS = ["Paper", "Idea", "Names", "Differs", "Cost"]


def test_every_eraser_file_is_in_the_table_and_the_reverse() -> None:
    assert {p.stem for p in METHODS} == {target.partition(":")[0].rpartition(".")[2] for target in TABLE.values()}
    for name, target in TABLE.items():
        module, _, cls = target.partition(":")
        assert re.fullmatch(r"efface\.erasers\.\w+", module), name
        assert cls, name


def test_every_attack_file_is_in_the_table_and_the_reverse() -> None:
    assert {p.stem for p in ATTACK_FILES} == {
        target.partition(":")[0].rpartition(".")[2] for target in ATTACKS.values()
    }


@pytest.mark.parametrize("path", [*METHODS, *ATTACK_FILES], ids=lambda p: f"{p.parent.name}.{p.stem}")
def test_a_method_is_one_short_file_that_names_its_paper(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) < 150
    doc = ast.get_docstring(ast.parse(text), clean=False) or ""
    assert re.findall(r"^(\w+): +", "\n".join(doc.splitlines()[1:]), flags=re.MULTILINE) == FIELDS
    paper = doc[doc.index("Paper:") : doc.index("Idea:")]
    assert re.search(r"arXiv:\d{4}\.\d{4,5}", paper)
    for here, there in zip(FIELDS, [*FIELDS[1:], None], strict=True):
        body = doc[doc.index(f"{here}:") + len(here) + 1 : doc.index(f"\n{there}:") if there else None]
        assert len(body.split()) >= 3, here


@pytest.mark.parametrize("path", [*METHODS, *ATTACK_FILES], ids=lambda p: f"{p.parent.name}.{p.stem}")
def test_a_method_has_its_own_tests(path: Path) -> None:
    assert (TESTS / path.parent.name / f"test_{path.stem}.py").is_file()


def _asserts(function: ast.FunctionDef) -> bool:
    """Whether a test can fail: an assert that is no constant, pytest.raises, or a helper of a testing library."""
    for node in ast.walk(function):
        if isinstance(node, ast.Assert) and not isinstance(node.test, ast.Constant):
            return True
        if isinstance(node, ast.Call):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in ("raises", "warns") or called.startswith("assert_"):
                return True
    return False


def test_every_test_can_fail() -> None:
    empty, seen = [], 0
    for path in TESTS.rglob("test_*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                seen += 1
                if not _asserts(node):
                    empty.append(f"{path.name}::{node.name}")
    assert seen > 50
    assert not empty


@pytest.mark.parametrize(
    ("code", "verdict"),
    [("assert x == 1", True), ("assert True", False), ("x = 1", False), ("with pytest.raises(E): f()", True)],
)
def test_the_check_for_empty_tests_knows_them(code: str, verdict: bool) -> None:
    function = ast.parse(f"def test_x():\n    {code}").body[0]
    assert isinstance(function, ast.FunctionDef)
    assert _asserts(function) is verdict


def test_no_failure_is_swallowed() -> None:
    found = []
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.ExceptHandler):
                continue
            broad = node.type is None or (
                isinstance(node.type, ast.Name) and node.type.id in ("Exception", "BaseException")
            )
            silent = all(
                isinstance(s, ast.Pass) or (isinstance(s, ast.Expr) and isinstance(s.value, ast.Constant))
                for s in node.body
            )
            if broad and silent:
                found.append(f"{path.relative_to(SOURCE)}:{node.lineno}")
    assert not found


def test_nothing_is_unpickled_and_annotations_stay_real() -> None:
    for path in SOURCE.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"\btorch\.load\(|\bpickle\.loads?\(|import pickle", text), path
        assert "from __future__ import annotations" not in text, path


def test_importing_efface_costs_nothing_heavy() -> None:
    code = "import sys, efface; print(*sorted({m.partition('.')[0] for m in sys.modules}))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={"PYTHONPATH": str(SOURCE.parent)}, check=True
    )
    heavy = {
        "torch",
        "numpy",
        "diffusers",
        "transformers",
        "safetensors",
        "PIL",
        "subprocess",
        "typer",
        "rich",
        "jaxtyping",
    }
    assert "efface" in done.stdout.split()
    assert not heavy & set(done.stdout.split())


def test_public_names_resolve_and_unknown_ones_name_the_known() -> None:
    import efface

    for name in efface.__all__:
        assert getattr(efface, name) is not None
    assert {find(name).__name__ for name in TABLE} <= set(efface.__all__)
    with pytest.raises(AttributeError, match="module 'efface' has no attribute 'UEC'; public names: .*UCE"):
        efface.UEC  # noqa: B018


LAYERS = [
    "core",
    "metrics",
    "erasers",
    "attacks",
    "benchmarks",
    "report",
    "api",
    "cli",
]  # a file imports its own layer and those before it
APART = {"files": "core", "models": "core", "progress": "api", "__main__": "cli", "__init__": "core"}


def imports(path: Path) -> set[str]:
    """Modules of efface that a file imports anywhere: at its top, in functions, for types."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("efface"):
            found |= {node.module, *(f"{node.module}.{name.name}" for name in node.names)}
        elif isinstance(node, ast.Import):
            found |= {name.name for name in node.names if name.name.startswith("efface")}
    return found


def modules() -> dict[str, Path]:
    """Every file of the package by its module's name."""
    return {
        ".".join(p.relative_to(SOURCE.parent).with_suffix("").parts).removesuffix(".__init__"): p for p in SOURCE.rglob("*.py")
    }  # fmt: skip


def test_no_files_import_each_other() -> None:
    known = modules()
    graph = {name: {m for m in imports(path) if m in known and m != name} for name, path in known.items()}
    assert any(graph.values())
    done: set[str] = set()

    def visit(name: str, way: tuple[str, ...]) -> None:
        assert name not in way, " -> ".join((*way[way.index(name) :], name))
        if name not in done:
            for other in sorted(graph[name]):
                visit(other, (*way, name))
            done.add(name)

    for name in sorted(graph):
        visit(name, ())


def test_imports_point_downwards_and_a_report_reads_rows_alone() -> None:
    def layer(module: str) -> int:
        first = module.split(".")[1] if "." in module else "__init__"
        return LAYERS.index(APART.get(first, first))

    known = modules()
    wrong = [
        f"{name} -> {other}"
        for name, path in known.items()
        for other in imports(path)
        if other in known and other != "efface" and layer(other) > layer(name)
    ]
    assert not wrong
    read = {
        other for name, path in known.items() if name.startswith("efface.report") for other in imports(path)
        if other in known and other.startswith(("efface.benchmarks.", "efface.erasers", "efface.core.denoiser"))
    }  # fmt: skip
    assert read == {"efface.benchmarks.row"}
