"""The closed form against three others: normal equations, least squares, and plain minimisation."""

import numpy as np
import pytest
import torch
from oracles import uce as oracle

from efface.core.linalg import gain, gram, text_map

D = 12


def problem(n: int, m: int, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "c": rng.normal(size=(D, n)), "g": rng.normal(size=(D, n)), "a": rng.uniform(0.2, 2, n),
        "p": rng.normal(size=(D, m)), "b": rng.uniform(0.2, 2, m),
    }  # fmt: skip


def solve(q: dict[str, np.ndarray], ridge: float) -> np.ndarray:
    c, g, a, p, b = (torch.from_numpy(np.ascontiguousarray(q[k].T)) for k in ("c", "g", "a", "p", "b"))
    left, right = text_map(c, g, a, gram(p, b), ridge)
    return np.eye(D) + (left @ right.T).numpy()


SHAPES = [
    (1, 3),
    (4, 30),
    (40, 5),
    (3, 0),
]  # few rows, a long preserve list, more rows than dimensions, nothing preserved


@pytest.mark.parametrize(("n", "m"), SHAPES)
@pytest.mark.parametrize("ridge", [0.5, 1e-3])
def test_one_map_is_the_normal_equations_of_every_layer(n: int, m: int, ridge: float) -> None:
    q, rng = problem(n, m), np.random.default_rng(1)
    t = solve(q, ridge)
    for out in (3, D, 50):
        old = rng.normal(size=(out, D))
        np.testing.assert_allclose(
            old @ t, oracle.normal_equations(old, **q, ridge=ridge), atol=1e-9, rtol=0
        )  # inv of cond 1e5


@pytest.mark.parametrize(("n", "m"), SHAPES)
def test_it_is_the_stacked_least_squares(n: int, m: int) -> None:
    q, old = problem(n, m), np.random.default_rng(2).normal(size=(7, D))
    np.testing.assert_allclose(old @ solve(q, 0.1), oracle.least_squares(old, **q, ridge=0.1), atol=1e-12, rtol=0)


def test_it_is_where_a_numerical_optimiser_ends() -> None:
    q, old = problem(4, 6), np.random.default_rng(3).normal(size=(5, D))
    c, g, a, p, b = (torch.from_numpy(q[k]) for k in ("c", "g", "a", "p", "b"))
    w0 = torch.from_numpy(old)
    w = w0.clone().requires_grad_()
    optimiser = torch.optim.LBFGS(
        [w], max_iter=300, tolerance_grad=1e-12, tolerance_change=1e-16, line_search_fn="strong_wolfe"
    )

    def closure() -> torch.Tensor:
        optimiser.zero_grad()
        loss = (
            (a * (w @ c - w0 @ g).square()).sum()
            + (b * (w @ p - w0 @ p).square()).sum()
            + 0.1 * (w - w0).square().sum()
        )
        loss.backward()
        return loss

    optimiser.step(closure)
    ours = old @ solve(q, 0.1)
    np.testing.assert_allclose(ours, w.detach().numpy(), atol=1e-7, rtol=0)  # L-BFGS stops there
    best = oracle.objective(ours, old, **q, ridge=0.1)
    rng = np.random.default_rng(4)
    assert all(
        oracle.objective(ours + 1e-3 * rng.normal(size=ours.shape), old, **q, ridge=0.1) > best for _ in range(20)
    )


def test_a_target_equal_to_the_concept_changes_nothing() -> None:
    q = problem(4, 6)
    assert np.array_equal(solve({**q, "g": q["c"]}, 0.1), np.eye(D))


def test_the_order_of_rows_is_irrelevant() -> None:
    q, order = problem(5, 6), [3, 0, 4, 2, 1]
    turned = {
        **q,
        "c": q["c"][:, order],
        "g": q["g"][:, order],
        "a": q["a"][order],
        "p": q["p"][:, ::-1],
        "b": q["b"][::-1],
    }
    np.testing.assert_allclose(solve(turned, 0.1), solve(q, 0.1), atol=1e-13, rtol=0)


