"""What attacks bring back over tasks, counted by hand."""

import pytest
from made import line

from efface.report.under_attack import attacked, is_control, markdown, section, trade_off, what


def rows(method, attack, found, task="tiger", steps=None, asked=("p", "q"), seeds=(30, 31)):
    """Rows of one attack: `found` by prompt and seed."""
    pairs = [(prompt, seed) for prompt in asked for seed in seeds]
    return [
        line(edit=method, method=method, nth=0, task=task, concept=task, attack=attack, asked=prompt, prompt=f"{attack} {prompt}",
             seed=seed, value=value, about={} if steps is None else {"steps": steps[i]})
        for i, ((prompt, seed), value) in enumerate(zip(pairs, found, strict=True))
    ]  # fmt: skip


@pytest.fixture
def found():
    """Two tasks; the unedited model does not draw the rose's last picture."""
    own = [
        *rows("base", "no attack", [1, 1, 1, 1]), *rows("base", "no attack", [1, 1, 1, 0], "rose"),
        *rows("uce", "no attack", [0, 0, 0, 0]), *rows("uce", "no attack", [0, 1, 0, 1], "rose"),
        *rows("uce", "unlearndiffatk", [1, 0, 0, 0]), *rows("uce", "unlearndiffatk", [0, 0, 0, 1], "rose"),
        *rows("uce", "soft", [1, 1, 0, 0]), *rows("uce", "soft", [0, 0, None, 0], "rose"),
        *rows("uce", "latent", [0, 1], seeds=(30,)),
        *rows("uce", "inversion-control", [1, 1, 1, 1]),
        *rows("uce", "relearn", [1, 1, 1, 0], steps=[5, 10, 20, 50]),
        *rows("uce", "relearn-control", [0, 0, 0, 1], steps=[50, 50, 50, 50]),
    ]  # fmt: skip
    return attacked(own, ["base"])


def test_kinds_and_controls_are_those_of_the_attacks():
    assert [what(name) for name in ("unlearndiffatk-suffix", "soft:radius=2", "latent", "relearn-others", "no attack")] == [
        "words", "rows", "latents", "weights", "",
    ]  # fmt: skip
    assert is_control("inversion-control:rate=0.2")
    assert not is_control("inversion")


def test_rates_are_means_over_tasks_of_pictures_that_the_unedited_model_draws(found):
    assert found.rate("uce", ["no attack"]).value == pytest.approx((0 / 4 + 1 / 3) / 2)
    assert found.rate("uce", ["unlearndiffatk"]).value == pytest.approx(
        (1 / 4 + 0 / 3) / 2
    )  # the rose's last does not count
    assert found.rate("uce", ["soft"]).value == pytest.approx((2 / 4 + 0 / 2) / 2)  # nor what was not judged
    assert found.rate("uce", ["backdoor"]) is None


def test_the_union_counts_each_picture_once_and_a_start_noise_for_every_seed(found):
    # tiger: p at both seeds by soft, q by its start noise at both; rose: one of three without any attack
    assert found.rate("uce", ["no attack", "unlearndiffatk", "soft", "latent"]).value == pytest.approx(
        (4 / 4 + 1 / 3) / 2
    )
    value, below = found.union("uce")
    interval, words = below.split("; ")
    assert (value, words) == ("33", "by words 71")  # of tigers 3 of 4, of roses 2 of 3 remain
    low, high = map(int, interval.split("–"))
    assert low < 33 < high
    assert found.of_kind(["rows"]) == ["soft"]  # without the control


def test_what_teaches_the_unedited_model_is_left_out_of_the_union(found):
    assert found.taught == []
    own = [row for rows in found.rows.values() for row in rows]
    for hits, taught in (([1, 0, 0, 0], []), ([1, 1, 0, 0], ["soft"])):
        again = attacked([*own, *rows("base", "soft-control", hits)], ["base"])
        assert again.taught == taught
        assert ("soft" in again.united) == (not taught)
    # without soft: tiger q by its start noise at both seeds, p at the first by words
    assert again.rate("uce", again.united).value == pytest.approx((3 / 4 + 1 / 3) / 2)
    assert "Left out of the union: soft." in markdown(again, ["uce"], {"uce": "uce"})


def test_steps_are_a_median_beside_the_controls(found):
    assert found.steps("uce") == ("15", "control more than 50")  # of 5, 10, 20 and never
    assert found.steps("base") == ("–", "knows it")


def test_tables_and_figure_name_every_method_and_attack(found):
    names = {"base": "unedited", "uce": "uce"}
    text = markdown(found, ["uce", "base"], names)
    first, *others = text.split("## By attack")
    assert "| method | no attack | words | rows | latents | weights | union | steps to relearn |" in first
    assert all(
        f"{name} |" in others[0] for name in ("unlearndiffatk", "soft", "latent", "inversion-control", "relearn")
    )
    assert all(row.count("|") <= 10 for row in text.splitlines())
    assert "By what the attacks give" in section(found, ["uce", "base"], names)
    assert trade_off(found, ["uce"], names, {"uce": None}) == ""


def test_no_attack_is_no_table():
    assert attacked([line(method="uce", nth=0)], ["base"]) is None
