"""RECE: its adversary against least squares, its rounds against the paper's loop over layers, and what an adversary still gets."""

import numpy as np
import pytest
import torch
from oracles import rece as oracle
from oracles import uce as uce_oracle
from toys import LENGTH, WIDTH, moved

from efface.core.concept import Concept
from efface.core.denoiser import Denoiser
from efface.core.edit import TextMap
from efface.core.rows import KeptRows
from efface.erasers.rece import RECE, adversary, seen, share
from efface.erasers.uce import UCE, pair_rows

TIGER = Concept("tiger", "cat")


def matrix(edit: TextMap) -> np.ndarray:
    return np.eye(WIDTH) + edit.left.double().numpy() @ edit.right.double().numpy().T


def rows(base: Denoiser, prompt: str) -> np.ndarray:
    return base.embed([prompt]).tokens[0].double().numpy()


def layers(base: Denoiser) -> list[np.ndarray]:
    return [w.double().numpy() for w in base.params("xattn.kv").values()]


def mean_eigenvalue(base: Denoiser) -> float:
    return float(np.linalg.eigvalsh(sum(w.T @ w for w in layers(base))).mean())


# -- the adversary -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [0.1, 5.0])
def test_the_adversary_is_least_squares_over_all_layers(base: Denoiser, limit: float) -> None:
    t = matrix(UCE().fit(base, TIGER))
    old, c = layers(base), rows(base, "tiger")
    z = adversary(torch.from_numpy(t), seen(base), torch.from_numpy(c), limit).numpy()
    now = [w @ t for w in old]
    np.testing.assert_allclose(z, oracle.stacked(now, old, c, limit), atol=1e-8)
    np.testing.assert_allclose(z, oracle.adversary(now, old, c, limit), atol=1e-8)
    assert np.abs(z - c).max() > 0.1


def test_without_a_limit_the_adversary_inverts_the_edit(base: Denoiser) -> None:
    t, c = matrix(UCE(ridge=0.5).fit(base, TIGER)), rows(base, "tiger")
    z = adversary(torch.from_numpy(t), seen(base), torch.from_numpy(c), 1e-9).numpy()
    inverse = np.linalg.solve(t, c.T).T
    assert np.linalg.norm(z - inverse) < 1e-6 * np.linalg.norm(inverse)


def test_a_tighter_limit_makes_a_shorter_adversary_that_gets_less(base: Denoiser) -> None:
    t, s = torch.from_numpy(matrix(UCE().fit(base, TIGER))), seen(base)
    c, g = (torch.from_numpy(rows(base, p))[1:4] for p in ("tiger", "cat"))
    got = [adversary(t, s, c, limit) for limit in (1e-3, 1.0, 1e3)]
    shares = [share(t, s, z, c, g, torch.ones(3)) for z in got]
    assert shares == sorted(shares, reverse=True)
    assert [float(z.norm()) for z in got] == sorted((float(z.norm()) for z in got), reverse=True)
    assert shares[0] > 0.9


def test_what_comes_back_is_counted_over_layers_from_the_target_to_the_concept(base: Denoiser) -> None:
    t, old = matrix(UCE().fit(base, TIGER)), layers(base)
    c, g, z = rows(base, "tiger")[1:5], rows(base, "cat")[1:5], rows(base, "a lion")[1:5]
    a = np.array([1.0, 2.0, 0.5, 0.1])
    ours = share(torch.from_numpy(t), seen(base), *(torch.from_numpy(x) for x in (z, c, g, a)))
    assert ours == pytest.approx(oracle.came_back([w @ t for w in old], old, z, c, g, a), abs=1e-9)
    eye, flat = torch.eye(WIDTH, dtype=torch.float64), torch.ones(4)
    same, goal = torch.from_numpy(c), torch.from_numpy(g)
    assert share(eye, seen(base), same, same, goal, flat) == 1.0
    assert share(eye, seen(base), goal, same, goal, flat) == 0.0
    assert share(eye, seen(base), goal, same, same, flat) == 0.0  # nothing that could come back


