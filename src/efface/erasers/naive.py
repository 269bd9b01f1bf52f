"""Naive output-based erasure: train the concept's prompt to predict the target, and preserve other given concepts.

Paper:   Bui et al., NeurIPS 2024, arXiv:2410.15618, eq. 7 of their talk: the baseline that they improve on.
Idea:    Train the denoiser to predict the target for the concept's prompt, and the frozen prediction for preserved prompts:
             L = | e_θ(x_t, c_e, t) - e(x_t, c_t, t) |² + λ | e_θ(x_t, c_n, t) - e(x_t, c_n, t) |²
         Latents are partly denoised pictures of each term's own prompt, drawn by the model itself: no other data is needed.
Names:   preserve_scale = λ (`lamda`); target = c_t, "" or "a photo"; the preserved concepts and "" = c_n, neutral concepts; eta =
         `negative_guidance` of the released code, whose target is e(c_t) - η (e(c_e) - e(c_t)); eq. 7 has η = 0.
Differs: Unrelated prompts hardly change without the second term, so λ matters for given neighbours. The second term has its own
         trajectories, since latents of c_e are not like those of c_n. For a style in a prompt with a thing ("a dog in noto style")
         and without a target, c_t is the thing. A trajectory gives `batch` noise levels for `reuse` steps.
         The released code (the baseline in AGE's repository) preserves " " alone, on latents of c_e drawn by the edited model, which
         are 39 to 58 noise levels cleaner than the level it gives the model: preset "released" has all of this but the last.
Cost:    A minute or two for Moji on two cores; minutes on a GPU for Stable Diffusion.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Generator
from typing_extensions import override  # in typing from Python 3.12

from efface.core.concept import Concept
from efface.core.denoiser import Denoiser
from efface.core.edit import Delta, LowRank
from efface.core.log import Log
from efface.core.params import param
from efface.core.prompts import ConceptPrompts, kept_prompts
from efface.core.train import Tuner
from efface.core.walk import walk
from efface.erasers.base import Eraser


@dataclass(frozen=True, kw_only=True)
class Naive(Eraser):
    """Fine-tune the denoiser to draw the target instead."""

    where: Literal["xattn", "xattn.kv", "noxattn", "denoiser"] = param("xattn", "weights to train")
    preserve_scale: float = param(1.0, 'λ, weight of the preserved concepts and ""', at_least=0)
    eta: float = param(0.0, "η, how far beyond the target, away from the concept", at_least=0)
    kept_latents: Literal["own", "concept"] = param("own", "latents for preserved prompts: their own, or the concept's")
    steps: int = param(140, "training steps", at_least=0)
    lr: float = param(6e-4, "Adam's learning rate", above=0)
    batch: int = param(8, "noisy latents of each term in a step", at_least=1)
    source: Literal["base", "edited"] = param("base", "model that samples the latents")
    reuse: int = param(25, "steps that share the sampled trajectories", at_least=1)
    sampler_steps: int = param(25, "DDIM steps of a trajectory", at_least=2)
    guidance: float = param(3.0, "guidance scale of a trajectory", at_least=1)
    rank: int = param(0, "train LoRA factors of this rank; 0 trains whole weights", at_least=0)
    templates: bool = param(True, "also use prompt templates, not only the bare name")

    makes: ClassVar = (Delta, LowRank)
    needs: ClassVar = frozenset({"drawing"})
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "released": {
            "preserve_scale": 0.1, "eta": 1.0, "kept_latents": "concept", "steps": 1000, "lr": 1e-5, "batch": 1, "source": "edited",
            "reuse": 1, "sampler_steps": 50, "templates": False,
        },
    }  # fmt: skip

    @override
    def run(
        self, base: Denoiser, erase: tuple[Concept, ...], preserve: tuple[Concept, ...], rng: Generator, log: Log
    ) -> Delta | LowRank:
        tuner = Tuner(base, self.where, lr=self.lr, rank=self.rank, rng=rng)
        embedded = ConceptPrompts.of(erase, self.templates).embed(base)
        kept = base.embed(["", *kept_prompts(preserve, self.templates)])
        ways = {"batch": self.batch, "reuse": self.reuse, "steps": self.sampler_steps, "guidance": self.guidance}
        model = tuner.student if self.source == "edited" else base
        towards, still = walk(model, embedded.prompts, rng, **ways), walk(model, kept, rng, **ways)
        log.recipe = self.recipe(base, erase, preserve)
        for _ in log.steps(
            tuner, self.steps, every=self.reuse * -(-25 // self.reuse)
        ):  # checkpoints between trajectories
            x, t, i = next(towards)
            if self.kept_latents == "own":
                x_kept, t_kept, j = next(still)
            else:
                x_kept, t_kept, j = x, t, torch.randint(len(kept), (self.batch,), generator=rng)
            x, t = torch.cat([x, x_kept]), torch.cat([t, t_kept])
            with torch.no_grad():
                goal = base.predict(x, t, embedded.targets[i] + kept[j])
                if self.eta:  # past the target, away from the concept
                    aim = goal[: self.batch]
                    aim += self.eta * (aim - base.predict(x[: self.batch], t[: self.batch], embedded.prompts[i]))
            missed = (tuner.student.predict(x, t, embedded.prompts[i] + kept[j]) - goal).square()
            loss = missed[: self.batch].mean() + self.preserve_scale * missed[self.batch :].mean()
            tuner.step(loss)
            log.loss(loss.detach())
        return tuner.edit()
