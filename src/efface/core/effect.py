"""How much an edit changes what the model predicts for the erased concept, and for a prompt that has nothing to do with it."""

from collections.abc import Mapping

import torch
from torch import Tensor

from efface.core.concept import Concept
from efface.core.cond import Cond
from efface.core.denoiser import Denoiser
from efface.core.guided import noise_prediction
from efface.core.prompts import SUBJECTS, ConceptPrompts

LEVELS = (0.8, 0.5)  # of the schedule, where the content of a picture is decided
LARGEST = 32  # latent positions in height and width: larger pictures would take minutes on a CPU
GUIDANCE = 3.0  # of corrections that depend on it
NOTHING = 0.05  # an edit that changes a prompt's share by less does almost nothing: see tests/core/test_effect.py


def effect(base: Denoiser, edited: Denoiser, concept: Concept) -> dict[str, float | str]:
    """The change of the predicted noise for the concept's prompt and for another one.

    It is |e' - e| / |e - e(∅)|, over two noise levels at fixed noise: 0 where the edit does nothing, about 1 where nothing is left of
    what the prompt adds to the unconditional prediction.

    Returns:
        The two prompts, "concept" and "other", and their changes, "on_concept" and "on_other".
    """
    said = ConceptPrompts.of([concept])
    mine = said.prompts[min(1, len(said.prompts) - 1)]
    used = " ".join([*said.prompts, *said.targets]).lower()
    other = next((f"a {thing}" for thing in SUBJECTS if thing not in used), "a picture")
    c, h, w = base.latent_shape
    noise = torch.randn(len(LEVELS), c, min(h, LARGEST), min(w, LARGEST), generator=torch.Generator().manual_seed(0))
    x = noise.to(base.device)
    t = torch.tensor([int(share * len(base.schedule)) for share in LEVELS], device=base.device)
    empty = _noise(base, x, t, base.embed([""]))
    changes = [_change(base, edited, x, t, prompt, empty) for prompt in (mine, other)]
    return {"concept": mine, "other": other, "on_concept": changes[0], "on_other": changes[1]}


def _change(base: Denoiser, edited: Denoiser, x: Tensor, t: Tensor, prompt: str, empty: Tensor) -> float:
    before, after = (_noise(model, x, t, model.embed([prompt])) for model in (base, edited))
    return round(float((after - before).norm() / (before - empty).norm().clamp(min=1e-12)), 4)


@torch.no_grad()
def _noise(model: Denoiser, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
    return noise_prediction(model, x, t, cond, GUIDANCE)


def sentence(found: Mapping[str, float | str]) -> str:
    """What an effect means, in words; it begins with "Warning" where the edit does almost nothing."""
    mine, other = (f"{100 * float(found[key]):.0f} %" for key in ("on_concept", "on_other"))
    if float(found["on_concept"]) < NOTHING:
        return (
            f"Warning: this edit changes pictures of {found['concept']!r} by less than {100 * NOTHING:.0f} % of what the prompt adds "
            "to them: it does almost nothing; give more --steps, a larger --lr or another method"
        )
    return f"It changes the predictions for {found['concept']!r} by {mine} of what the prompt adds, for {found['other']!r} by {other}."
