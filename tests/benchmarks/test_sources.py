"""The name of a fit covers the code that fits."""

import shutil
from pathlib import Path

import pytest

from efface.benchmarks import plan
from efface.benchmarks.plan import Fit
from efface.benchmarks.sources import PACKAGE, source_hash, sources
from efface.core.concept import Concept
from efface.core.denoiser import Denoiser
from efface.erasers import TABLE


def test_a_method_is_its_module_and_all_that_it_imports() -> None:
    found = sources("efface.erasers.uce")
    assert {"efface.erasers.uce", "efface.erasers.base", "efface.core.denoiser", "efface.core.linalg"} <= set(found)
    assert "efface" not in found
    assert not [name for name in found if name.startswith("efface.report")]
    assert found["efface.erasers.uce"] == (PACKAGE / "erasers" / "uce.py").read_bytes()
    assert "efface.metrics.detectors.classifier" in sources("efface.erasers.debias")  # imported within a function


@pytest.mark.parametrize(
    ("file", "changed", "same"),
    [
        ("erasers/uce.py", {"uce", "rece", "debias"}, {"esd", "age"}),
        ("erasers/parts/search.py", {"ap", "age"}, {"uce", "esd"}),
        ("core/denoiser.py", {"uce", "esd", "sld", "age"}, set[str]()),
        ("report/names.py", set[str](), {"uce", "esd", "age"}),
    ],
)
def test_a_changed_source_changes_the_hashes_of_those_that_run_it(
    file: str, changed: set[str], same: set[str], tmp_path: Path
) -> None:
    package = tmp_path / "efface"
    shutil.copytree(PACKAGE, package, ignore=shutil.ignore_patterns("moji", "data", "__pycache__"))
    modules = {name: TABLE[name].partition(":")[0] for name in changed | same}
    before = {name: source_hash(module) for name, module in modules.items()}
    assert before == {name: source_hash(module, package) for name, module in modules.items()}
    with (package / file).open("a") as f:
        f.write("\nCHANGED = True\n")
    source_hash.cache_clear()  # a process reads each source once
    after = {name: source_hash(module, package) for name, module in modules.items()}
    assert {name for name in modules if before[name] != after[name]} == changed


def test_a_stale_fit_is_not_used_again(base: Denoiser, monkeypatch: pytest.MonkeyPatch) -> None:
    fit = Fit("uce", (Concept("tiger", "cat"),), (Concept("lion"),))
    before = fit.name(base)
    assert fit.name(base) == before
    monkeypatch.setattr(plan, "source_hash", lambda module: f"other {module}")
    assert fit.name(base) != before