@pytest.mark.parametrize(("n", "m"), SHAPES)
def test_targets_that_no_row_gives_are_met_in_residual_form(n: int, m: int) -> None:
    q, rng = problem(n, m), np.random.default_rng(6)
    old = rng.normal(size=(7, D))
    v = rng.normal(size=(7, n))
    c, a, p, b = (torch.from_numpy(np.ascontiguousarray(q[k].T)) for k in ("c", "a", "p", "b"))
    y = gain(c, a, gram(p, b), 0.1).numpy()
    rest = {k: q[k] for k in ("c", "a", "p", "b")}
    np.testing.assert_allclose(old + (v - old @ q["c"]) @ y.T, oracle.fit(old, v, **rest, ridge=0.1), atol=1e-10)
    # and a map is the case v = W g
    np.testing.assert_allclose(old + (old @ (q["g"] - q["c"])) @ y.T, old @ solve(q, 0.1), atol=1e-12)


def test_the_metric_of_a_residual_is_the_maps() -> None:
    q, rng = problem(4, 6), np.random.default_rng(7)
    half = rng.normal(size=(D, D))
    metric = torch.from_numpy(half @ half.T + np.eye(D))
    c, g, a, p, b = (torch.from_numpy(np.ascontiguousarray(q[k].T)) for k in ("c", "g", "a", "p", "b"))
    left, right = text_map(c, g, a, gram(p, b), 0.3, metric)
    np.testing.assert_allclose(
        (left @ right.T).numpy(), (q["g"] - q["c"]) @ gain(c, a, gram(p, b), 0.3, metric).numpy().T, atol=1e-12
    )
    assert not torch.allclose(right, gain(c, a, gram(p, b), 0.3))


def test_strong_weights_win_each_for_its_own_rows() -> None:
    q = problem(2, 4)
    erased = solve({**q, "a": np.full(2, 1e9)}, 1.0)
    kept = solve({**q, "b": np.full(4, 1e9)}, 1.0)
    np.testing.assert_allclose(erased @ q["c"], q["g"], atol=1e-6)
    np.testing.assert_allclose(kept @ q["p"], q["p"], atol=1e-6)
    assert np.abs(kept @ q["c"] - q["g"]).max() > 0.1  # and a compromise is one


def test_a_heavy_ridge_keeps_the_weights() -> None:
    assert np.abs(solve(problem(4, 6), 1e12) - np.eye(D)).max() < 1e-9


def test_factors_are_no_wider_than_the_rows() -> None:
    for n, rank in ((3, 3), (40, D)):
        q = problem(n, 5)
        c, g, a = (torch.from_numpy(np.ascontiguousarray(q[k].T)) for k in ("c", "g", "a"))
        left, right = text_map(c, g, a, torch.zeros(D, D, dtype=torch.float64), 0.1)
        assert left.shape == right.shape == (D, rank)
        assert left.dtype == torch.float64


@pytest.mark.parametrize("chunk", [1, 3, 7, 100])
def test_gram_in_chunks_is_the_sum_of_outer_products(chunk: int) -> None:
    rng = np.random.default_rng(5)
    rows, weights = rng.normal(size=(7, D)), rng.uniform(0, 1, 7)
    expected = sum(w * np.outer(r, r) for r, w in zip(rows, weights, strict=True))
    ours = gram(torch.from_numpy(rows), torch.from_numpy(weights), chunk)
    np.testing.assert_allclose(ours.numpy(), expected, atol=1e-14)


def test_gram_of_single_precision_rows_adds_in_double() -> None:
    rows = torch.full((5000, 1), 0.1)
    assert (
        abs(float(gram(rows, torch.ones(5000))) - 5000 * float(rows[0].double().square())) < 1e-9
    )  # float32 sums are off by 1e-4
