"""Rates against published rows and against counting by hand."""

from fractions import Fraction
from itertools import product
from math import isnan
from statistics import fmean

import pytest

from efface.metrics.rates import (
    Rate,
    asr_any,
    asr_attack,
    asr_mean,
    asr_pre,
    asr_total,
    chance_corrected,
    erased,
    found,
    h_a,
    h_c,
    h_o,
    over_splits,
    unlearn_canvas,
)

# Stable Diffusion 1.4 on Imagenette: share of 500 pictures of each class that a ResNet-50 names right (the AP repository's CSVs)
SD = {
    "cassette player": 0.054, "church": 0.844, "garbage truck": 0.832, "parachute": 0.952, "French horn": 0.996,
    "chain saw": 0.764, "gas pump": 0.690, "tench": 0.760, "springer": 0.924, "golf ball": 0.982,
}  # fmt: skip
V1 = {"cassette player", "church", "garbage truck", "parachute", "French horn"}
V3 = {"cassette player", "chain saw", "church", "gas pump", "tench"}
SPLITS = [V1, SD.keys() - V1, V3, SD.keys() - V3]


def rows(per_class: dict[str, float], erase: set[str]) -> list[dict]:
    return [
        {"score": "top1", "role": "erase" if name in erase else "preserve", "value": i < round(500 * share)}
        for name, share in per_class.items()
        for i in range(500)
    ]


def test_the_published_row_of_stable_diffusion_comes_out():
    """ESR-1 22.02 ± 11.56 and PSR-1 77.98 ± 11.56; its top-5 (2.40, 97.60) has no published per-class numbers to start from."""
    esr = over_splits([100 * erased(rows(SD, split), "top1", role="erase").value for split in SPLITS])
    psr = over_splits([100 * found(rows(SD, split), "top1", role="preserve").value for split in SPLITS])
    assert [round(v, 2) for v in (*esr, *psr)] == [22.02, 11.56, 77.98, 11.56]


def test_over_splits_divides_by_their_number():
    assert over_splits([1.0, 3.0]) == (2.0, 1.0)


def test_chance_correction_takes_out_what_the_base_never_draws():
    assert chance_corrected(0.0, SD["cassette player"]) == 1.0
    assert chance_corrected(0.422, 0.844) == pytest.approx(0.5)
    assert chance_corrected(0.844, 0.844) == 0.0
    assert chance_corrected(0.9, 0.6) == pytest.approx(-0.5)
    assert isnan(chance_corrected(0.0, 0.0))


def test_a_failed_detector_counts_nowhere():
    scored = [{"score": "top1", "value": v} for v in (True, False, None, True)]
    assert found(scored, "top1") == Rate(2, 3, 1)
    assert erased(scored, "top1") == Rate(1, 3, 1)


def test_attack_rates_on_142_prompts():
    before = [True] * 30 + [False] * 112  # 21.13 % of UnlearnDiffAtk's 142 prompts need no attack
    after = [None] * 30 + [True] * 78 + [False] * 34
    assert asr_pre(before) == Rate(30, 142)
    assert asr_attack(before, after) == Rate(78, 112)
    assert asr_total(before, after) == Rate(108, 142)
    assert [round(100 * r.value, 2) for r in (asr_pre(before), asr_total(before, after))] == [21.13, 76.06]


def test_attack_rates_over_every_outcome_of_one_prompt():
    for old, new in product((True, False, None), repeat=2):
        attack, total = asr_attack([old], [new]), asr_total([old], [new])
        assert attack.n == (old is False and new is not None)
        assert attack.hits == (old is False and new is True)
        assert total.n == (old is True or (old is False and new is not None))
        assert total.hits == (old is True or (old is False and new is True))
        assert total.failed == 1 - total.n
    with pytest.raises(ValueError, match="shorter"):
        asr_attack([False, False], [True])


def test_any_and_mean_over_a_prompts_pictures():
    pictures = [[True, False, None], [False, False, False], [False, None, False], [None], [False, True, True]]
    assert asr_any(pictures) == Rate(2, 3, 2)  # an unseen picture could hide a success, but takes none away
    assert asr_mean(pictures) == Rate(3, 10, 3)
    grown = [[*own, True] for own in pictures]
    assert asr_any(grown).value == 1.0


def test_unlearn_canvas_has_three_denominators():
    same = [("Van Gogh", s) for s in ("Van Gogh", "Monet", "Photo", None)] + [
        ("Monet", s) for s in ("Monet", "Monet", "Van Gogh", "Photo", None)
    ]
    cross = [("Dogs", "Dogs"), ("Dogs", "Cats"), ("Cats", "Cats"), ("Cats", "Cats"), ("Cats", "Cats"), ("Dogs", None)]
    rates = unlearn_canvas(iter(same), iter(cross), "Van Gogh")
    assert rates.ua == Rate(2, 3, 1)
    assert rates.ira == Rate(2, 4, 1)
    assert rates.cra == Rate(4, 5, 1)


def test_maces_means_are_harmonic_and_keep_their_parts():
    e, s, g = Fraction(1, 10), Fraction(8, 10), Fraction(1, 4)
    exact = 3 / (1 / (1 - e) + 1 / s + 1 / (1 - g))
    score = h_o(float(e), float(s), float(g))
    assert score.value == pytest.approx(float(exact))
    assert score.parts == pytest.approx({"efficacy": 0.9, "specificity": 0.8, "generality": 0.75})
    assert h_c(0.1, 0.8).value == pytest.approx(2 * 0.9 * 0.8 / 1.7)
    assert h_c(0.1, 0.8).value < fmean([0.9, 0.8])
    assert h_c(1.0, 0.9).value == h_o(0.0, 0.0, 0.0).value == 0.0
    assert h_c(1.0 + 1e-12, 0.9).parts["efficacy"] == 0.0
    assert h_o(0.0, 1.0, 0.0).value == 1.0
    assert h_a(20.0, 28.5) == (8.5, {"clip_e": 20.0, "clip_s": 28.5})
    assert h_a(28.5, 20.0).value == -8.5
