"""AGE: adaptive guided erasure towards target words, which a search finds during training.

Paper:   Bui et al., ICLR 2025, arXiv:2501.18950, its minimax objective (eq. 14 of the first author's talk).
Idea:    The best target is near the concept but not a synonym. As in AP, optimise a Gumbel softmax over a vocabulary; its word has
         two roles, target of the concept and preserved concept:
             min_θ max_π  | e_θ(x_t, c_e) - e*(x_t, c_t) |² + λ | e_θ(x_t', c_t) - e*(x_t', c_t) |²,   c_t = Σ_i G(π)_i c_i
         The first term is largest for words far from the concept, the second for words that the erasure damages.
Names:   keep = λ (`lamda`); away = weight of the first term in the search only, 1 in the paper; temperature = τ; closest, picks =
         k_closest and number of centres; eta = `negative_guidance`, strength beyond the target word (released: 1, paper: 0).
Differs: The search's gradient includes both terms in full. The released code detaches the word in the first and the frozen
         prediction in the second, so that only the vocabulary prevents synonyms (`frozen_gradient`).
         As in AP: native losses, medoids, templates, one batch for both players, shared trajectories; preserved concepts are
         candidates as well. A concept with a given target is erased towards it, without a search. Preset "released": objects, with
         ImageNet's class names as vocabulary (artists there: mode soft, temperature 2, search_lr 1e-3, closest 1000).
Cost:    Twice ESD's a step: about two minutes for Moji on one core; minutes on a GPU for Stable Diffusion.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Generator, Tensor
from typing_extensions import override  # in typing from Python 3.12

from efface.core.concept import Concept, same
from efface.core.denoiser import Denoiser
from efface.core.edit import Delta, Header, LowRank
from efface.core.errors import UsageError
from efface.core.log import Log
from efface.core.params import param
from efface.core.prompts import ConceptPrompts
from efface.core.train import Tuner
from efface.erasers.base import Eraser
from efface.erasers.parts.search import ClusterBy, Search, candidates, listed, walks

Where = Literal[
    "xattn", "xattn.kv", "noxattn", "selfattn", "denoiser", "xattn.layers", "noxattn.layers", "noxattn.2023"
]


@dataclass(frozen=True, kw_only=True)
class AGE(Eraser):
    """Erase towards words that a search finds; preserve those words."""

    where: Where = param(
        "xattn", "weights to train: xattn for names and styles, noxattn for what no prompt must bring back"
    )
    eta: float = param(
        0.0, "η, how far past the found word, away from the concept, the prediction is pushed", at_least=0
    )
    keep: float = param(1.0, "λ, weight of keeping the found words", at_least=0)
    away: float = param(1.0, "weight of the first term in the search", at_least=0)
    vocabulary: str = param(
        "",
        "words to search: separated by commas, a .txt file with one a line, or '' for the tokenizer's frequent words",
    )
    closest: int = param(100, "candidates: how many of the words nearest to the concept", at_least=1)
    picks: int = param(50, "candidates: how many of those to keep, by k-medoids", at_least=1)
    cluster_by: ClusterBy = param(
        "embedding", "cluster the words by their embeddings, or only by their distance to the concept"
    )
    mode: Literal["hard", "soft"] = param("hard", "erase towards one word at a time, or towards a mixture")
    top: int = param(5, "words of a soft mixture", at_least=1)
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
            "eta": 1.0, "keep": 1.0, "closest": 100, "picks": 100, "cluster_by": "distance", "temperature": 0.1, "search_lr": 1e-2,
            "frozen_gradient": False, "space": "x0", "steps": 1000, "lr": 1e-5, "batch": 1, "source": "edited", "reuse": 1,
            "sampler_steps": 50, "templates": False,
        },
    }  # fmt: skip

    @override
    def run(
        self, base: Denoiser, erase: tuple[Concept, ...], preserve: tuple[Concept, ...], rng: Generator, log: Log
    ) -> Delta | LowRank:
        always = [p for c in preserve for p in c.phrases] + [c.target for c in erase]
        vocabulary, allowed = candidates(
            base, erase, listed(self.vocabulary, base), always, closest=self.closest, picks=self.picks, cluster_by=self.cluster_by,
        )  # fmt: skip
        for row, concept in zip(allowed, erase, strict=True):
            if concept.target.strip():  # no search: the user gave the target
                row[:] = torch.tensor([same(w, concept.target) for w in vocabulary])
            if not row.any():
                raise UsageError(
                    f"AGE.fit: {concept.name!r} has the target {concept.target!r}, which is erased itself; give another target"
                )
        search = Search(
            base, erase, vocabulary, allowed, steps=self.steps, lr=self.search_lr, temperature=self.temperature,
            hard=self.mode == "hard", top=self.top, templates=self.templates,
        )  # fmt: skip
        tuner = Tuner(base, self.where, lr=self.lr, rank=self.rank, rng=rng)
        student = tuner.student
        prompts = base.embed(ConceptPrompts.of(erase, self.templates).prompts)
        latents = walks(
            student if self.source == "edited" else base, prompts, search, rng,
            batch=self.batch, reuse=self.reuse, steps=self.sampler_steps, guidance=self.guidance,
        )  # fmt: skip
        log.recipe = self.recipe(base, erase, preserve) + repr(vocabulary)
        for step in log.steps([tuner, search], self.steps, every=self.reuse * -(-25 // self.reuse)):
            search.note(step)
            x, x_found, t, picked, noise = next(latents)
            cond, found = prompts[picked], search.found(picked, noise)
            with torch.set_grad_enabled(self.frozen_gradient):
                e_found, e_kept = base.predict(x, t, found), base.predict(x_found, t, found)
            goal = e_found.detach()
            if self.eta:
                with torch.no_grad():
                    goal = goal - self.eta * (base.predict(x, t, cond) - goal)
            e_now, e_still = student.predict(x, t, cond), student.predict(x_found, t, found)
            hurt = self.apart(base, x_found, t, e_still, e_kept)
            search.ascend(self.away * self.apart(base, x, t, e_now, e_found) + self.keep * hurt)
            loss = self.apart(base, x, t, e_now, goal) + self.keep * hurt
            tuner.step(loss)
            log.loss(loss.detach())
        edit = tuner.edit()
        edit.header = Header("", notes=search.notes())
        return edit

    def apart(self, base: Denoiser, x: Tensor, t: Tensor, a: Tensor, b: Tensor) -> Tensor:
        """Mean square between two predictions, or between the clean latents that they imply."""
        if self.space == "x0":
            a, b = base.to_x0(x, t, a), base.to_x0(x, t, b)
        return (a - b).square().mean()
