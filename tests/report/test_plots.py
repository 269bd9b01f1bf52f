"""Figures: every name legible, every mark where its numbers say."""

import re
from itertools import pairwise

import pytest

from efface.metrics.rates import Rate
from efface.report.plots import scatter


@pytest.mark.parametrize("n", [2, 18, 30])
def test_names_stand_free_in_the_order_of_their_marks(n: int) -> None:
    rates = {f"method {i}": (Rate(99, 100), Rate(97 - i // 4, 100)) for i in range(n)}  # many in one corner
    text = scatter(rates, ["method 0"], "kept")
    names = re.findall(r'<text class="(base|edit) right" x="\d+" y="([\d.]+)">([^<]+)</text>', text)
    assert [name for _, _, name in names] == list(rates)
    assert [kind for kind, _, _ in names] == ["base", *["edit"] * (n - 1)]
    heights = [float(y) for _, y, _ in names]
    assert all(b - a > 12.8 for a, b in pairwise(heights))
    (bottom,) = re.findall(r'viewBox="0 0 \d+ (\d+)"', text)
    assert heights[0] >= 20
    assert heights[-1] < float(bottom)


@pytest.mark.parametrize(("kept", "left", "across"), [(80, 50, 0.6), (20, 0, 0.2)])
def test_a_mark_is_where_its_numbers_say(kept: int, left: int, across: float) -> None:
    text = scatter({"one": (Rate(kept, 100), Rate(25, 100))}, [], "kept")
    assert f'<circle cx="{50 + 280 * across:.1f}" cy="{260 - 240 * 0.25}"' in text
    assert re.findall(r'<text x="50.0" y="276">(\d+)</text>', text) == [str(left)]
