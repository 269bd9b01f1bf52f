"""Soft prompts: the projection, the ball, and what a step does to the error."""

import pytest
import torch
from attacks.goals import erased, goal
from toys import tiny

from efface.attacks.parts.losses import Bank, denoising_error
from efface.attacks.soft import Soft


def test_evasion_tells_gates_that_the_prompt_is_empty_and_gives_the_prompts_own_rows() -> None:
    base = tiny()
    own = goal(base)
    found = Soft(evasion=True, judged=1, every=10).find(base, own, 30).attempts[""]
    plain, nothing = base.embed(own.prompts), base.embed([""])
    for i, attempt in enumerate(found[min(found)]):
        assert attempt.rows is not None
        assert attempt.rows.word_ids() == [[]]
        assert torch.equal(attempt.rows.ids, nothing.ids)
        assert torch.equal(attempt.rows.tokens[0], plain.tokens[i])


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_the_projection_is_the_nearest_point_of_the_ball(norm: str) -> None:
    rng = torch.Generator().manual_seed(0)
    delta, limit = torch.randn(2, 3, 4, generator=rng), torch.full((2, 3, 1), 0.7)
    found = Soft(norm=norm).projected(delta, limit)
    size = found.norm(dim=-1) if norm == "l2" else found.abs().amax(-1)
    assert (size <= 0.7 + 1e-6).all()
    near = (found - delta).norm(dim=-1)
    for _ in range(200):  # no other point of the ball is nearer
        other = torch.randn(2, 3, 4, generator=rng)
        other = 0.7 * other / (other.norm(dim=-1, keepdim=True) if norm == "l2" else other.abs().amax(-1, keepdim=True))
        assert (near <= (other - delta).norm(dim=-1) + 1e-6).all()


@pytest.mark.parametrize("settings", [{}, {"norm": "linf", "radius": 0.5}, {"universal": True}, {"control": True}])
def test_the_rows_stay_in_the_ball_and_denoise_the_concept_better(settings: dict) -> None:
    base = tiny()
    edit = erased(base)
    model, own = edit(base), goal(base, edit=edit)
    attack = Soft(draws=2, judged=8, every=2, **settings)
    found = attack.find(model, own, 120)
    assert 0 < found.calls <= 120 * len(own.prompts)
    cond, last = model.embed(own.prompts), max(found.attempts[""])
    for i, attempt in enumerate(found.attempts[""][last]):
        assert attempt.rows is not None
        moved = (attempt.rows.tokens - cond.tokens[[i]])[0]
        row = cond.tokens[i].norm(dim=-1)
        size = moved.norm(dim=-1) if attack.norm == "l2" else moved.abs().amax(-1) * moved.shape[-1] ** 0.5
        assert (size <= attack.radius * row * (1 + 1e-4)).all()
        assert size[0] == 0  # the start token
        assert size.max() > 0
    targets = own.turned_targets if attack.control else own.targets
    assert all(a.turned == attack.control for a in found.attempts[""][last])
    bank = Bank.of(model, 64, len(own.seeds), torch.Generator().manual_seed(9))  # draws that the search did not see
    rows = torch.cat([a.rows.tokens for a in found.attempts[""][last] if a.rows is not None])
    with torch.no_grad():
        before, after = (
            denoising_error(model, targets, type(cond)(t, cond.ids, cond.mask, cond.words), bank, 3.0).mean()
            for t in (cond.tokens, rows)
        )
    assert after < before
