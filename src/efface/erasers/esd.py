"""ESD: erased stable diffusion, by distilling the model's own negative guidance into its weights.

Paper:   Gandikota et al., ICCV 2023, arXiv:2303.07345, eq. 7 and section 4.
Idea:    Train the denoiser, for the concept's prompt, to predict what the frozen one predicts with negative guidance:
             L = | e_θ(x_t, c, t) - (e*(x_t, ∅, t) - η (e*(x_t, c, t) - e*(x_t, ∅, t))) |²
         The latents x_t are partly denoised pictures of the concept, drawn by the model itself: no other data is needed.
Names:   eta = η, negative guidance in the paper's sense (the later code's `negative_guidance` is η + 1); where = ESD-x, -u, …
Differs: Predictions are native (ε or v): the target is affine in them at equal x_t and t, so it is the same target. Trajectories are
         kept whole: each step uses `batch` noise levels, and `reuse` steps share a trajectory; the paper samples for each step. With
         a target concept, it replaces ∅ in the first term; for a style in a prompt with a thing ("a dog in noto style"), the thing,
         which is preserved, replaces ∅. The loss uses the exact noise level of the latent. Master weights are float32: the later
         code's bfloat16 weights hardly change. Preset "2023" has latents of the edited model, one at a time, 1000 steps at 1e-5
         (that code's latents are 39 to 58 noise levels cleaner than the level it gives the model). Preset "2025" has latents of the
         base model, 200 steps at 5e-5, linear and convolution weights only (that code samples with its pipeline's own scheduler,
         PNDM for Stable Diffusion 1.4, and at 1024 pixels; ours with DDIM at the model's size).
Cost:    About a minute for Moji on two cores; minutes on a GPU for Stable Diffusion.
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
from efface.core.prompts import ConceptPrompts, negative_guidance_target
from efface.core.train import Tuner
from efface.core.walk import walk
from efface.erasers.base import Eraser

Where = Literal[
    "xattn", "xattn.kv", "noxattn", "selfattn", "denoiser", "xattn.layers", "noxattn.layers", "noxattn.2023"
]


@dataclass(frozen=True, kw_only=True)
class ESD(Eraser):
    """Fine-tune the denoiser away from a concept."""

    where: Where = param(
        "xattn", "weights to train: xattn for names and styles, noxattn for what no prompt must bring back"
    )
    eta: float = param(1.0, "η, strength of the negative guidance away from the concept", at_least=0)
    steps: int = param(140, "training steps", at_least=0)
    lr: float = param(2e-4, "Adam's learning rate", above=0)
    batch: int = param(12, "noisy latents in a step", at_least=1)
    source: Literal["base", "edited"] = param("base", "model that samples the latents")
    reuse: int = param(25, "steps that share the sampled trajectories", at_least=1)
    sampler_steps: int = param(25, "DDIM steps of a trajectory", at_least=2)
    guidance: float = param(3.0, "guidance scale of a trajectory", at_least=1)
    rank: int = param(0, "train LoRA factors of this rank; 0 trains whole weights", at_least=0)
    templates: bool = param(True, "also use prompt templates, not only the bare name")

    makes: ClassVar = (Delta, LowRank)
    needs: ClassVar = frozenset({"drawing"})
    keeps: ClassVar = False
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "x": {"where": "xattn"},
        "u": {"where": "noxattn"},
        "selfattn": {"where": "selfattn"},
        "full": {"where": "denoiser"},
        "strict": {"where": "xattn.kv"},
        "2023": {
            "steps": 1000, "lr": 1e-5, "batch": 1, "source": "edited", "reuse": 1, "sampler_steps": 50, "templates": False,
        },
        "2025": {
            "where": "xattn.layers", "steps": 200, "lr": 5e-5, "batch": 1, "source": "base", "reuse": 1, "sampler_steps": 50,
            "templates": False,
        },
    }  # fmt: skip

    @override
    def run(
        self, base: Denoiser, erase: tuple[Concept, ...], preserve: tuple[Concept, ...], rng: Generator, log: Log
    ) -> Delta | LowRank:
        tuner = Tuner(base, self.where, lr=self.lr, rank=self.rank, rng=rng)
        student = tuner.student
        embedded = ConceptPrompts.of(erase, self.templates).embed(base)
        latents = walk(
            student if self.source == "edited" else base, embedded.prompts, rng,
            batch=self.batch, reuse=self.reuse, steps=self.sampler_steps, guidance=self.guidance,
        )  # fmt: skip
        log.recipe = self.recipe(base, erase, preserve)
        for _ in log.steps(
            tuner, self.steps, every=self.reuse * -(-25 // self.reuse)
        ):  # checkpoints between trajectories
            x, t, picked = next(latents)
            cond = embedded.prompts[picked]
            with torch.no_grad():
                e_cond = base.predict(x, t, cond)
                goal = negative_guidance_target(base, x, t, e_cond, embedded, picked, self.eta)
            loss = (student.predict(x, t, cond) - goal).square().mean()
            tuner.step(loss)
            log.loss(loss.detach())
        return tuner.edit()
