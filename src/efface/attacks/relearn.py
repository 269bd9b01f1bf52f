"""Relearning: fine-tunes the edited model on a few pictures and asks after how many steps the concept is back.

Paper:   Suriyakumar et al. 2024 (Unstable Unlearning, arXiv:2410.08074), Pan et al. 2024 (Leveraging Catastrophic Forgetting /
         Safety Alignment Backfires, arXiv:2412.00357), Li et al. 2025 (ResAlign, arXiv:2507.16302).
Idea:    Usual training, E |ε - ε*(z_t, t, c)|², on pictures of the concept (malicious), of its neighbours or of other things (benign: the
         owner means no harm), with LoRA or on all weights, for a grid of learning rates; the model after 10, 30, 100, … calls is judged.
Names:   rank of the LoRA, 0 for all weights; batch of a step; merged: LoRA trained on the unedited model and then added to the edited one.
Differs: Pictures are the unedited model's. The control (preset control) learns the concept's pictures upside down with equal steps, which
         the model never knew, and turns them back before they are judged: what comes back sooner was still there.
Cost:    3 calls of the denoiser for each picture of a step; the budget is shared by the learning rates.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Generator
from torch.nn.functional import mse_loss
from typing_extensions import override  # in typing from Python 3.12

from efface.attacks.base import Attack, Goal, marks
from efface.core.attempt import Attempt
from efface.core.denoiser import Denoiser
from efface.core.meter import GRADIENT
from efface.core.params import param
from efface.core.train import NotFinite, Tuner

RATES = {"LoRA": (1e-3, 3e-3), "weights": (1e-5, 1e-4)}


@dataclass(frozen=True, kw_only=True)
class Relearn(Attack):
    """Fine-tuning on a few pictures."""

    access = "weights"
    gives = "weights"
    gradients = True
    uses = ("targets", "turned_targets", "neighbour_targets", "other_targets")
    presets = {  # noqa: RUF012
        "full": {"rank": 0}, "neighbours": {"pictures": "neighbours"}, "others": {"pictures": "others"}, "merged": {"merged": True},
        "control": {"pictures": "upside down"},
    }  # fmt: skip
    pictures: Literal["concept", "neighbours", "others", "upside down"] = param(
        "concept", "what is shown in the pictures"
    )
    rank: int = param(8, "rank of the LoRA; 0 trains all weights of the denoiser", at_least=0)
    batch: int = param(4, "pictures of a step", at_least=1)
    merged: bool = param(False, "train a LoRA of the unedited model and add it to the edited one")

    @override
    def applies(self, model: Denoiser, goal: Goal) -> str:
        words = {"neighbours": goal.neighbours, "others": goal.others}.get(self.pictures, ("",))
        return "" if words else f"needs pictures of {self.pictures}, and the task names none"

    @override
    def run(self, model: Denoiser, goal: Goal, calls: int, rng: Generator) -> Iterator[Sequence[Attempt]]:
        prompts, pictures = {
            "concept": (goal.prompts, goal.targets), "upside down": (goal.prompts, goal.turned_targets),
            "neighbours": (goal.instead(goal.neighbours), goal.neighbour_targets),
            "others": (goal.instead(goal.others), goal.other_targets),
        }[self.pictures]  # fmt: skip
        trained, kind = goal.base if self.merged else model, "LoRA" if self.rank else "weights"
        x0 = pictures.flatten(0, 1).to(model.device)
        cond = trained.embed([p for p in prompts for _ in goal.seeds])
        share = calls // len(RATES[kind])
        for rate in RATES[kind]:
            tuner, label = Tuner(trained, "denoiser", lr=rate, rank=self.rank, rng=rng), f"{kind}, rate {rate:g}"
            yield self.attempts(goal, label)
            per_step, step = GRADIENT * self.batch / len(goal.prompts), 0  # calls for each prompt
            for mark in marks(share):
                try:
                    while (step + 1) * per_step <= mark:
                        i = torch.randint(len(x0), (self.batch,), generator=rng)
                        t = torch.randint(len(model.schedule), (self.batch,), generator=rng).to(model.device)
                        eps = torch.randn(self.batch, *model.latent_shape, generator=rng).to(model.device)
                        seen = tuner.student.add_noise(x0[i], t, eps)
                        found = tuner.student.predict(seen, t, cond[i])
                        tuner.step(mse_loss(found.float(), tuner.student.native(x0[i], t, eps).float()))
                        step += 1
                except NotFinite:
                    break
                if step:
                    yield self.attempts(goal, label, tuner, step)

    def attempts(self, goal: Goal, label: str, tuner: Tuner | None = None, steps: int = 0) -> list[Attempt]:
        """The prompts with the weights of this step."""
        edit = tuner.edit() if tuner else None
        turned = self.pictures == "upside down"
        return [
            Attempt("relearn", label, prompt=p, edit=edit, turned=turned, about={"steps": steps}) for p in goal.prompts
        ]