# -- the rounds ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("preset", "limit", "rounds"), [("released", 0.1, 3), ("released-narrow", 1e-3, 1)])
@pytest.mark.parametrize("target", ["cat", ""])
def test_the_released_loop_is_the_papers_layer_by_layer(
    base: Denoiser, preset: str, limit: float, rounds: int, target: str
) -> None:
    """Only its composition is ours: T = T_uce T_1 … T_rounds."""
    edit = RECE.preset(preset).fit(base, Concept("a tiger", target), ["lion"])
    c, g = rows(base, "a tiger"), rows(base, target)
    p = np.concatenate([rows(base, "lion"), rows(base, "")])
    start, goal = 2, 1 if target else 0  # the last word, or the start token
    k = LENGTH - start
    first = [
        uce_oracle.normal_equations(
            w, c[start : start + k].T, g[goal : goal + k].T, np.ones(k), p.T, np.full(len(p), 0.5), 0.5
        )
        for w in layers(base)
    ]
    expected = oracle.released(layers(base), first, c, g, p, limit, rounds, 0.1, 0.1)
    for new, one, before in zip(layers(edit(base)), expected, first, strict=True):
        np.testing.assert_allclose(new, one, atol=2e-4)  # the first edit is float32, and the adversary inverts it
        assert np.abs(one - before).max() > 0.01


def first(base: Denoiser, pairs: list[tuple[str, str]], p: np.ndarray, keep: float, erase: float) -> list[np.ndarray]:
    """UCE of 2023 in every layer: from the last word, or the start token of "", to the end of the padding."""
    c, g = [], []
    for said, goal in pairs:
        starts = [len(text.split()) for text in (said, goal)]
        k = LENGTH - max(starts)
        c.append(rows(base, said)[starts[0] : starts[0] + k])
        g.append(rows(base, goal)[starts[1] : starts[1] + k])
    c, g = np.concatenate(c).T, np.concatenate(g).T
    weights, b = np.full(c.shape[1], erase), np.full(len(p), keep)
    return [uce_oracle.normal_equations(w, c, g, weights, p.T, b, 0.5) for w in layers(base)]


@pytest.mark.parametrize(("preset", "rounds", "empty"), [("released", 3, 2), ("released-narrow", 1, 1)])
def test_the_script_for_what_is_broad_keeps_nothing_once_for_each_concept(
    base: Denoiser, preset: str, rounds: int, empty: int
) -> None:
    pairs = [("a tiger", "cat"), ("car", "")]
    edit = RECE.preset(preset, limit=0.1).fit(base, [Concept(*pair) for pair in pairs])
    c, g = (np.concatenate([rows(base, pair[side]) for pair in pairs]) for side in (0, 1))
    null = rows(base, "")
    uce = first(base, pairs, null, 1.0, 1.0)  # which has it once
    args = layers(base), uce, c, g
    expected = oracle.released(*args, np.concatenate([null] * empty), 0.1, rounds, 0.1, 0.1)
    other = oracle.released(*args, np.concatenate([null] * (3 - empty)), 0.1, rounds, 0.1, 0.1)
    for new, one, two in zip(layers(edit(base)), expected, other, strict=True):
        np.testing.assert_allclose(new, one, atol=2e-4)
        assert np.abs(two - one).max() > 1e-3


@pytest.mark.parametrize("changed", [{"erase_scale": 2.5}, {"preserve_scale": 0.6}, {"ridge": 0.7}])
def test_every_weight_of_the_released_loop_is_where_the_paper_has_it(base: Denoiser, changed: dict[str, float]) -> None:
    how = {"erase_scale": 1.0, "preserve_scale": 0.1, "ridge": 0.1, **changed}
    edit = RECE.preset("released", rounds=1, **changed).fit(base, Concept("tiger", "cat"), ["lion"])
    p = np.concatenate([rows(base, "lion"), rows(base, "")])
    uce = first(base, [("tiger", "cat")], p, 0.5, how["erase_scale"])
    c, g = rows(base, "tiger"), rows(base, "cat")
    expected = oracle.released(
        layers(base), uce, c, g, p, 0.1, 1, how["ridge"], how["preserve_scale"], how["erase_scale"]
    )
    for new, one in zip(layers(edit(base)), expected, strict=True):
        np.testing.assert_allclose(new, one, atol=2e-4)
    # and each shows: a round with the default in its place would be seen
    plain = oracle.released(layers(base), uce, c, g, p, 0.1, 1, 0.1, 0.1, 1.0)
    assert max(np.abs(one - other).max() for one, other in zip(expected, plain, strict=True)) > 2e-3


