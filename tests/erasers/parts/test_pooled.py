"""The map of the pooled vector: UCE's normal equations, solved densely; and what it does to the prompts it is about."""

import families
import pytest
import torch

from efface.core.concept import Concept
from efface.core.denoiser import Denoiser
from efface.core.prompts import ConceptPrompts, everyday_prompts, kept_prompts
from efface.erasers.parts.pooled import EVERYDAY, RIDGE, only_pooled, pooled_map


@pytest.fixture(scope="module")
def model() -> Denoiser:
    return Denoiser(families.sd3(t5=False))


def test_it_minimises_what_uce_minimises_over_pooled_vectors(model: Denoiser) -> None:
    prompts, kept = ConceptPrompts.of([Concept("tiger", "cat")], templates=True), [Concept("lion"), Concept("car")]
    factors = pooled_map(model, prompts, kept)
    assert factors is not None
    left, right = factors
    c, g, p, e = (
        model.embed(texts).vector.double()
        for texts in (
            prompts.prompts,
            prompts.targets,
            [*kept_prompts(kept), ""],
            everyday_prompts(model, EVERYDAY, prompts),
        )
    )
    d = c.shape[1]
    moment = e.T @ e
    metric = 0.9 * moment * d / moment.trace() + 0.1 * torch.eye(d, dtype=torch.float64)
    ridge = RIDGE * (p.square().sum() + c.square().sum()) / d
    # T (Σ c cᵀ + Σ p pᵀ + λ R) = Σ g cᵀ + Σ p pᵀ + λ R
    expected = torch.linalg.solve(c.T @ c + p.T @ p + ridge * metric, (g.T @ c + p.T @ p + ridge * metric).T).T
    torch.testing.assert_close(torch.eye(d, dtype=torch.float64) + left @ right.T, expected, atol=1e-6, rtol=1e-6)


def test_it_moves_the_concept_to_its_target_and_keeps_the_rest(model: Denoiser) -> None:
    edit = only_pooled(model, [Concept("tiger", "cat")], [Concept("lion")])
    assert edit is not None
    assert not edit.left.any()
    assert edit.pooled is not None
    left, right = edit.pooled
    tiger, cat, lion = (model.embed([w]).vector[0] for w in ("tiger", "cat", "lion"))

    def mapped(v: torch.Tensor) -> torch.Tensor:
        return v + left @ (right.T @ v)

    assert float((mapped(tiger) - cat).norm() / (tiger - cat).norm()) < 0.5
    assert float((mapped(lion) - lion).norm() / lion.norm()) < 0.2


def test_where_no_pooled_vector_is_read_there_is_nothing_to_map(base: Denoiser) -> None:
    assert pooled_map(base, ConceptPrompts.of([Concept("tiger")], templates=True), ()) is None
    assert only_pooled(base, [Concept("tiger")], ()) is None
