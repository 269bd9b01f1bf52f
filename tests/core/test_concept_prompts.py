"""Concepts as prompts: the texts word for word, what the text encoder makes of them, and ESD's goal against its equation."""

import dataclasses

import numpy as np
import pytest
import torch
from oracles import esd as oracle
from torch import Generator, Tensor

from efface.core.concept import Concept
from efface.core.denoiser import Denoiser
from efface.core.errors import UsageError
from efface.core.prompts import ConceptPrompts, everyday_prompts, kept_prompts, negative_guidance_target

TIGER, NOTO = Concept("tiger", "cat", prompts=("leopard",)), Concept("noto", kind="style")


def pairs(concept: Concept, templates: bool = True, subjects: bool = False) -> list[tuple[str, str]]:
    said = ConceptPrompts.of([concept], templates, subjects)
    return list(zip(said.prompts, said.targets, strict=True))


# -- texts ---------------------------------------------------------------------------------------------------------


def test_prompts_say_concept_and_target_in_the_same_words() -> None:
    assert pairs(Concept("owl", "cat")) == [
        ("owl", "cat"),
        ("an owl", "a cat"),
        ("a picture of an owl", "a picture of a cat"),
    ]
    assert pairs(Concept("owl", "cat"), templates=False) == [("owl", "cat")]
    assert pairs(NOTO)[2] == ("a picture in noto style", "")
    assert len(pairs(Concept("owl", prompts=("night bird",)))) == 6


def test_an_article_is_said_once() -> None:
    assert pairs(Concept("a tiger", "the cat"))[1:] == [
        ("a tiger", "the cat"),
        ("a picture of a tiger", "a picture of the cat"),
    ]
    assert pairs(Concept("owl", "ant"))[1] == ("an owl", "an ant")


def test_without_a_target_a_style_becomes_what_it_was_said_of() -> None:
    plain, aimed = (dict(pairs(Concept("noto", to, kind="style"), subjects=True)) for to in ("", "sketch"))
    assert (plain["noto"], plain["a dog in noto style"]) == ("", "a dog")
    assert aimed["a dog in noto style"] == "a dog in sketch style"


def test_each_prompt_has_its_context_prefix_name_and_owner() -> None:
    said = ConceptPrompts.of([TIGER, NOTO, Concept("Ada Lovelace", kind="person")])
    columns = [getattr(said, f.name) for f in dataclasses.fields(said)]
    assert len({len(column) for column in columns}) == 1
    rows = list(zip(*columns, strict=True))
    assert len(rows) == 6 + 7 + 2
    assert rows[2] == ("a picture of a tiger", "a picture of a cat", "", "a picture of a ", "tiger", 0)
    assert rows[4] == ("a leopard", "a cat", "", "a ", "leopard", 0)
    assert rows[7] == ("noto style", "", "", "", "noto", 1)
    assert rows[9] == ("a dog in noto style", "a dog", "a dog", "a dog in ", "noto", 1)
    assert rows[14] == ("a picture of Ada Lovelace", "", "", "a picture of ", "Ada Lovelace", 2)
    for prompt, _, _, prefix, name, _ in rows:
        assert prompt.startswith(prefix + name)


@pytest.mark.parametrize("name", ["st", "e", "style"])
def test_a_prefix_ends_before_the_name_where_the_template_says_the_same_letters(name: str) -> None:
    said = ConceptPrompts.of([Concept(name, kind="style")])
    assert said.prefixes[:3] == ("", "", "a picture in ")


def test_of_no_concept_there_is_no_prompt() -> None:
    assert ConceptPrompts.of([]).prompts == ()
    assert kept_prompts([]) == []


def test_what_is_kept_is_said_alone_and_in_templates() -> None:
    assert kept_prompts([Concept("lion"), NOTO]) == [
        "lion", "a lion", "a picture of a lion", "noto", "noto style", "a picture in noto style",
    ]  # fmt: skip
    assert kept_prompts([Concept("lion", prompts=("big cat",)), NOTO], templates=False) == ["lion", "big cat", "noto"]


# -- as the text encoder reads them --------------------------------------------------------------------------------


