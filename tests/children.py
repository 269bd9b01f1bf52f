"""New processes for tests. A server that has imported torch and diffusers, and nothing else, forks each: the imports are paid once."""

import multiprocessing
import sys
import traceback
from multiprocessing.process import BaseProcess
from pathlib import Path

SERVER = multiprocessing.get_context(
    "forkserver"
)  # single-threaded and without a test's state, unlike a fork of the test run
SERVER.set_forkserver_preload(["diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion", "safetensors.torch"])


def start(code: str, folder: Path) -> BaseProcess:
    """Run code in a new process that finds the folder in `sys.argv[1]`."""
    process = SERVER.Process(target=execute, args=(code, folder))
    process.start()
    return process


def finish(process: BaseProcess, folder: Path) -> None:
    """Wait until a process that `start` gave has ended well."""
    process.join(240)
    report = folder / f"{process.pid}.error"
    assert process.exitcode == 0, report.read_text() if report.exists() else f"exit code {process.exitcode}"


def execute(code: str, folder: Path) -> None:
    """What the new process does; an error's traceback is left in the folder."""
    sys.argv = ["-c", str(folder)]
    try:
        exec(code, {"__name__": "__main__"})
    except BaseException:
        (folder / f"{multiprocessing.current_process().pid}.error").write_text(traceback.format_exc())
        raise
