"""AP: adversarial preservation: erase a concept, and preserve the words that the erasure damages most.

Paper:   Bui et al., NeurIPS 2024, arXiv:2410.15618, eq. 8 to 12, algorithms 1 and 2.
Idea:    In addition to ESD's loss, preserve the word c_a of a vocabulary that the erasure damages most. A search finds it during the
         training: a distribution over words maximises the term that the weights minimise:
             min_θ max_π  | e_θ(x_t, c_e) - goal |² + λ | e_θ(x_t, c_a) - e*(x_t, c_a) |²,   c_a = Σ_i G(π)_i c_i
         G is the Gumbel softmax. (By the paper, a search in the space of all embeddings would end at noise: hence words.)
Names:   keep = λ; temperature = τ; logits of the search = π (paper), l (released code); eta = η of ESD's target, which the released
         code has, and eq. 8 has not (η = 0); closest, picks = k_closest and number of centres; vocabulary "" replaces EN3K.
Differs: The search's gradient flows through both predictions. The released code detaches the frozen one, and so searches away from
         damaged words: against the true damage to 32 words of an erased tiger on Moji, its logits have rank correlation -0.6
         (Spearman), ours 0.6. Losses are native; the released ones, between clean latents, put 84 % of their weight on the noisiest
         fifth. Candidates are medoids of the closest words' embeddings; the released code clusters their distances, one number each.
         Preserved concepts are candidates as well. Words appear in the concept's templates. One batch serves both players (released:
         one batch each, in turn), and `reuse` steps share ESD's trajectories and as many for found words, whose Gumbel noise does not
         change meanwhile. Mode "soft" mixes by the whole softmax, as released. Preset "released": objects (nudity there: where
         noxattn, closest 2000, picks 50), but its latents are 39 to 58 noise levels cleaner than the level it gives the model.
         On Moji the most damaged words are synonyms: "tiger face", or "predator", a tag of the tiger drawings.
Cost:    Twice ESD's a step: about two minutes for Moji on one core; minutes on a GPU for Stable Diffusion.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Generator, Tensor
from typing_extensions import override  # in typing from Python 3.12

from efface.core.concept import Concept
from efface.core.cond import Cond
from efface.core.denoiser import Denoiser
from efface.core.edit import Delta, Header, LowRank
from efface.core.log import Log
from efface.core.params import param
from efface.core.prompts import ConceptPrompts, negative_guidance_target
from efface.core.train import Tuner
from efface.erasers.base import Eraser
from efface.erasers.parts.search import ClusterBy, Search, candidates, listed, walks

Where = Literal[
    "xattn", "xattn.kv", "noxattn", "selfattn", "denoiser", "xattn.layers", "noxattn.layers", "noxattn.2023"
]


@dataclass(frozen=True, kw_only=True)
class AP(Eraser):
    """Erase a concept; preserve the words that this damages most."""

    where: Where = param(
        "xattn", "weights to train: xattn for names and styles, noxattn for what no prompt must bring back"
    )
    eta: float = param(1.5, "η, strength of the negative guidance away from the concept", at_least=0)
    keep: float = param(1.0, "λ, weight of keeping the found words", at_least=0)
    vocabulary: str = param(
        "",
        "words to search: separated by commas, a .txt file with one a line, or '' for the tokenizer's frequent words",
    )
    closest: int = param(100, "candidates: how many of the words nearest to the concept", at_least=1)
    picks: int = param(50, "candidates: how many of those to keep, by k-medoids", at_least=1)
    cluster_by: ClusterBy = param(
        "embedding", "cluster the words by their embeddings, or only by their distance to the concept"
    )
    mode: Literal["hard", "soft"] = param("hard", "keep one word at a time, or a mixture of all")
    temperature: float = param(2.0, "τ of the Gumbel softmax", above=0)
    search_lr: float = param(0.1, "Adam's learning rate of the search", above=0)
    frozen_gradient: bool = param(True, "the search's gradient also passes through the frozen model's prediction")
    space: Literal["native", "x0"] = param("native", "compute losses on native predictions, or on the clean latents")
    steps: int = param(100, "training steps", at_least=0)
    lr: float = param(3e-4, "Adam's learning rate", above=0)
    batch: int = param(6, "noisy latents of the concept in a step, and as many of found words", at_least=1)
    source: Literal["base", "edited"] = param("base", "model that samples the latents")
    reuse: int = param(25, "steps that share the sampled trajectories", at_least=1)
    sampler_steps: int = param(25, "DDIM steps of a trajectory", at_least=2)
    guidance: float = param(3.0, "guidance scale of a trajectory", at_least=1)
    rank: int = param(0, "train LoRA factors of this rank; 0 trains whole weights", at_least=0)
    templates: bool = param(True, "also use prompt templates, not only bare words")

    makes: ClassVar = (Delta, LowRank)
    needs: ClassVar = frozenset({"drawing"})
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "released": {
            "eta": 1.0, "keep": 1.0, "closest": 1000, "picks": 100, "cluster_by": "distance", "search_lr": 1e-2, "frozen_gradient": False,
            "space": "x0", "steps": 1000, "lr": 1e-5, "batch": 1, "source": "edited", "reuse": 1, "sampler_steps": 50, "templates": False,
        },
    }  # fmt: skip

    @override
    def run(
        self, base: Denoiser, erase: tuple[Concept, ...], preserve: tuple[Concept, ...], rng: Generator, log: Log
    ) -> Delta | LowRank:
        vocabulary, allowed = candidates(
            base, erase, listed(self.vocabulary, base), [p for c in preserve for p in c.phrases],
            closest=self.closest, picks=self.picks, cluster_by=self.cluster_by,
        )  # fmt: skip
        search = Search(
            base, erase, vocabulary, allowed, steps=self.steps, lr=self.search_lr, temperature=self.temperature,
            hard=self.mode == "hard", top=len(vocabulary), templates=self.templates,
        )  # fmt: skip
        tuner = Tuner(base, self.where, lr=self.lr, rank=self.rank, rng=rng)
        student = tuner.student
        embedded = ConceptPrompts.of(erase, self.templates).embed(base)
        latents = walks(
            student if self.source == "edited" else base, embedded.prompts, search, rng,
            batch=self.batch, reuse=self.reuse, steps=self.sampler_steps, guidance=self.guidance,
        )  # fmt: skip
        log.recipe = self.recipe(base, erase, preserve) + repr(vocabulary)
        for step in log.steps([tuner, search], self.steps, every=self.reuse * -(-25 // self.reuse)):
            search.note(step)
            x, x_found, t, picked, noise = next(latents)
            cond = embedded.prompts[picked]
            with torch.no_grad():
                e_cond = base.predict(x, t, cond)
                goal = negative_guidance_target(base, x, t, e_cond, embedded, picked, self.eta)
            erased = self.apart(base, x, t, student.predict(x, t, cond), goal)
            hurt = self.hurt(base, student, x_found, t, search.found(picked, noise))
            search.ascend(hurt)
            loss = erased + self.keep * hurt
            tuner.step(loss)
            log.loss(loss.detach())
        edit = tuner.edit()
        edit.header = Header("", notes=search.notes())
        return edit

    def hurt(self, base: Denoiser, student: Denoiser, x: Tensor, t: Tensor, found: Cond) -> Tensor:
        """Distance of the student's predictions for the found words from the frozen model's."""
        with torch.set_grad_enabled(self.frozen_gradient):
            before = base.predict(x, t, found)
        return self.apart(base, x, t, student.predict(x, t, found), before)

    def apart(self, base: Denoiser, x: Tensor, t: Tensor, a: Tensor, b: Tensor) -> Tensor:
        """Mean square between two predictions, or between the clean latents that they imply."""
        if self.space == "x0":
            a, b = base.to_x0(x, t, a), base.to_x0(x, t, b)
        return (a - b).square().mean()
