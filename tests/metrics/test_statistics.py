"""Intervals against the equation that defines them, tests against every outcome counted one by one."""

from itertools import product
from math import isnan
from statistics import NormalDist, fmean

import numpy as np
import pytest

from efface.metrics import statistics
from efface.metrics.statistics import bootstrap, holm, mcnemar, paired, pooled, spread, wilson

Z = 1.959963984540054  # of 95 %


@pytest.mark.parametrize(("k", "n"), [(0, 4), (1, 24), (12, 24), (23, 24), (808, 808)])
def test_wilsons_ends_are_the_rates_that_lie_z_deviations_away(k: int, n: int) -> None:
    for end in wilson(k, n):
        assert abs(k / n - end) == pytest.approx(Z * (end * (1 - end) / n) ** 0.5, abs=1e-9)
    low, high = wilson(k, n)
    assert 0 <= low <= k / n <= high <= 1
    assert low < high


def test_wilson_of_nothing_is_everything() -> None:
    assert wilson(0, 0) == (0.0, 1.0)
    with pytest.raises(ValueError, match="got 5 of 4"):
        wilson(5, 4)


@pytest.mark.parametrize(("lost", "won"), [(0, 0), (3, 1), (1, 3), (6, 0), (5, 5), (9, 2)])
def test_mcnemar_counts_the_signs_that_are_as_uneven(lost: int, won: int) -> None:
    signs = [sum(s) for s in product((1, -1), repeat=lost + won)]
    assert mcnemar(lost, won) == pytest.approx(sum(abs(s) >= abs(lost - won) for s in signs) / len(signs))


def test_holm_is_the_published_step_down():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.4]) == pytest.approx([0.8, 0.8])  # never falls below a smaller one's
    assert holm([0.9, 0.8, 0.7]) == [1.0, 1.0, 1.0]
    assert holm([0.02]) == [0.02]
    assert holm([]) == []


@pytest.mark.parametrize("alpha", [0.01, 0.05, 0.2])
def test_holms_adjusted_values_reject_what_his_steps_reject(alpha: float):
    p = [0.001, 0.012, 0.013, 0.04, 0.3, 0.0491]
    rejected, order = set(), sorted(range(len(p)), key=p.__getitem__)
    for step, i in enumerate(order):
        if p[i] > alpha / (len(p) - step):
            break
        rejected.add(i)
    assert {i for i, adjusted in enumerate(holm(p)) if adjusted <= alpha} == rejected


def test_the_bootstraps_ends_are_quantiles_of_every_equally_likely_draw():
    values = [0.0, 1.0, 5.0, 20.0]
    means = sorted(fmean(d) for d in product(values, repeat=4))  # the bootstrap's whole distribution
    low, high = bootstrap(values, draws=20_000, confidence=0.8)
    assert sum(m < low for m in means) <= 0.11 * len(means) <= 1.1 * sum(m <= low for m in means) + 3
    assert sum(m > high for m in means) <= 0.11 * len(means) <= 1.1 * sum(m >= high for m in means) + 3


def test_the_bootstrap_of_a_mean_is_the_normal_interval_for_many_values():
    values = [NormalDist(3, 2).inv_cdf((i + 0.5) / 400) for i in range(400)]
    low, high = bootstrap(values)
    half = Z * 2 / 20
    assert (low, high) == pytest.approx((3 - half, 3 + half), abs=0.15 * half)
    narrow = bootstrap(values, confidence=0.5)
    assert narrow[1] - narrow[0] == pytest.approx((high - low) * 0.6745 / Z, rel=0.1)
    assert bootstrap(values, min)[0] == min(values)
    assert bootstrap(values) == (low, high)
    assert bootstrap(values, seed=1) != (low, high)
    assert bootstrap([7.0]) == (7.0, 7.0)
    with pytest.raises(ValueError, match="got none"):
        bootstrap([])


def test_an_interval_belongs_to_the_data_and_is_drawn_once(monkeypatch: pytest.MonkeyPatch):
    values = [0.5 * i % 7 for i in range(3000)]
    first = bootstrap(values, draws=50)
    monkeypatch.setattr(np.random, "default_rng", None)  # whoever draws again fails
    assert bootstrap(values[::-1], draws=50) == bootstrap(tuple(values), draws=50) == first
    with pytest.raises(TypeError):
        bootstrap([*values, 1.0], draws=50)


def test_many_values_are_drawn_in_parts_of_bounded_size(monkeypatch: pytest.MonkeyPatch):
    values = [float(i % 10) for i in range(400)]
    whole = bootstrap(values, draws=301)
    monkeypatch.setattr(statistics, "DRAWN", 7 * 400 + 1)  # seven draws at once
    statistics._mean_interval.cache_clear()
    assert bootstrap(values, draws=301) == whole
    statistics._mean_interval.cache_clear()


def test_pictures_of_one_concept_are_drawn_together():
    groups = [[float(g)] * 25 for g in (0, 0, 0, 1, 1, 1)]  # all variation lies between concepts
    flat = [v for g in groups for v in g]
    together, apart = bootstrap(groups, pooled), bootstrap(flat)
    assert pooled(groups) == fmean(flat) == 0.5
    assert together[1] - together[0] == pytest.approx(5 * (apart[1] - apart[0]), rel=0.2)  # √25
    assert pooled([[1.0], [4.0, 4.0]]) == 3.0  # by pictures, not by groups


def test_pairs_are_matched_by_key_and_their_noise_cancels():
    before = {("a tiger", seed): 10.0 * seed for seed in range(20)}
    after = {key: value - 2 + (0.1 if key[1] % 2 else -0.1) for key, value in reversed(before.items())}
    mean, low, high, n = paired(before, after)
    assert mean == pytest.approx(-2)
    assert n == 20
    assert -2.1 < low < -2 < high < -1.9
    assert paired(after, before).mean == pytest.approx(2)
    failed = paired(before, {**after, ("a tiger", 3): None})
    assert failed.n == 19
    assert failed.mean == pytest.approx((20 * -2 - -1.9) / 19)
    with pytest.raises(ValueError, match=r"1 alone, such as \('a tiger', 99\); score both"):
        paired(before, {**after, ("a tiger", 99): 0.0})
    with pytest.raises(ValueError, match="got none"):
        paired({"a": None}, {"a": 1.0})


def test_spread_tells_training_seeds_from_pictures():
    apart = spread({0: [1.0] * 9, 1: [2.0] * 9, 2: [6.0] * 9})
    assert apart.mean == 3.0
    assert apart.population_std == pytest.approx((14 / 3) ** 0.5)
    assert apart.sample_std == pytest.approx(7**0.5)
    assert (apart.low, apart.high, apart.seeds) == (1.0, 6.0, 3)  # of 27 draws one is all ones, one all sixes
    within = spread({0: [0.0, 1.0] * 50, 1: [1.0, 0.0] * 50})
    assert within.population_std == within.sample_std == 0
    half = Z * 0.5 / 200**0.5  # two seeds of a hundred pictures
    assert (within.low, within.high) == pytest.approx((0.5 - half, 0.5 + half), abs=0.2 * half)
    assert spread({0: [1.0, 1.0, 1.0], 1: [3.0]}).mean == 2.0  # each training seed counts the same
    assert isnan(spread({5: [1.0, 2.0]}).sample_std)
    with pytest.raises(ValueError, match="leave it out"):
        spread({0: [1.0], 1: []})