def test_the_released_loop_never_stops_early(base: Denoiser) -> None:
    """Where an adversary held short goes the wrong way, so that less than nothing comes back."""
    limit, target = 30 * mean_eigenvalue(base), "a tiger cat"
    edit = RECE.preset("released", rounds=1, limit=limit).fit(base, Concept("a tiger", target))
    uce = first(base, [("a tiger", target)], rows(base, ""), 1.0, 1.0)
    c, g = rows(base, "a tiger"), rows(base, target)
    z = oracle.adversary(uce, layers(base), c, limit)
    assert oracle.came_back(uce, layers(base), z, c, g, np.ones(len(c))) < 0
    expected = oracle.released(layers(base), uce, c, g, rows(base, ""), limit, 1, 0.1, 0.1)
    for new, one, before in zip(layers(edit(base)), expected, uce, strict=True):
        np.testing.assert_allclose(new, one, atol=2e-4)
        assert np.abs(one - before).max() > 0.01


@pytest.mark.parametrize("rounds", [1, 2])
def test_ours_is_one_problem_over_all_rows_against_the_original_weights(base: Denoiser, rounds: int) -> None:
    leads = ["", "", "a "]
    words = base.embed(["tiger", "car", "a lion"]), base.embed(["cat", "", "a dog"])
    everyday = base.embed(["stone"])
    limit = 0.5
    lead = [[len(text.split())] for text in leads]
    eraser = RECE(rounds=rounds, enough=0.0, erase_scale=1.5, preserve_scale=0.7)
    kept = 0.7 * KeptRows.of(base, ["", "moon"], "content").moment
    t = eraser.from_original(*words, kept, seen(base), limit, lead, everyday).numpy()
    c, g, a = [], [], []
    for s, d, n in (("tiger", "cat", 0), ("car", "", 0), ("a lion", "a dog", 1)):
        words_c, words_g = len(s.split()), len(d.split())
        for i, j, w in uce_oracle.content_pairs(LENGTH, words_c, words_g):
            c.append(rows(base, s)[i])
            g.append(rows(base, s)[i] if i <= n else rows(base, d)[j])
            a.append(1.5 * w)
    c, g, a = np.array(c), np.array(g), np.array(a)

    def kept(prompt: str) -> list[float]:
        n = len(prompt.split())
        return [*[1.0] * (n + 2), *[1 / (LENGTH - n - 2)] * (LENGTH - n - 2)]

    p, b = np.concatenate([rows(base, ""), rows(base, "moon")]), 0.7 * np.array([*kept(""), *kept("moon")])
    ridge = 0.1 * (np.trace((c.T * a) @ c) + np.trace((p.T * b) @ p)) / WIDTH
    calm = (rows(base, "stone").T * kept("stone")) @ rows(base, "stone")
    # a metric of 0.9 d M / tr M + 0.1 I is a tenth of the ridge and more rows to preserve
    p = np.concatenate([p, rows(base, "stone")])
    b = np.concatenate([b, 0.9 * ridge * WIDTH / np.trace(calm) * np.array(kept("stone"))])
    stays = np.array([(x == y).all() for x, y in zip(c, g, strict=True)])
    assert stays.sum() == 1
    own = [x[~stays] for x in (c, g, a)]
    for _ in range(rounds):
        now = [oracle.edit(w, c, g, a, p, b, 0.1 * ridge) for w in layers(base)]
        z = oracle.adversary(now, layers(base), own[0], limit)
        c, g, a = np.concatenate([c, z]), np.concatenate([g, own[1]]), np.concatenate([a, own[2]])
    for i, w in list(enumerate(layers(base)))[::4]:
        expected = oracle.edit(w, c, g, a, p, b, 0.1 * ridge)
        np.testing.assert_allclose(w @ t, expected, atol=1e-6)
        assert np.abs(expected - now[i]).max() > 0.01