def test_embedded_they_are_the_texts_row_by_row(base: Denoiser) -> None:
    said = ConceptPrompts.of([TIGER, NOTO])
    embedded = said.embed(base)
    for texts, cond in (
        (said.prompts, embedded.prompts),
        (said.targets, embedded.targets),
        (said.contexts, embedded.contexts),
    ):
        alone = base.embed(texts)
        assert torch.equal(cond.ids, alone.ids)
        assert torch.equal(cond.mask, alone.mask)
        torch.testing.assert_close(cond.tokens, alone.tokens)
    assert embedded.owners.tolist() == [0] * 6 + [1] * 7
    assert embedded.targeted
    assert not ConceptPrompts.of([Concept("tiger"), NOTO]).embed(base).targeted


def test_a_prefix_is_as_long_as_its_tokens(base: Denoiser) -> None:
    said = ConceptPrompts.of([TIGER, NOTO])
    embedded = said.embed(base)
    for ids, name, length in zip(embedded.prompts.ids, said.names, embedded.prefix_lengths[:, 0].tolist(), strict=True):
        own = base.embed([name])
        inner = own.ids[0, 1 : int(own.mask.sum()) - 1]
        assert torch.equal(ids[1 + length : 1 + length + len(inner)], inner)


def test_equal_texts_are_embedded_once(base: Denoiser, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    embed = Denoiser.embed
    monkeypatch.setattr(Denoiser, "embed", lambda self, texts: (seen.extend(texts), embed(self, texts))[1])
    ConceptPrompts.of([Concept(name) for name in ("tiger", "lion", "car")]).embed(base)
    assert seen.count("") <= 3  # as target, as context, as prefix


def test_everyday_words_are_none_of_the_concepts(base: Denoiser) -> None:
    plain = base.embed(everyday_prompts(base, 12, ConceptPrompts.of([Concept("moon")], templates=False)))
    assert len(plain) == 24
    frequent = base.words(1)[0]
    besides = ConceptPrompts.of([Concept("moon", f"a {frequent.upper()}")], templates=False)
    changed = base.embed(everyday_prompts(base, 12, besides))
    assert torch.equal(base.embed([frequent]).ids[0], plain.ids[0])
    assert len(changed) == 24
    assert not any(torch.equal(base.embed([frequent]).ids[0], ids) for ids in changed.ids)
    several = everyday_prompts(base, 12, ConceptPrompts.of([TIGER]), ConceptPrompts.of([Concept("car", "boat")]))
    assert not {"tiger", "cat", "picture", "car", "boat"} & set(several)


# -- ESD's goal ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["", "cat"])
def test_the_goal_is_negative_guidance(base: Denoiser, target: str) -> None:
    embedded = ConceptPrompts.of([Concept("noto", target, kind="style")]).embed(base)
    picked = torch.tensor([0, 3, 5])  # bare, of a dog, of a flower
    x = torch.randn(3, *base.latent_shape, generator=Generator().manual_seed(0))
    t = torch.tensor([900, 500, 100])

    def predict(*texts: str) -> Tensor:
        with torch.no_grad():
            return base.predict(x, t, base.embed(texts))

    e_cond = predict("noto", "a dog in noto style", "a flower in noto style")
    e_context = predict("", "a dog", "a flower")
    e_target = predict("cat", "a dog in cat style", "a flower in cat style") if target else e_context
    with torch.no_grad():
        goal = negative_guidance_target(base, x, t, e_cond, embedded, picked, 1.7)
    torch.testing.assert_close(goal, e_target - 1.7 * (e_cond - e_context), atol=1e-5, rtol=1e-5)
    if not target:
        expected = oracle.goal(e_context.double().numpy(), e_cond.double().numpy(), 1.7)
        np.testing.assert_allclose(goal.double().numpy(), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("ti\u200bger", "expected visible characters, got U\\+200B in 'ti"),
        ("tiger\n", "got U\\+000A"),
        ("\ufefftiger", "got U\\+FEFF"),
        ("x" * 301, "expected at most 300 characters, got 301: 'xxx"),
    ],
)
def test_a_name_that_nobody_can_read_is_refused(name: str, sentence: str) -> None:
    for given in ({"name": name}, {"name": "owl", "target": name}, {"name": "owl", "prompts": (name,)}):
        with pytest.raises(UsageError, match=sentence):
            Concept(**given)


def test_one_name_has_one_spelling() -> None:
    assert Concept("cafe\u0301") == Concept("caf\u00e9")
    assert Concept("می\u200cخواهم").name == "می\u200cخواهم"  # a joiner is part of the word
