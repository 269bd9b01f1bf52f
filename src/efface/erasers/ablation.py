"""Concept Ablation: train the concept's prompts to predict what the model predicts for an anchor concept.

Paper:   Kumari et al., ICCV 2023, arXiv:2303.13516.
Idea:    Match the distribution of pictures of the concept c* to that of an anchor c. The KL divergence of the two is a regression:
             L = | e_θ(x_t, c*, t) - e(x_t, c, t) |²,  x_t = √ᾱ x + √(1-ᾱ) ε,  x a picture of the anchor
         objective "model" is as written; "noise" has ε instead of e; "reverse" (the reverse KL) uses pictures x of the concept.
Names:   anchor c = the target, or "" (for a style in a prompt with a thing, the thing); prior = λ; drawn = train_size, anchor images.
Differs: The anchor's prediction is the frozen model's; the released code uses the model in training, which drifts (`teacher="live"`).
         The prior preserves this prediction for the anchor, "" and the preserved concepts; the released prior has ε as its target, for
         the anchor alone. The released loss sums over the C latent channels and its prior averages: its weight 1 is 1/C here, 0.25 in
         the presets. Released pictures are 1000 of some 200 anchor prompts, by DPM-Solver, flipped and resized with size words; ours
         are `drawn` by DDIM from a few templates. No weight decay, no clipping; lr is the released one times its batch and GPUs, twice
         that with a prior. As released, no gradient flows through the start token's key and value. "text.embeddings" trains only the
         concept's own tokens (the released code decays all rows and cannot save). To unlearn a memorised picture, erase its caption and
         give it in `pictures`: the paper trains on pictures of paraphrases, searched for copies; preset "memorised" trains on the copy.
Cost:    A minute for Moji on two cores, half of it for the pictures; minutes on a GPU for Stable Diffusion.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Generator, Tensor, nn
from typing_extensions import override  # in typing from Python 3.12

from efface.core.concept import Concept
from efface.core.denoiser import Denoiser
from efface.core.edit import Delta, LowRank
from efface.core.errors import UsageError
from efface.core.log import Log
from efface.core.params import param
from efface.core.pictures import read_pictures
from efface.core.prompts import ConceptPrompts, kept_prompts
from efface.core.train import Tuner
from efface.erasers.base import Eraser
from efface.erasers.parts.embeddings import WordTuner, own_words

PICTURES = "folder with pictures of the concept, such as a memorised one, for objective reverse; '' draws them"


@dataclass(frozen=True, kw_only=True)
class ConceptAblation(Eraser):
    """Fine-tune the denoiser, or token embeddings, to an anchor."""

    objective: Literal["model", "noise", "reverse"] = param(
        "model",
        "training target: the anchor's prediction, the noise, or the anchor's prediction on the concept's pictures",
    )
    where: Literal["xattn.kv", "xattn", "attn", "denoiser", "text.embeddings"] = param("xattn.kv", "weights to train")
    teacher: Literal["frozen", "live"] = param(
        "frozen", "model that predicts for the anchor: the frozen one, or the one in training"
    )
    prior: float = param(1.0, 'λ, weight of preserving the anchor, "" and preserved concepts', at_least=0)
    pictures: str = param("", PICTURES)
    drawn: int = param(32, "training pictures to draw, and as many of what is preserved", at_least=1)
    steps: int = param(150, "training steps", at_least=0)
    lr: float = param(1e-3, "Adam's learning rate", above=0)
    batch: int = param(8, "noisy pictures in a step, and as many of what is preserved", at_least=1)
    rank: int = param(0, "train LoRA factors of this rank; 0 trains whole weights", at_least=0)
    sampler_steps: int = param(25, "DDIM steps of a picture", at_least=2)
    guidance: float = param(3.0, "guidance scale of a picture", at_least=1)
    templates: bool = param(True, "also use prompt templates, not only the bare name")

    makes: ClassVar = (Delta, LowRank)
    needs: ClassVar = frozenset({"drawing"})
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "object": {"steps": 100, "lr": 3.2e-5, "guidance": 6.0, "drawn": 200, "prior": 0.25},
        "style": {"steps": 100, "lr": 1.6e-5, "guidance": 6.0, "drawn": 200, "prior": 0.0},
        "memorised": {
            "objective": "reverse", "where": "denoiser", "lr": 4e-6, "batch": 4, "steps": 400, "guidance": 6.0, "prior": 0.25,
            "templates": False,
        },
        "released": {
            "teacher": "live", "steps": 100, "lr": 1.6e-5, "guidance": 6.0, "drawn": 1000, "prior": 0.0, "templates": False,
        },
    }  # fmt: skip

    @override
    def __post_init__(self) -> None:
        """Refuse pictures that would not be looked at."""
        super().__post_init__()
        if self.pictures and self.objective != "reverse":
            raise UsageError(
                f"ConceptAblation.pictures: expected '' with objective {self.objective!r}, got {self.pictures!r}; {PICTURES}"
            )

    @override
    def run(
        self, base: Denoiser, erase: tuple[Concept, ...], preserve: tuple[Concept, ...], rng: Generator, log: Log
    ) -> Delta | LowRank:
        embeddings = self.where == "text.embeddings"  # what to train
        tuner = WordTuner(base, own_words(base, erase), lr=self.lr, rng=rng) if embeddings else self.tuner(base, rng)
        student, teacher = tuner.student, tuner.student if self.teacher == "live" else base
        prompts = ConceptPrompts.of(erase, self.templates)
        kept = list(dict.fromkeys([*prompts.targets, *kept_prompts(preserve, self.templates), ""]))
        anchors, kept_cond = base.embed(prompts.targets), base.embed(kept)
        drawn = prompts.prompts if self.objective == "reverse" else prompts.targets
        shown, of = self.given(base, drawn) if self.pictures else self.draw(base, drawn, rng)
        still, which = self.draw(base, kept, rng) if self.prior else (shown, of)
        # the folder may have other pictures when the run continues
        log.recipe = f"{self.recipe(base, erase, preserve)} {shown.double().sum():.6f}"
        for _ in log.steps(tuner, self.steps):
            x, t, noise, i = self.noised(base, shown, rng)
            with torch.no_grad():
                goal = noise if self.objective == "noise" else teacher.predict(x, t, anchors[of[i]])
            cond = student.embed([prompts.prompts[k] for k in of[i]], grad=embeddings)
            loss = (student.predict(x, t, cond) - goal).square().mean()
            if self.prior:
                x, t, noise, i = self.noised(base, still, rng)
                with torch.no_grad():
                    goal = noise if self.teacher == "live" else base.predict(x, t, kept_cond[which[i]])
                cond = student.embed([kept[k] for k in which[i]], grad=embeddings)
                loss = loss + self.prior * (student.predict(x, t, cond) - goal).square().mean()
            tuner.step(loss)
            log.loss(loss.detach())
        return tuner.edit()

    def tuner(self, base: Denoiser, rng: Generator) -> Tuner:
        """Trains the denoiser's weights; no gradient flows through the start token's key and value."""
        tuner = Tuner(base, self.where, lr=self.lr, rank=self.rank, rng=rng)
        for module in tuner.student.text_readers().values():
            module.register_forward_hook(hold_start)
        return tuner

    def draw(self, base: Denoiser, prompts: Sequence[str], rng: Generator) -> tuple[Tensor, Tensor]:
        """Latents of `drawn` pictures, and the index of each one's prompt."""
        of = torch.randint(len(prompts), (self.drawn,), generator=rng)
        seeds = torch.randint(2**31, (self.drawn,), generator=rng).tolist()
        cond = base.embed(prompts)[of]
        return base.sample(cond, seeds=seeds, steps=self.sampler_steps, guidance=self.guidance), of

    def given(self, base: Denoiser, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Latents of the pictures in the folder, once for every prompt, and the index of that prompt."""
        latents = base.encode(read_pictures(self.pictures, base.image_size, "ConceptAblation.pictures"))
        return latents.repeat_interleave(len(prompts), 0), torch.arange(len(prompts)).repeat(len(latents))

    def noised(self, base: Denoiser, latents: Tensor, rng: Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """A batch of noisy latents, their levels, the noise as a native prediction, and the latents' indices."""
        i = torch.randint(len(latents), (self.batch,), generator=rng)
        t = torch.randint(len(base.schedule), (self.batch,), generator=rng).to(latents.device)
        eps = torch.randn(latents[i].shape, generator=rng).to(latents)
        x = base.add_noise(latents[i], t, eps)
        return x, t, base.native(latents[i], t, eps), i


def hold_start(module: nn.Module, given: tuple[Tensor, ...], rows: Tensor) -> Tensor:
    """The same rows, without a gradient for the first: the start token, which is in every prompt."""
    return torch.cat([rows[:, :1].detach(), rows[:, 1:]], 1)