def test_no_rounds_is_uce(base: Denoiser) -> None:
    erase, keep = [TIGER, Concept("car", kind="style")], ["lion"]
    np.testing.assert_allclose(
        matrix(RECE(rounds=0).fit(base, erase, keep)), matrix(UCE().fit(base, erase, keep)), atol=1e-6
    )
    np.testing.assert_allclose(
        matrix(RECE.preset("released", rounds=0).fit(base, erase, keep)),
        matrix(UCE.preset("2023").fit(base, erase, keep)),
        atol=1e-6,
    )


def test_the_limit_is_in_units_of_what_the_projections_see(base: Denoiser) -> None:
    relative = RECE(limit=0.02, rounds=1).fit(base, TIGER)
    absolute = RECE(limit=0.02 * mean_eigenvalue(base), limit_unit="absolute", rounds=1).fit(base, TIGER)
    np.testing.assert_allclose(matrix(relative), matrix(absolute), atol=1e-5)


@pytest.mark.parametrize("anchor", ["original", "edited"])
def test_it_stops_when_little_enough_comes_back(base: Denoiser, anchor: str) -> None:
    def fit(rounds: int, enough: float) -> np.ndarray:
        eraser = RECE(rounds=rounds, enough=enough, anchor=anchor, templates=False)
        return matrix(eraser.fit(base, Concept("tiger", "cat")))

    cond = base.embed(["tiger", "cat"])
    c, g, a = pair_rows(cond[:1], cond[1:], "content")
    if anchor == "edited":
        c, g, a = cond.tokens[0], cond.tokens[1], torch.ones(LENGTH)
    fitted, s = [fit(n, 0.0) for n in range(3)], seen(base)
    shares = []
    for t in map(torch.from_numpy, fitted):
        z = adversary(t, s, c.double(), 0.01 * mean_eigenvalue(base))
        shares.append(share(t, s, z, c.double(), g.double(), a))
    assert shares[0] > shares[1] + 0.01
    np.testing.assert_allclose(fit(2, shares[0] - 0.005), fitted[1], atol=1e-6)
    np.testing.assert_allclose(fit(2, shares[0] + 0.005), fitted[0], atol=1e-6)
    assert np.abs(fitted[2] - fitted[1]).max() > 1e-3


# -- what it does --------------------------------------------------------------------------------------------------


def back(base: Denoiser, t: np.ndarray, erased: str, target: str, limit: float) -> float:
    """How much of a concept the adversary gets back through an edit: from its last word and its end."""
    c, g, old = rows(base, erased)[1:3], rows(base, target)[1:3], layers(base)
    now = [w @ t for w in old]
    z = oracle.stacked(now, old, c, limit * mean_eigenvalue(base))
    return oracle.came_back(now, old, z, c, g, np.ones(2))


@pytest.mark.parametrize("name", ["rece", "released", "released-narrow"])
@pytest.mark.parametrize("target", ["cat", ""])
def test_its_own_adversary_gets_less_back_than_from_uce(base: Denoiser, name: str, target: str) -> None:
    concept = Concept("tiger", target)
    ours = (RECE() if name == "rece" else RECE.preset(name)).fit(base, concept, ["lion"])
    uce = (UCE() if name == "rece" else UCE.preset("2023")).fit(base, concept, ["lion"])
    for limit in (1e-1, 1e-2, 1e-3):
        assert back(base, matrix(ours), "tiger", target, limit) < back(base, matrix(uce), "tiger", target, limit) - 0.01


def test_each_round_leaves_the_adversary_less(base: Denoiser) -> None:
    got = [back(base, matrix(RECE(rounds=n, enough=0.0).fit(base, TIGER)), "tiger", "cat", 0.01) for n in range(5)]
    assert got == sorted(got, reverse=True)
    assert got[0] - got[-1] > 0.1


def test_what_is_kept_is_kept_as_it_was_where_the_released_loop_lets_it_drift(base: Denoiser) -> None:
    ours, released = (
        RECE(enough=0.0).fit(base, TIGER, ["lion"])(base),
        RECE.preset("released").fit(base, TIGER, ["lion"])(base),
    )
    assert moved(base, ours, "tiger") > 0.3
    for prompt in ("lion", ""):
        assert moved(base, ours, prompt) < 0.5 * moved(base, ours, "tiger")
        assert moved(base, ours, prompt) < moved(base, released, prompt)
