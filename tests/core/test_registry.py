"""Methods by name: efface's own, and those of installed packages, here the example of CONTRIBUTING.md as a package."""

import ast
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from children import finish, start
from toys import tiny

from efface.benchmarks.sources import source_hash, sources
from efface.core import declared
from efface.core.concept import Concept
from efface.core.errors import EffaceError, UsageError
from efface.core.registry import Registry
from efface.erasers import TABLE
from efface.erasers.base import Eraser

ROOT = Path(__file__).parents[2]


def example() -> str:
    """The eraser in CONTRIBUTING.md."""
    (code,) = re.findall(
        r"```python\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), flags=re.DOTALL
    )
    return textwrap.dedent(f"   {code.lstrip()}")


def install(folder: Path, files: dict[str, str], points: str) -> Path:
    """A folder that holds an installed package named shrinkage with these files and entry points."""
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    (info := folder / "shrinkage-0.1.dist-info").mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: shrinkage\nVersion: 0.1\n")
    (info / "entry_points.txt").write_text(f"[efface.erasers]\n{points}\n")
    return folder


@pytest.fixture
def registry() -> Registry[Eraser]:
    for name in [n for n in sys.modules if n.partition(".")[0] == "shrinkage"]:  # each test installs its own
        del sys.modules[name]
    for kept in (declared.declared, declared.value, declared._tree):
        kept.cache_clear()
    return Registry("method", TABLE, "efface.erasers")


def test_the_example_is_a_method_as_the_rules_want_it(tmp_path: Path) -> None:
    (file := tmp_path / "shrink.py").write_text(example(), encoding="utf-8")
    for command in (["check"], ["format", "--check"]):
        told = subprocess.run(
            [sys.executable, "-m", "ruff", *command, "--config", str(ROOT / "pyproject.toml"), "--no-cache", str(file)],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert told.returncode == 0, told.stdout
    doc = ast.get_docstring(ast.parse(example())) or ""
    assert re.findall(r"^(\w+): +", "\n".join(doc.splitlines()[1:]), flags=re.MULTILINE) == [
        "Paper", "Idea", "Names", "Differs", "Cost",
    ]  # fmt: skip


def test_an_installed_method_is_listed_fitted_and_does_what_its_formula_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, registry: Registry[Eraser]
) -> None:
    monkeypatch.syspath_prepend(install(tmp_path, {"shrinkage.py": example()}, "shrink = shrinkage:Shrink"))
    assert registry.names()[-1] == "shrink"
    assert "shrinkage" not in sys.modules  # a list imports nothing
    assert registry.docstring("shrink").startswith("Shrink: scales")
    assert registry.settings("shrink:factor=0.5") == ("shrink", {"factor": 0.5})
    with pytest.raises(UsageError, match="factor"):
        registry.make("shrink", factor=2.0)
    base = tiny()
    edited = registry.make("shrink:factor=0.25").fit(base, (Concept("tiger"),))(base)
    cond = base.embed(["tiger"])
    row = cond.tokens[0, cond.last[0]]
    for name, layer in base.text_readers().items():
        assert torch.allclose(edited.text_readers()[name](row), 0.25 * layer(row), atol=1e-5)


def test_the_commands_know_an_installed_method(tmp_path: Path) -> None:
    install(tmp_path, {"shrinkage.py": example()}, "shrink = shrinkage:Shrink")
    code = """
import contextlib, io, sys
sys.path.insert(0, sys.argv[1])
from efface.cli import app
out = io.StringIO()
with contextlib.redirect_stdout(out):
    app(["methods", "shrink"], standalone_mode=False)
    app(["erase", "tiger", "--method", "shrink", "--factor", "0.1", "-o", sys.argv[1] + "/e.safetensors"], standalone_mode=False)
from efface.core.edit import load_edit
header = load_edit(sys.argv[1] + "/e.safetensors").header
assert (header.method, header.settings["factor"]) == ("Shrink", 0.1), header
"""
    finish(start(code, tmp_path), tmp_path)
    assert (tmp_path / "e.safetensors").is_file()


def test_an_installed_package_of_several_files_is_read_and_its_code_is_in_the_name_of_a_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, registry: Registry[Eraser]
) -> None:
    code = example().replace(
        "from efface.core.params import param",
        "from efface.core.params import param\nfrom .parts import DEFAULT",
    )
    files = {
        "shrinkage/__init__.py": "import torch\n",
        "shrinkage/parts.py": "import numpy\n\nDEFAULT = 0.0\n",
        "shrinkage/far/near.py": code.replace("from .parts", "from ..parts").replace("param(0.0,", "param(DEFAULT,"),
        "shrinkage/far/__init__.py": "",
    }
    monkeypatch.syspath_prepend(install(tmp_path, files, "shrink = shrinkage.far.near:Shrink"))
    assert registry.declarations("shrink")().factor == 0.0  # type: ignore[attr-defined]
    found = sources("shrinkage.far.near")
    assert {"shrinkage.parts", "shrinkage.far.near", "efface.erasers.base"} <= set(found)
    before = source_hash("shrinkage.far.near")
    (tmp_path / "shrinkage" / "parts.py").write_text("DEFAULT = 1.0\n")
    source_hash.cache_clear()
    assert source_hash("shrinkage.far.near") != before


@pytest.mark.parametrize(
    ("points", "sentence"),
    [
        ("uce = shrinkage:Shrink", "the installed package shrinkage adds 'uce', which is taken; uninstall it, or rename"),
        ("esd-x = shrinkage:Shrink", "adds 'esd-x', which is taken"),
        ("shrink = nowhere.at:Shrink", "no Python source of this module is installed; correct the entry point"),
        ("shrink = shrinkage:Other", "shrinkage:Other: its declarations cannot be read .*; correct the package"),
        ("shrink = shrinkage", "shrinkage: its declarations cannot be read .*; correct the package"),
    ],
)  # fmt: skip
def test_a_wrong_entry_point_is_one_sentence(
    points: str, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, registry: Registry[Eraser]
) -> None:
    monkeypatch.syspath_prepend(install(tmp_path, {"shrinkage.py": example()}, points))
    with pytest.raises(EffaceError, match=sentence):
        registry.names()
