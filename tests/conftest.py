"""Every test runs offline, seeded, on one thread, and leaves the process as it found it; shared_fixtures.py sees to it."""

import os
import sys
import tempfile
from pathlib import Path

import pytest

os.environ["HF_HUB_OFFLINE"] = os.environ["TRANSFORMERS_OFFLINE"] = "1"
# in the processes that tests start as well: threads of several test runs on few cores wait for each other, five times as long
os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"
CACHE = tempfile.TemporaryDirectory(prefix="efface-tests-")  # the user's own keeps no digests of toys
os.environ["XDG_CACHE_HOME"] = CACHE.name
sys.path.insert(0, str(Path(__file__).parent))  # toys, oracles


def pytest_configure(config: pytest.Config) -> None:
    """Marks, known with and without the repository's own settings; and the fixtures."""
    for mark in ("slow: takes seconds", "gpu: needs a GPU", "browser: needs Chromium"):
        config.addinivalue_line("markers", mark)
    # not in the process that hands tests out to workers: they would wait ten seconds for its imports of torch and diffusers
    if hasattr(config, "workerinput") or not config.getoption("numprocesses", None):
        config.pluginmanager.import_plugin("shared_fixtures")
