"""Prompts for concepts: each concept's prompts, their targets and contexts, as text and as embeddings."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from efface.core.concept import Concept, article
from efface.core.cond import Cond
from efface.core.denoiser import Denoiser

# Prompt templates of each kind: {0} the name, {1} the name with its article: the embedding of a name differs after "a".
TEMPLATES = {
    "object": ("{0}", "{1}", "a picture of {1}"),
    "style": ("{0}", "{0} style", "a picture in {0} style"),
    "person": ("{0}", "a picture of {0}"),
}
SUBJECTS = ("dog", "house", "flower", "car")  # things in the prompts for a style


@dataclass(frozen=True)
class EmbeddedPrompts:
    """`ConceptPrompts` encoded by the text encoder; the fields have one entry for each prompt."""

    prompts: Cond
    targets: Cond
    contexts: Cond
    owners: Int[Tensor, "n"]
    prefix_lengths: Int[
        Tensor, "n k"
    ]  # tokens before the name, for each of the k tokenizers whose rows the denoiser reads
    targeted: bool  # whether any target differs from its context


@dataclass(frozen=True)
class ConceptPrompts:
    """Prompts that name concepts. The fields have one entry for each prompt, concept after concept.

    Attributes:
        prompts: prompts with the concept: "a picture of a tiger", "a dog in noto style".
        targets: the same prompts with the target: "a picture of a cat"; the contexts if there is no target.
        contexts: the prompts without the concept: "a dog" for "a dog in noto style", else "".
        prefixes: the text before the concept's name: "a picture of a ".
        names: the concept's name in each prompt.
        owners: the concept's index.
    """

    prompts: tuple[str, ...]
    targets: tuple[str, ...]
    contexts: tuple[str, ...]
    prefixes: tuple[str, ...]
    names: tuple[str, ...]
    owners: tuple[int, ...]

    @classmethod
    def of(cls, concepts: Iterable[Concept], templates: bool = True, subjects: bool = True) -> "ConceptPrompts":
        """The prompts of each concept, for each of its names.

        Args:
            concepts: the concepts.
            templates: use the templates of each concept's kind; else the bare names only.
            subjects: add prompts that apply a style to a few things ("a dog in noto style").
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
        """The prompts, targets and contexts as the text encoder encodes them."""
        prefixes = _embed(base, self.prefixes)
        return EmbeddedPrompts(
            _embed(base, self.prompts), _embed(base, self.targets), _embed(base, self.contexts),
            torch.tensor(self.owners), torch.stack([s.counts.cpu() for s in prefixes.segments], 1), self.targets != self.contexts,
        )  # fmt: skip


def kept_prompts(preserve: Iterable[Concept], templates: bool = True) -> list[str]:
    """Prompts for preserved concepts; without the unconditional prompt."""
    return list(ConceptPrompts.of(preserve, templates, subjects=False).prompts)


def targets_in_names(erase: Iterable[Concept]) -> tuple[Concept, ...]:
    """Targets that stand inside the names they replace ("car" of "police car"): to be kept, since an edit of the name moves them too."""
    found = {}
    for c in erase:
        words = iter(c.name.lower().split())
        if c.target.strip() and all(word in words for word in c.target.lower().split()):  # in their order
            found[c.target] = Concept(c.target, kind=c.kind)
    return tuple(found.values())


def everyday_prompts(base: Denoiser, n: int, *besides: ConceptPrompts) -> list[str]:
    """The tokenizer's `n` most frequent words that occur in none of these prompts and targets, each bare and with its article."""
    return base.everyday(n, [text for given in besides for text in (*given.prompts, *given.targets)])


def negative_guidance_target(
    base: Denoiser,
    x: Float[Tensor, "b c h w"],
    t: Shaped[Tensor, "b"],
    e_cond: Float[Tensor, "b c h w"],
    embedded: EmbeddedPrompts,
    picked: Int[Tensor, "b"],
    eta: float,
) -> Float[Tensor, "b c h w"]:
    """ESD's training target for the concept's prompts: e(target) - η (e(concept) - e(context)); eq. 7 if target and context are "".

    Args:
        base: the frozen model.
        x: noisy latents.
        t: their noise levels.
        e_cond: the prediction of `base` for the concept's prompts, `embedded.prompts[picked]`.
        embedded: the concepts' prompts.
        picked: index of each latent's prompt.
        eta: η, strength of the negative guidance.
    """
    e_context = base.predict(x, t, embedded.contexts[picked])
    e_target = base.predict(x, t, embedded.targets[picked]) if embedded.targeted else e_context
    return e_target - eta * (e_cond - e_context)


def _templates(kind: str, subjects: bool) -> list[tuple[str, str]]:
    """Templates, the bare name first, each with its context."""
    carried = [(f"a {thing} in {{0}} style", f"a {thing}") for thing in SUBJECTS if subjects and kind == "style"]
    return [(template, "") for template in TEMPLATES.get(kind, TEMPLATES["object"])] + carried


def _embed(base: Denoiser, texts: Sequence[str]) -> Cond:
    """Embeds equal texts once: a thousand concepts without a target have the same target."""
    place = {text: i for i, text in enumerate(dict.fromkeys(texts))}
    return base.embed(list(place))[[place[text] for text in texts]]
