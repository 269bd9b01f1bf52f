"""UnlearnDiffAtk: the simplex, where tokens go, and that its words make the concept's pictures likelier."""

import pytest
import torch
from attacks.goals import erased, goal
from toys import tiny

from efface.attacks.parts.losses import Bank, denoising_error
from efface.attacks.unlearndiffatk import UnlearnDiffAtk, simplex
from efface.core.errors import UsageError


def test_the_simplex_projection_against_bisection() -> None:
    x = torch.randn(5, 2, 30, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = simplex(x)
    for row, got in zip(x.flatten(0, 1), found.flatten(0, 1), strict=True):
        low, high = float(row.min()) - 1, float(row.max())
        for _ in range(100):  # Σ max(x - μ, 0) = 1
            middle = (low + high) / 2
            low, high = (middle, high) if float((row - middle).clamp(min=0).sum()) > 1 else (low, middle)
        assert torch.allclose(got, (row - low).clamp(min=0), atol=1e-9)
    assert torch.allclose(simplex(torch.tensor([[0.2, 0.3, 0.5]])), torch.tensor([[0.2, 0.3, 0.5]]))


@pytest.mark.parametrize("where", ["prefix", "suffix"])
def test_tokens_stand_before_or_after_the_prompt(where: str) -> None:
    model = tiny()
    picked = torch.tensor([ids for row in model.embed(["king lion", "lion cat"]).word_ids() for ids in row])
    texts = (
        ["king lion a tiger", "lion cat a red tiger"]
        if where == "prefix"
        else ["a tiger king lion", "a red tiger lion cat"]
    )
    found = UnlearnDiffAtk(tokens=2, where=where).slots(model, ["a tiger", "a red tiger"]).filled(picked)
    wanted = model.tokenize(texts)
    for name in ("ids", "mask", "words"):
        assert torch.equal(getattr(found, name), getattr(wanted, name))


@pytest.mark.parametrize("settings", [{}, {"where": "suffix"}, {"order": "sequential", "draws": 1}])
def test_its_words_make_the_concepts_pictures_likelier_within_the_budget(settings: dict) -> None:
    base = tiny()
    edit = erased(base)
    model, own = edit(base), goal(base, edit=edit)
    found = UnlearnDiffAtk(every=1, judged=8, rate=0.1, **settings).find(model, own, 300)
    assert 0 < found.calls <= 300 * len(own.prompts)
    texts = [a.prompt for a in found.attempts[""][max(found.attempts[""])]]
    for text, prompt in zip(texts, own.prompts, strict=True):
        assert text.endswith(prompt) if settings.get("where") != "suffix" else text.startswith(prompt)
    bank = Bank.of(model, 64, len(own.seeds), torch.Generator().manual_seed(9))  # draws that the search did not see
    with torch.no_grad():
        before, after = (
            denoising_error(model, own.targets, model.embed(t), bank, 3.0).mean() for t in (own.prompts, texts)
        )
    assert after < before
    again = UnlearnDiffAtk(every=1, judged=8, rate=0.1, **settings).find(model, own, 300)
    assert [a.prompt for a in again.attempts[""][max(again.attempts[""])]] == texts


def test_a_prompt_without_room_is_refused() -> None:
    base = tiny()
    with pytest.raises(UsageError, match="needs room for 60 more tokens in each prompt"):
        UnlearnDiffAtk(tokens=60).find(base, goal(base, prompts=("a red tiger " * 8,)), 10)
