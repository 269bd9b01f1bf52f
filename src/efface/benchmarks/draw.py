"""Drawing: makes every picture that a store lacks; several processes can share the work."""

import re
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack

import torch

from efface.benchmarks.row import BASE
from efface.benchmarks.store import Recipe, Store, name_of
from efface.core.denoiser import Denoiser
from efface.core.edit import Edit
from efface.core.errors import EffaceError, UsageError
from efface.core.log import Log

NO_MEMORY = re.compile(
    "can't allocate memory|MPS backend out of memory|ALLOC_FAILED"
)  # errors of torch's without a class


class BatchTooLarge(EffaceError):
    """The device has no memory for a batch of this many pictures; a smaller one may fit."""


def draw(
    store: Store, base: Denoiser, edits: Mapping[str, Edit], wanted: Mapping[str, Sequence[Recipe]], log: Log, *, any_base: bool = False,
) -> None:  # fmt: skip
    """Make every picture the store lacks. What another process is at work on is waited for, or taken over when it died.

    Args:
        store: of the pictures.
        base: the unedited model.
        edits: by label.
        wanted: recipes by label, all with the same batch.
        log: where progress goes.
        any_base: apply edits that were made for other weights all the same.

    Raises:
        BatchTooLarge: there is no memory for the recipes' batch. Its size is part of a picture's name, since its last bits depend on
            it: make the recipes anew with a smaller one.
        EffaceError: there is no memory for one picture.
    """
    lacking = {
        label: list({name_of(r): r for r in all_ if _lacks(store, r)}.values()) for label, all_ in wanted.items()
    }
    left = sum(r["sampler"]["steps"] for all_ in lacking.values() for r in all_)
    if not left:
        return
    bar, began, told = log.stage("pictures", left), time.perf_counter(), False
    count = sum(map(len, lacking.values()))

    def tick(n: int) -> None:
        nonlocal left, told
        left -= n
        bar(n)
        minutes = (time.perf_counter() - began) / n * left / 60
        if not told and minutes >= 1:
            log.say(f"{count} pictures are to be drawn: about {minutes:.0f} minutes, as the first batch went.")
        told = True

    for label, todo in lacking.items():
        if todo:  # one edited model at a time
            _draw_all(store, base if label == BASE else edits[label](base, any_base=any_base), todo, tick)
    bar(left)  # what other processes drew


def _lacks(store: Store, recipe: Recipe) -> bool:
    return not store.has_picture(name_of(recipe)) and store.error(name_of(recipe)) is None


def _draw_all(store: Store, model: Denoiser, todo: Sequence[Recipe], tick: Callable[[int], object]) -> None:
    """Batch after batch of what neither this process nor another has drawn or claimed; what others claimed comes last."""
    left, batch = list(todo), todo[0]["sampler"]["batch"]
    while left:
        busy, mine, rest = [], [], []
        with ExitStack() as claims:
            for i, recipe in enumerate(left):
                if not _lacks(store, recipe):
                    continue
                if not claims.enter_context(store.claim(name_of(recipe))):
                    busy.append(recipe)
                elif _lacks(store, recipe):  # another process may have been quicker than the claim
                    mine.append(recipe)
                if len(mine) == batch:
                    rest = left[i + 1 :]
                    break
            if mine:
                _draw(store, model, mine, tick)
        if busy and not mine:
            time.sleep(0.5)
        left = rest + busy


def _draw(store: Store, model: Denoiser, lacking: Sequence[Recipe], tick: Callable[[int], object]) -> None:
    """Pictures of up to a batch of recipes. The batch is always full: then a picture's bits do not depend on what else is lacking."""
    sampler = lacking[0]["sampler"]
    padded = [*lacking, *[lacking[-1]] * (sampler["batch"] - len(lacking))]
    scales = [r["sampler"]["guidance"] for r in padded]
    try:
        pictures = model.images(
            [r["prompt"] for r in padded],
            [r["seed"] for r in padded],
            steps=sampler["steps"],
            guidance=scales if len(set(scales)) > 1 else scales[0],
            sampler=sampler["name"],
            negative=sampler["negative"],
            rng=sampler["rng"],
            tick=lambda _: tick(len(lacking)),
        )
    except UsageError:
        raise  # every picture would fail for the same reason, and the user can mend it
    except Exception as error:
        if _no_memory(error):
            if sampler["batch"] > 1:
                raise BatchTooLarge(f"draw: no memory for {sampler['batch']} pictures at once ({error})") from error
            raise EffaceError(
                f"draw: {model.device} has no memory for one picture ({str(error).splitlines()[0]}); free some, or take another device"
            ) from error
        if len(lacking) > 1:  # one bad picture does not take its neighbours with it
            for recipe in lacking:
                _draw(store, model, [recipe], lambda _: None)
            return
        store.put_error(lacking[0], f"{type(error).__name__}: {error}")
        return
    for recipe, picture in zip(lacking, pictures, strict=False):
        store.put_picture(recipe, picture)


def _no_memory(error: Exception) -> bool:
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or NO_MEMORY.search(str(error)) is not None
