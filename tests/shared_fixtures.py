"""What tests are given. `conftest.py` loads it where tests run, and not in the process that hands them out."""

import random
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import children
import jaxtyping
import numpy as np
import pytest
import torch
import toys
from safetensors.torch import load_file
from torch import Tensor

from efface.core.denoiser import Denoiser


@pytest.fixture(autouse=True, scope="session")
def offline() -> Iterator[None]:
    """Refuse every connection except to sockets of this machine's own processes."""
    connect = socket.socket.connect

    def refuse(self: socket.socket, address: object) -> None:
        if self.family == socket.AF_UNIX or (
            isinstance(address, tuple) and address[0] in ("127.0.0.1", "::1", "localhost")
        ):
            return connect(self, address)
        raise RuntimeError(f"a test tried to connect to {address!r}; tests work without network")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", refuse)
        patch.setattr(socket.socket, "connect_ex", refuse)
        yield


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """Before any fixture of a module or a session computes: `same_start` comes after those."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def same_start() -> Iterator[None]:
    """Seed every generator; put global state back afterwards."""
    before = (
        torch.get_rng_state(),
        np.random.get_state(),
        random.getstate(),
        torch.get_default_dtype(),
        torch.get_num_threads(),
    )  # noqa: NPY002
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002
    random.seed(0)
    torch.set_num_threads(1)
    yield
    torch.set_rng_state(before[0])
    np.random.set_state(before[1])  # noqa: NPY002
    random.setstate(before[2])
    torch.set_default_dtype(before[3])
    torch.set_num_threads(before[4])
    torch.set_grad_enabled(True)


@pytest.fixture
def untyped() -> Iterator[None]:
    """Switch the test run's type checks off: what a user meets who passes the wrong type."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(scope="session")
def shared() -> Denoiser:
    """One tiny model for all tests; take `base`, which checks that nobody changed it."""
    return toys.tiny()


@pytest.fixture(scope="session")
def untouched(shared: Denoiser) -> dict[str, Tensor]:
    """What the tiny model was before any test."""
    return toys.snapshot(shared)


@pytest.fixture
def base(shared: Denoiser, untouched: dict[str, Tensor]) -> Iterator[Denoiser]:
    """The tiny ε-model. A test that changes a bit of it fails, and the next one has it as it was."""
    yield shared
    if changed := toys.differing(untouched, toys.tensors(shared)):
        with torch.no_grad():
            for name in changed:
                toys.tensors(shared)[name].copy_(untouched[name])
    assert not changed, "the test changed the base model"
    parts = (shared.pipeline.unet, shared.pipeline.text_encoder, shared.pipeline.vae)
    assert not any(p.requires_grad or p.grad is not None for part in parts for p in part.parameters())


@pytest.fixture(scope="session")
def velocity() -> Denoiser:
    """The tiny v-model."""
    return toys.tiny("v_prediction")


@pytest.fixture
def child() -> Callable[[str, Path], dict[str, Tensor]]:
    """Run code in a new process that is given a folder; what it saves there as `out.bin` comes back."""

    def run(code: str, folder: Path) -> dict[str, Tensor]:
        children.finish(children.start(code, folder), folder)
        return load_file(folder / "out.bin")

    return run
