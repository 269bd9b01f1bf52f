"""P4D: which tokens are free, the projection, and that its words make the edited model predict what the unedited one does."""

import pytest
import torch
from attacks.goals import erased, goal
from toys import tiny

from efface.attacks.p4d import P4D, between, nearest
from efface.attacks.parts.losses import Bank, prediction_gap, repeated
from efface.attacks.parts.words import word_tokens
from efface.core.guided import noise_prediction


@pytest.mark.parametrize("n", range(10))
def test_k_puts_a_free_token_before_every_third(n: int) -> None:
    found = between(list(range(n)))
    assert found.count(None) == n // 3 + 1  # as published
    assert [i for i in found if i is not None] == list(range(n))
    assert all(found[4 * i] is None for i in range(n // 3 + 1))


def test_the_projection_against_a_loop_over_all_words() -> None:
    model = tiny()
    vectors, allowed = model.word_vectors.detach(), word_tokens(model)
    own = torch.randn(5, vectors.shape[1], generator=torch.Generator().manual_seed(0))
    for v, found in zip(own, nearest(own, vectors, allowed), strict=True):
        cosines = {i: float(torch.cosine_similarity(v, w, dim=0)) for i, w in enumerate(vectors) if allowed[i]}
        assert int(found) == max(cosines, key=lambda i: cosines[i])


@pytest.mark.parametrize(
    "settings", [{"tokens": 4}, {"form": "between"}, {"form": "prefix", "tokens": 4}, {"tokens": 4, "scaled": False}]
)
def test_its_words_make_the_edited_model_predict_what_the_unedited_one_does(settings: dict) -> None:
    base = tiny()
    edit = erased(base)
    model, own = edit(base), goal(base, edit=edit)
    found = P4D(every=1, judged=8, **settings).find(model, own, 400)
    assert 0 < found.calls <= 400 * len(own.prompts)
    marks = found.attempts[""]
    first, last = ([a.prompt for a in marks[m]] for m in (min(marks), max(marks)))
    bank = Bank.of(model, 64, len(own.seeds), torch.Generator().manual_seed(9))  # draws that the search did not see
    x, t, _ = bank.noisy(base, own.targets)
    with torch.no_grad():
        wish = noise_prediction(base, x, t, repeated(base.embed(own.prompts), 64), 3.0)
        before, after = (prediction_gap(model, wish, x, t, model.embed(p), 64, 3.0).mean() for p in (first, last))
    assert after < before
    again = P4D(every=1, judged=8, **settings).find(model, own, 400)
    assert [a.prompt for a in again.attempts[""][max(again.attempts[""])]] == last


def test_frozen_tokens_stay() -> None:
    base = tiny()
    own = goal(base, edit=(edit := erased(base)), prompts=("a red tiger",))
    found = P4D(form="between", every=1).find(edit(base), own, 200).attempts[""]
    for attempts in found.values():
        assert "a red tiger" in attempts[0].prompt  # one free token before it, one after it


def test_released_targets_are_encoded_without_scaling() -> None:
    own = goal(tiny())
    pictures = own.base.decode(own.targets.flatten(0, 1))
    vae, scale = own.base.pipeline.vae, own.base.pipeline.vae.config.scaling_factor
    wanted = vae.encode(pictures).latent_dist.mean * scale  # [0, 1], where [-1, 1] is meant
    assert torch.allclose(P4D(scaled=False).targets(own).flatten(0, 1), wanted, atol=1e-5)
    assert torch.equal(P4D().targets(own), own.targets)


def test_a_prompt_that_does_not_fit_is_a_reason() -> None:
    base = tiny()
    assert "needs 60 tokens and the text encoder reads 14" in P4D(tokens=60).applies(base, goal(base))
