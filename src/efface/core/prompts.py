"""Concepts as prompts: which prompts say a concept, what each shall become, and both as the text encoder reads them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from efface.core.concept import Concept, article
from efface.core.cond import Cond
from efface.core.denoiser import Denoiser

# Prompt templates of each kind: {0} the words, {1} the words with their article. A word means something else after "a".
TEMPLATES = {
    "object": ("{0}", "{1}", "a picture of {1}"),
    "style": ("{0}", "{0} style", "a picture in {0} style"),
    "person": ("{0}", "a picture of {0}"),
}
SUBJECTS = ("dog", "house", "flower", "car")  # what a style may be said of


@dataclass(frozen=True)
class EmbeddedPrompts:
    """`ConceptPrompts` as the text encoder reads them, one row each. Of owners and lengths see there."""

    prompts: Cond
    targets: Cond
    contexts: Cond
    owners: Int[Tensor, "n"]
    prefix_lengths: Int[Tensor, "n"]
    targeted: bool  # whether any target is more than its context


@dataclass(frozen=True)
class ConceptPrompts:
    """Every prompt that says one of some concepts. The fields have one entry for each prompt, concept after concept.

    Attributes:
        prompts: say the concept: "a picture of a tiger", "a dog in noto style".
        targets: say its target in the same words: "a picture of a cat"; without a target they are the contexts.
        contexts: what the prompts say besides the concept: "a dog" where a style is said of one, else "".
        prefixes: what the prompts say before the concept's own words: "a picture of a ".
        names: the concept's own words in each prompt.
        owners: index of the concept.
    """

    prompts: tuple[str, ...]
    targets: tuple[str, ...]
    contexts: tuple[str, ...]
    prefixes: tuple[str, ...]
    names: tuple[str, ...]
    owners: tuple[int, ...]

    @classmethod
    def of(cls, concepts: Iterable[Concept], templates: bool = True, subjects: bool = True) -> "ConceptPrompts":
        """Each concept by every one of its names, bare or, with `templates`, in those of its kind.

        With `subjects` a style is also said of a few things ("a dog in noto style"): those prompts say more than the concept.
        """
        rows = [
            (
                template.format(name, article(name)),
                template.format(c.target, article(c.target)) if c.target.strip() else context,
                context,
                template.partition("{")[0] + article(name).removesuffix(name) * ("{1}" in template),
                name,
                i,
            )
            for i, c in enumerate(concepts)
            for name in c.phrases
            for template, context in _templates(c.kind, subjects)[: None if templates else 1]
        ]
        return cls(*zip(*rows, strict=True)) if rows else cls((), (), (), (), (), ())

    def embed(self, base: Denoiser) -> EmbeddedPrompts:
        """The same as the text encoder reads it."""
        lengths = _embed(base, self.prefixes).mask.sum(1) - 2  # without start and end
        return EmbeddedPrompts(
            _embed(base, self.prompts), _embed(base, self.targets), _embed(base, self.contexts),
            torch.tensor(self.owners), lengths.cpu(), self.targets != self.contexts,
        )  # fmt: skip


def kept_prompts(preserve: Iterable[Concept], templates: bool = True) -> list[str]:
    """Prompts that say what is preserved; the unconditional prompt is not among them."""
    return list(ConceptPrompts.of(preserve, templates, subjects=False).prompts)


def everyday_prompts(base: Denoiser, n: int, *besides: ConceptPrompts) -> list[str]:
    """The text encoder's `n` most frequent words that none of these prompts or targets says, each bare and with its article."""
    return base.everyday(n, [text for said in besides for text in (*said.prompts, *said.targets)])


def negative_guidance_target(
    base: Denoiser,
    x: Float[Tensor, "b c h w"],
    t: Int[Tensor, "b"],
    e_cond: Float[Tensor, "b c h w"],
    embedded: EmbeddedPrompts,
    picked: Int[Tensor, "b"],
    eta: float,
) -> Float[Tensor, "b c h w"]:
    """What ESD trains the concept's prompts to predict: e(target) - η (e(concept) - e(context)), eq. 7 where neither says anything.

    Args:
        base: the frozen model.
        x: noisy latents.
        t: their noise levels.
        e_cond: what `base` predicts for the concept's prompts, `embedded.prompts[picked]`.
        embedded: the concepts' prompts.
        picked: which of them each latent is of.
        eta: η, how far past the target the concept is pushed.
    """
    e_context = base.predict(x, t, embedded.contexts[picked])
    e_target = base.predict(x, t, embedded.targets[picked]) if embedded.targeted else e_context
    return e_target - eta * (e_cond - e_context)


def _templates(kind: str, subjects: bool) -> list[tuple[str, str]]:
    """Templates, the bare name first, each with what it says besides the concept."""
    carried = [(f"a {thing} in {{0}} style", f"a {thing}") for thing in SUBJECTS if subjects and kind == "style"]
    return [(template, "") for template in TEMPLATES.get(kind, TEMPLATES["object"])] + carried


def _embed(base: Denoiser, texts: Sequence[str]) -> Cond:
    """Embeds equal texts once: of a thousand concepts without a target, all targets are the same."""
    place = {text: i for i, text in enumerate(dict.fromkeys(texts))}
    return base.embed(list(place))[[place[text] for text in texts]]
