"""MACE: mass concept erasure: refine co-occurring tokens, suppress attention to the concept's tokens, fuse LoRAs in closed form.

Paper:   Lu et al., CVPR 2024, arXiv:2403.06135, eq. 1-7.
Idea:    Three stages. Tokens near a concept contain it too: one linear map turns them into the tokens near its target. Then a rank-1 LoRA
         for each concept removes the attention from its region M of a picture to its tokens S. Last, one W* acts like LoRA i
         on the prompts of concept i, and like W on everything else:
             L_i = Σ_l |A_l(x_t)[S] ∘ M|²,   min_W* Σ_i Σ_j |W* e_ij - (W' + ΔW_i) e_ij|² + λ2 Σ_j |W* p_j - W p_j|²
Names:   refine_prior = λ1, fuse_prior = λ2, focus = concept-focal sampling ξ(t), words = S; target = mapping concept.
Differs: One map serves all layers, one factorisation the whole fusion; the result is stored exactly. A concept weighs as much as one
         prompt for any number of pairs, its padding as one row; λ is in units of the second moment of all concepts; the prior is the
         preserved concepts, "" and everyday words; the paper uses captions of COCO. The loss is a mean square over each layer's heads
         and positions; masks are area averages. Latents are not normalised; the released code uses ImageNet's mean on them.
         Masks come from the model's own attention; the paper runs Grounded-SAM. S are the concept's tokens, as in the paper.
         Preset "released" is the later code as far as possible here: S with end and padding (there only padding that is the end
         token), norms not squared, batch, the learning rate of celebrities and artists (others 1e-5), its squared λ1, which switches
         stage 1's prior off. Left out: captions, DPM-Solver++, weight decay, clipping at 1, and objects' λ |W* - W'|² as fusion's prior.
         Mask files: picture i is from `images`, with seed i, of "a tiger", its other names, "a picture of a tiger" and so on, in turn.
Cost:    A few seconds a concept on Moji; on Stable Diffusion a minute on a GPU, most of it for its pictures.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Generator, Tensor
from typing_extensions import override  # in typing from Python 3.12

from efface.core.attention import attention_loss, focal, heat, recorded
from efface.core.concept import Concept
from efface.core.denoiser import Denoiser
from efface.core.edit import LowRank, TextMap
from efface.core.errors import UsageError
from efface.core.hooks import BoundBranch
from efface.core.linalg import fuse
from efface.core.log import Log
from efface.core.params import param
from efface.core.prompts import ConceptPrompts, everyday_prompts
from efface.core.rows import keep_rows, row_metric
from efface.core.train import Learner
from efface.erasers.base import Eraser
from efface.erasers.parts.lora import added, lora
from efface.erasers.parts.masks import read_masks
from efface.erasers.parts.prompt_pairs import PromptPairs, moment, prompt_pairs, refine

MASKS = "where pictures show the concept: attention, a folder of masks, or a CLIPSeg model's folder or Hub id"


@dataclass(frozen=True, kw_only=True)
class MACE(Eraser):
    """Refine tokens, suppress attention, fuse many concepts."""

    steps: int = param(15, "training steps of each concept's LoRA; 0 changes nothing", at_least=0)
    lr: float = param(1e-2, "Adam's learning rate", above=0)
    batch: int = param(4, "noisy latents in a step", at_least=1)
    drawn: int = param(8, "pictures to draw of each concept, with seeds 0, 1, …", at_least=1)
    sampler_steps: int = param(12, "DDIM steps of a picture", at_least=2)
    guidance: float = param(3.0, "guidance scale of a picture", at_least=1)
    masks: str = param("attention", MASKS)
    threshold: float = param(
        0.3, "attention, of its range, from which a place shows the concept", at_least=0, at_most=1
    )
    words: Literal["own", "ends"] = param("own", "S: the concept's own tokens, or the end tokens as well")
    loss: Literal["square", "norm"] = param("square", "loss of a layer's attention: mean square, or norm as released")
    focus: bool = param(True, "sample the noise levels at which concepts form, or all uniformly")
    refine_prior: float = param(0.1, "λ1, weight of everyday words in the refinement", above=0)
    fuse_prior: float = param(1.0, "λ2, weight of everyday words in the fusion", above=0)
    everyday: int = param(200, "frequent words to preserve", at_least=1)

    where: ClassVar = "xattn.kv"
    makes: ClassVar = (LowRank,)
    needs: ClassVar = frozenset({"drawing", "cross-attention"})
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "released": {
            "steps": 50, "lr": 1e-4, "batch": 1, "sampler_steps": 30, "guidance": 7.5, "words": "ends", "loss": "norm",
            "refine_prior": 2e-4, "fuse_prior": 2.0,
        },
    }  # fmt: skip

    @override
    def __post_init__(self) -> None:
        """Refuse an unknown source of masks."""
        super().__post_init__()
        if self.masks != "attention" and "/" not in self.masks and not Path(self.masks).is_dir():
            raise UsageError(f"MACE.masks: expected attention, a folder or a Hub id, got {self.masks!r}; {MASKS}")

    @override
    def run(
        self, base: Denoiser, erase: tuple[Concept, ...], preserve: tuple[Concept, ...], rng: Generator, log: Log
    ) -> LowRank:
        pairs = [prompt_pairs(base, c) for c in erase]
        grams = [moment(t.prompts) for t in pairs]
        kept = sum((moment(prompt_pairs(base, c).prompts) for c in preserve), moment(base.embed([""])))
        everyday = base.embed(everyday_prompts(base, self.everyday, ConceptPrompts.of(erase, templates=False)))
        unit = torch.stack([g.trace() for g in grams]).sum() / len(kept)
        prior = unit * row_metric(*keep_rows(everyday.cpu(), "content"))
        left, right = refine(pairs, kept, self.refine_prior * prior)
        if not self.steps:
            left = torch.zeros_like(left)
        refined, weights = TextMap(left, right)(base), base.params(self.where)
        loras = [Learner(lora(weights, rng), lr=self.lr) for _ in erase]
        seeds = torch.randint(2**31, (len(erase),), generator=rng).tolist()
        log.recipe, losses = self.recipe(base, erase, preserve), iter(())
        for step in log.steps(loras, self.steps * len(erase), every=max(1, self.steps)):  # checkpoints between concepts
            i, done = divmod(step, self.steps)
            if not done:
                losses = self.losses(base, refined, erase[i], pairs[i], loras[i], Generator().manual_seed(seeds[i]))
            loras[i].step(loss := next(losses))
            log.loss(loss.detach())
        learnt = [{k: (m.leaves[f"{k}/up"].detach(), m.leaves[f"{k}/down"].detach()) for k in weights} for m in loras]
        return LowRank(fuse(weights, left, right, learnt, grams, kept + self.fuse_prior * prior))

    def losses(
        self, base: Denoiser, refined: Denoiser, concept: Concept, pairs: PromptPairs, lora: Learner, rng: Generator
    ) -> Iterator[Tensor]:
        """The attention loss from the concept's region to its tokens, on newly picked pictures, levels, noise and prompts."""
        student = refined.fork(())
        student.branches = (*refined.branches, BoundBranch(lambda cond: added(lora.leaves), 1.0, ""))
        x0, places = self.draw(base, concept, pairs, rng)
        own = pairs.own | pairs.ends if self.words == "ends" else pairs.own
        levels = focal(len(base.schedule)) if self.focus else torch.ones(len(base.schedule))
        while True:
            picked = torch.randint(len(x0), (self.batch,), generator=rng)
            prompt = torch.randint(len(own), (self.batch,), generator=rng)
            t = torch.multinomial(levels, self.batch, replacement=True, generator=rng).to(x0.device)
            x = base.add_noise(x0[picked], t, torch.randn(x0[picked].shape, generator=rng).to(x0))
            with recorded(student, own[prompt]) as maps:
                student.predict(x, t, pairs.prompts[prompt])
            yield attention_loss(maps, places[picked], base.latent_shape[1:], self.loss == "square")

    @torch.no_grad()
    def draw(self, base: Denoiser, concept: Concept, pairs: PromptPairs, rng: Generator) -> tuple[Tensor, Tensor]:
        """Pictures of the concept as latents, and masks of its region; for a style, the whole picture."""
        plain = torch.arange(self.drawn) % pairs.plain
        cond, own = pairs.prompts[plain], pairs.own[plain]
        x0 = base.sample(cond, seeds=range(self.drawn), steps=self.sampler_steps, guidance=self.guidance)
        if concept.kind == "style":
            return x0, torch.ones_like(x0[:, 0])
        if self.masks != "attention":
            return x0, read_masks(self.masks, base.decode(x0), concept.name)
        warmth = []
        for level in (200, 300, 400):
            t = torch.full((len(x0),), level, device=x0.device)
            with recorded(base, own) as maps:
                base.predict(base.add_noise(x0, t, torch.randn(x0.shape, generator=rng).to(x0)), t, cond)
            warmth.append(heat(maps, base.latent_shape[1:]))
        return x0, (torch.stack(warmth).mean(0) >= self.threshold).to(x0)
