"""One row for writers and readers: the report knows nothing else of the engine, the engine nothing of the report."""

import re
import subprocess
import sys
from pathlib import Path

from efface.benchmarks.row import BASE, FIELDS, GONE, ROLES

SOURCE = Path(__file__).parents[2] / "src" / "efface"


def imported(package: str, of: str) -> set[str]:
    """Modules of one package that files of another import."""
    texts = [path.read_text(encoding="utf-8") for path in (SOURCE / package).rglob("*.py")]
    return {m for text in texts for m in re.findall(rf"(?:from|import) efface\.({of}[\w.]*)", text)}


def test_a_report_imports_the_row_alone_and_the_engine_writes_no_pages() -> None:
    assert imported("report", "benchmarks") == {"benchmarks.row"}
    assert imported("benchmarks", "report") == set()


def test_the_row_needs_nothing_heavy() -> None:
    code = "import sys, efface.benchmarks.row; print(*sorted(m for m in sys.modules if m in sys.argv[1:]))"
    heavy = ["torch", "numpy", "PIL", "diffusers", "fsspec", "efface.core.denoiser", "efface.report"]
    done = subprocess.run([sys.executable, "-c", code, *heavy], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
    text = (SOURCE / "benchmarks" / "row.py").read_text(encoding="utf-8")
    assert "efface" not in "".join(re.findall(r"^(?:from|import) .*", text, flags=re.MULTILINE))


def test_fields_and_roles_are_those_of_a_line() -> None:
    assert FIELDS[:6] == ("task", "protocol", "edit", "fit", "role", "concept")
    assert len(set(FIELDS)) == len(FIELDS) == 23
    assert set(GONE) < set(ROLES)
    assert BASE not in ROLES
