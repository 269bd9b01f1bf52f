"""Every test runs offline, seeded, on one thread, and leaves the process as it found it: the fixtures that see to it are in fixtures.py."""

import os
import sys
from pathlib import Path

import pytest

os.environ["HF_HUB_OFFLINE"] = os.environ["TRANSFORMERS_OFFLINE"] = "1"
# in the processes that tests start as well: threads of several test runs on few cores wait for each other, five times as long
os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"
sys.path.insert(0, str(Path(__file__).parent))  # toys, oracles


def pytest_configure(config: pytest.Config) -> None:
    """Marks, known with and without the repository's own settings; and the fixtures."""
    for mark in ("slow: takes seconds", "gpu: needs a GPU", "browser: needs Chromium"):
        config.addinivalue_line("markers", mark)
    if hasattr(config, "workerinput") or not config.getoption("numprocesses", None):
        config.pluginmanager.import_plugin(
            "fixtures"
        )  # imports torch and diffusers: ten seconds, for which workers would wait
