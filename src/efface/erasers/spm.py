"""SPM: rank-1 adapters (membranes) on the denoiser's layers, gated by how similar the prompt is to the concept.

Paper:   Lyu et al., "One-dimensional Adapter to Rule Them All", CVPR 2024, arXiv:2312.16145.
Idea:    Add γ up (down x) of rank 1 at each layer of the transformers. With γ = 1 it is trained to predict what the model's own negative
         guidance predicts, and to leave other prompts a, its anchors, unchanged:
             L = |e_M(x_t, c, t) - (e(x_t, ∅, t) - η (e(x_t, c, t) - e(x_t, ∅, t)))|² + λ |e_M(x_t, a, t) - e(x_t, a, t)|²
         While sampling γ is the prompt's similarity to the concept; membranes of several concepts, or edits, add up.
Names:   eta = η, anchoring = λ (`la_strength`), anchors = latent anchoring's c~, gate = facilitated transport, everyday, alpha = α.
Differs: The code multiplies both up and down by γ and sums each: γ², and cross terms of several concepts. Ours multiplies once. The
         code's cosine of flattened embeddings is high for every prompt, since start and padding are alike (Moji's tiger: "" 0.93, a bus
         0.89); ours subtracts the embeddings of "" and squares (lion 0.14, bus 0.06, "" 0, so the unconditional prediction is the
         base's). The paper samples anchors by (1 - |sim|)^α; in the code they are white noise, which it hardly ever rejects, and half
         are ""; ours are everyday words by (1 - γ)^α and as many preserved concepts. Latents are the base's, `reuse` steps of `batch`
         latents share a trajectory, a target replaces ∅, each latent trains its own concept's membrane. `down` starts as N(0, 1/n), √3
         times the released. Preset "released" has that code's gate, anchors, latents and numbers, but a constant learning rate, no weight
         decay, and trajectories sampled with the gate; the code's latents are 33 to 42 noise levels cleaner than the level it gives the
         model, and it leaves out pure noise (k = 0).
Cost:    Some 80 seconds of CPU a concept for Moji; a file of 0.2 MB; sampling takes a fifth longer.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Generator, Tensor
from torch.nn.functional import one_hot
from typing_extensions import override  # in typing from Python 3.12

from efface.core.branches.membranes import Membranes, Rule, gate
from efface.core.concept import Concept
from efface.core.denoiser import Cond, Denoiser
from efface.core.edit import Adapter
from efface.core.log import Log
from efface.core.params import param
from efface.core.prompts import ConceptPrompts, everyday_prompts, negative_guidance_target
from efface.core.train import Learner
from efface.core.walk import walk
from efface.erasers.base import Eraser


@dataclass(frozen=True, kw_only=True)
class SPM(Eraser):
    """Train a rank-1 adapter for each concept, gated by the prompt."""

    eta: float = param(1.5, "η, strength of the negative guidance away from the concept", at_least=0)
    anchoring: float = param(3.0, "λ, weight of preserving the anchors' predictions", at_least=0)
    anchors: int = param(1, "anchors for each latent", at_least=1)
    around: Literal["words", "noise"] = param(
        "words", "anchors: frequent words and preserved concepts, or white noise and '' in turn"
    )
    everyday: int = param(200, "frequent words among the anchors", at_least=1)
    alpha: float = param(1.0, "α, how strongly words similar to the concept are avoided as anchors", at_least=0)
    gate: Rule = param("centred", "how the gate is computed from the prompt")
    steps: int = param(75, "training steps for each concept", at_least=0)
    lr: float = param(5e-3, "Adam's learning rate", above=0)
    batch: int = param(8, "noisy latents in a step", at_least=1)
    source: Literal["base", "edited"] = param("base", "model that samples the latents")
    reuse: int = param(25, "steps that share the sampled trajectories", at_least=1)
    sampler_steps: int = param(25, "DDIM steps of a trajectory", at_least=2)
    guidance: float = param(3.0, "guidance scale of a trajectory", at_least=1)
    templates: bool = param(True, "also use prompt templates, not only the bare name")

    makes: ClassVar = (Adapter,)
    needs: ClassVar = frozenset({"drawing"})
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "released": {
            "eta": 1.0, "anchoring": 1000.0, "anchors": 4, "around": "noise", "gate": "released", "steps": 3000, "lr": 1e-4, "batch": 1,
            "source": "edited", "reuse": 1, "sampler_steps": 30, "templates": False,
        },
    }  # fmt: skip

    @override
    def run(
        self, base: Denoiser, erase: tuple[Concept, ...], preserve: tuple[Concept, ...], rng: Generator, log: Log
    ) -> Adapter:
        membranes = Membranes.shut(base, [c.phrases for c in erase], self.gate, rng)
        learner = Learner(membranes.tensors, lr=self.lr, rng=rng)
        student, used = base.fork(()), base.fork(())
        used.branches, opened = (*base.branches, membranes.bind(base)), membranes.opener(base)
        embedded = ConceptPrompts.of(erase, self.templates).embed(base)
        pool, odds = self.pool(base, erase, preserve)
        null = base.embed([""])
        latents = walk(
            used if self.source == "edited" else base, embedded.prompts, rng,
            batch=self.batch, reuse=self.reuse, steps=self.sampler_steps, guidance=self.guidance,
        )  # fmt: skip
        log.recipe = self.recipe(base, erase, preserve)
        for _ in log.steps(learner, self.steps * len(erase), every=self.reuse * -(-25 // self.reuse)):
            x, t, picked = next(latents)
            cond, owner = embedded.prompts[picked], embedded.owners[picked]
            xs, ts = x.repeat(self.anchors, 1, 1, 1), t.repeat(self.anchors)
            if self.around == "noise":
                anchors = white(embedded.prompts[picked.repeat(self.anchors)], null, rng)
            else:
                anchors = pool[torch.multinomial(odds[owner.repeat(self.anchors)], 1, generator=rng)[:, 0]]
            with torch.no_grad():
                e_cond = base.predict(x, t, cond)
                goal = negative_guidance_target(base, x, t, e_cond, embedded, picked, self.eta)
                still = base.predict(xs, ts, anchors)
            gamma = one_hot(owner.repeat(1 + self.anchors), len(erase)).float()
            student.branches = (*base.branches, opened(gamma))
            now = student.predict(torch.cat([x, xs]), torch.cat([t, ts]), cond + anchors)
            off = (now - torch.cat([goal, still])).square().flatten(1).mean(1)
            loss = off[: len(x)].mean() + self.anchoring * off[len(x) :].mean()
            learner.step(loss)
            log.loss(loss.detach())
        return Adapter(membranes)

    def pool(self, base: Denoiser, erase: tuple[Concept, ...], preserve: tuple[Concept, ...]) -> tuple[Cond, Tensor]:
        """Anchors and their sampling weights for each concept: (1 - γ)^α for everyday words, and the same total for preserved concepts."""
        everyday = everyday_prompts(base, self.everyday, ConceptPrompts.of(erase, self.templates))
        kept = ConceptPrompts.of(preserve, self.templates).prompts
        anchors = base.embed([*everyday, *kept])
        odds = (1 - gate(base, [c.phrases for c in erase], self.gate)(anchors).T.cpu()).pow(self.alpha)
        plain = odds[:, : len(anchors) - len(kept)]
        plain /= plain.sum(1, keepdim=True)
        odds[:, len(plain[0]) :] = 1 / max(len(kept), 1)
        return anchors, odds


def white(cond: Cond, null: Cond, rng: Generator) -> Cond:
    """White noise in place of a prompt's rows, of 0.8 to 1.2 times their norm, the rarer the more it is like them; every second is ""."""
    rows = []
    for real in cond.tokens:
        while True:
            noise = torch.randn(real.shape, generator=rng).to(real)
            like = torch.cosine_similarity(noise.flatten(), real.flatten(), 0)
            if torch.rand((), generator=rng) < 1 - like.cpu():
                break
        rows.append((0.8 + 0.4 * torch.rand((), generator=rng)).to(real) * real.norm() / noise.norm() * noise)
    tokens = torch.stack(rows)
    tokens[::2] = null.tokens
    return replace(cond, tokens=tokens)
