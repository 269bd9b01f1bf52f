"""The prediction that a sampler follows for a prompt, an edit's corrections of the guidance included."""

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from efface.core.cond import Cond
from efface.core.denoiser import Denoiser
from efface.core.steering import Repel, Steer


def noise_prediction(model: Denoiser, x: Tensor, t: Tensor, cond: Cond, guidance: float) -> Float[Tensor, "b c h w"]:
    """The conditional noise prediction e; where an edit corrects the guided one, the e that guidance alone would need for it.

    Guided and corrected: e(∅) + s (e - e(∅)) + correction, so the effective prediction is e + correction/s. Warm-up and momentum of a
    correction, which depend on the step of a sampler, are left out.
    """
    e = model.to_eps(x, t, model.predict(x, t, cond))
    if not model.steers:
        return e
    with torch.no_grad():
        texts = list(dict.fromkeys(["", *(text for s in model.steers for text in s.texts(""))]))
        seen = {
            text: model.to_eps(x, t, model.predict(x, t, c))
            for text, c in zip(texts, _each(model.embed(texts)), strict=True)
        }
    for steer in model.steers:
        away, towards = steer.texts("")
        e = e + _immediate(steer).start()(seen[""], e, seen[away], seen[towards], guidance) / guidance
    return e


def _immediate(steer: Steer) -> Steer:
    rule = steer.rule
    return replace(steer, rule=replace(rule, warmup=-1.0, momentum=0.0)) if isinstance(rule, Repel) else steer


def _each(cond: Cond) -> list[Cond]:
    return [cond[[i]] for i in range(len(cond))]
