"""Intervals against the equation that defines them, tests against every outcome counted one by one."""

from itertools import product

import pytest

from efface.metrics.statistics import mcnemar, wilson

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
