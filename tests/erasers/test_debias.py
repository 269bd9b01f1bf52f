"""Debias: its two mixtures against NumPy, its loop against a scripted classifier, and a loop that arrives."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from oracles import debias as oracle
from oracles import uce as uce_oracle
from toys import WIDTH, differing, moved, snapshot

from efface.core.concept import Concept
from efface.core.denoiser import Denoiser
from efface.core.edit import Delta, TextMap
from efface.core.errors import UsageError
from efface.core.log import Log
from efface.erasers.debias import Debias
from efface.erasers.parts.mixture import Mixture, Part
from efface.erasers.uce import UCE

SMALL = {"attributes": "red,blue", "classifier": "scripted", "rounds": 3, "batch": 4, "sampler_steps": 2}
Seen = Callable[[list[np.ndarray]], list[str]]


class Judge:
    """Says what a function says; `calls` counts how often it was asked."""

    id = "scripted"

    def __init__(self, seen: Seen) -> None:
        self.seen, self.calls = seen, 0

    def top(self, pictures: list[np.ndarray], k: int = 10) -> list[list[tuple[str, float]]]:
        self.calls += 1
        return [[(label, 1.0)] for label in self.seen(pictures)]


@pytest.fixture
def judge(monkeypatch: pytest.MonkeyPatch) -> Callable[[Seen], Judge]:
    """Put a classifier in the place of every detector."""

    def put(seen: Seen) -> Judge:
        made = Judge(seen)
        monkeypatch.setattr("efface.metrics.detectors.detector", lambda name, labels: made)
        return made

    return put


@pytest.fixture
def blank(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures that cost nothing, for a classifier that does not look at them."""
    picture = np.zeros((16, 16, 3), np.uint8)
    monkeypatch.setattr(Denoiser, "images", lambda self, prompts, seeds, **kw: [picture] * len(seeds))


def script(*shares: float) -> Seen:
    """Of each call's pictures this share is red, the others blue; the last share for every later call."""
    left = list(shares)

    def seen(pictures: list[np.ndarray]) -> list[str]:
        share = left.pop(0) if len(left) > 1 else left[0]
        red = round(share * len(pictures))
        return ["red"] * red + ["blue"] * (len(pictures) - red)

    return seen


def matrix(edit: TextMap) -> np.ndarray:
    return np.eye(WIDTH) + edit.left.double().numpy() @ edit.right.double().numpy().T


# -- the two mixtures ----------------------------------------------------------------------------------------------


def problem(seed: int = 0) -> tuple[Mixture, dict[str, Any]]:
    """Two prompts of two concepts, two attributes each, and what stays: as a mixture and as the oracle's columns."""
    rng = np.random.default_rng(seed)
    parts, others = [], []
    for i, n in enumerate((3, 4)):
        c, a, weights = rng.normal(size=(n, WIDTH)), rng.normal(size=(2, n, WIDTH)), rng.uniform(0.5, 2, n)
        parts.append(Part(i, *(torch.from_numpy(x) for x in (c, a, weights))))
        others.append(a)
    p, b = rng.normal(size=(WIDTH, 5)), rng.uniform(0.2, 1, 5)
    c, a = torch.cat([part.rows for part in parts]), torch.cat([part.weights for part in parts])
    q = {"c": c.numpy().T, "a": a.numpy(), "p": p, "b": b, "ridge": 0.5}
    mixture = Mixture(parts, (a, torch.from_numpy((p * b) @ p.T), 0.5, None))
    return mixture, q


def targets(mixture: Mixture, w: np.ndarray, beta: np.ndarray, aim: Callable[..., np.ndarray]) -> np.ndarray:
    """Σ over the prompts, each with the β of its concept."""
    found = [aim(w, p.rows.numpy().T, [a.T for a in p.others.numpy()], beta[p.concept]) for p in mixture.parts]
    return np.hstack(found)


def test_a_mixture_of_rows_is_the_papers_solution(base: Denoiser) -> None:
    mixture, q = problem()
    beta = np.array([[0.3, -0.3], [0.4, 0.2]])
    edited = mixture.of_rows(torch.from_numpy(beta))(base)
    for name, w in list(base.params("xattn.kv").items())[::5]:
        old = w.double().numpy()
        expected = uce_oracle.fit(old, targets(mixture, old, beta, oracle.rows), **q)
        np.testing.assert_allclose(edited.params([name])[name].double().numpy(), expected, atol=1e-5)


def test_where_every_picture_shows_an_attribute_it_is_the_printed_sum() -> None:
    mixture, _ = problem()
    old = np.random.default_rng(1).normal(size=(7, WIDTH))
    level, tilted = np.array([[0.3, -0.3]] * 2), np.array([[0.3, 0.1]] * 2)
    ours, theirs = (targets(mixture, old, level, aim) for aim in (oracle.rows, oracle.paper))
    np.testing.assert_allclose(ours, theirs, atol=1e-12)
    assert np.abs(targets(mixture, old, tilted, oracle.rows) - targets(mixture, old, tilted, oracle.paper)).max() > 0.1


def test_a_mixture_of_outputs_is_the_released_one_round_after_round(base: Denoiser) -> None:
    mixture, q = problem()
    betas = np.array([[[0.1, -0.1], [0.05, -0.05]], [[-0.2, 0.2], [0.0, 0.0]]])
    edited = mixture.of_outputs(base, torch.from_numpy(betas))(base)
    for name, w in list(base.params("xattn.kv").items())[::5]:
        now = w.double().numpy()
        for beta in betas:  # from the weights of the last round
            now = uce_oracle.fit(now, targets(mixture, now, beta, oracle.released_2023), **q)
        np.testing.assert_allclose(edited.params([name])[name].double().numpy(), now, atol=1e-5)
        old, tilted = (
            w.double().numpy(),
            np.array([[0.2, 0.1], [0.0, 0.3]]),
        )  # a classifier that sees more than the attributes
        expected = uce_oracle.fit(old, targets(mixture, old, tilted, oracle.outputs), **q)
        once = mixture.of_outputs(base, torch.from_numpy(tilted[None]))(base).params([name])[name]
        np.testing.assert_allclose(once.double().numpy(), expected, atol=1e-5)


def test_rows_that_no_attribute_changes_are_no_part_of_its_length() -> None:
    mixture, _ = problem()
    part = mixture.parts[0]
    shared = torch.randn(1, WIDTH, dtype=torch.float64)
    longer = Part(
        0, torch.cat([shared, part.rows]), torch.cat([shared.expand(2, 1, -1), part.others], 1), torch.ones(4)
    )
    from efface.erasers.parts.mixture import _towards

    w, beta = torch.randn(6, WIDTH, dtype=torch.float64), torch.tensor([0.3, 0.2], dtype=torch.float64)
    step = _towards(longer, beta, w)
    assert not step[0].any()
    torch.testing.assert_close(step[1:], _towards(part, beta, w))


def test_the_rows_are_those_of_each_attribute_said_of_the_concept(base: Denoiser) -> None:
    erase = (Concept("tiger"), Concept("car"))
    made = Debias(attributes="red, happy blue").mixture(base, ["red", "happy blue"], erase, ())
    assert [part.concept for part in made.parts] == [0, 0, 0, 1, 1, 1]
    bare, framed = made.parts[0], made.parts[2]  # "tiger" and "a picture of a tiger"
    goal = [base.embed([p]).tokens[0] for p in ("red tiger", "happy blue tiger")]
    for k, place in (
        (0, 2),
        (1, 3),
    ):  # the word to itself, end to end; embedded beside other prompts it rounds otherwise
        torch.testing.assert_close(bare.others[k][:2], goal[k][place : place + 2], atol=1e-5, rtol=0)
    assert torch.equal(framed.others[:, :4], framed.rows[:4].expand(2, -1, -1))  # what is said before stays
    assert bare.others.shape[1] == len(bare.rows) == len(bare.weights)
    alone = Debias(wording="{attribute}").mixture(base, ["red"], erase, ()).parts[0]
    torch.testing.assert_close(alone.others[0][0], base.embed(["red"]).tokens[0, 1], atol=1e-5, rtol=0)


def test_the_release_of_2023_keeps_what_is_named_alone_with_a_tenth(base: Denoiser) -> None:
    """b is 0.1 however few are kept, and "" is not among them: M = λ I + Σ c cᵀ + 0.1 Σ p pᵀ over all rows of each p."""
    made = Debias.preset("2023", attributes="red,blue").mixture(
        base, ["red", "blue"], (Concept("tiger"),), (Concept("lion"),)
    )
    weights, kept, ridge, metric = made.system
    lion = base.embed(["lion"]).tokens[0].double().numpy()
    np.testing.assert_allclose(kept.numpy(), 0.1 * lion.T @ lion, atol=1e-9)
    assert (weights.unique().tolist(), ridge, metric) == ([1.0], 0.5, None)
    ours = Debias(solver="uce-2023").mixture(base, ["red", "blue"], (Concept("tiger"),), (Concept("lion"),)).system[1]
    both = np.concatenate([lion, base.embed([""]).tokens[0].double().numpy()])
    np.testing.assert_allclose(ours.numpy(), 0.5 * both.T @ both, atol=1e-9)  # UCE's own: 1 / 2, with ""


def test_the_release_of_2023_sees_the_target_that_the_first_attribute_changed(base: Denoiser) -> None:
    """Along one direction by hand: o = 1, β = 1/2 and 1/2, u = 1 each; 1 + 1/2 = 3/2, and the second adds half of 3/2."""
    from efface.erasers.parts.mixture import _towards

    one = torch.ones(1, 1, dtype=torch.float64)
    part, w = Part(0, one, 2 * one.expand(2, 1, 1), one[0]), one
    step = _towards(part, torch.tensor([0.5, 0.5], dtype=torch.float64), w)
    assert float(step) == pytest.approx(9 / 4 - 1 - 1)


# -- without a measure ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("solver", ["uce", "uce-2023", "uce-2025"])
def test_without_attributes_it_is_uce(base: Denoiser, solver: str) -> None:
    erase = [Concept("tiger", "cat", ("leopard",)), Concept("car")]
    edit = Debias(solver=solver).fit(base, erase, ["lion"])
    uce = UCE(**UCE.presets.get(solver.removeprefix("uce").removeprefix("-"), {})).fit(base, erase, ["lion"])
    np.testing.assert_allclose(matrix(edit), matrix(uce), atol=1e-6)


def test_without_a_classifier_the_mixture_is_of_the_ratios(base: Denoiser) -> None:
    given = Debias(attributes="red,blue", ratios="3, 1", classifier="")
    edit = given.fit(base, "tiger", ["lion"])
    mixture = given.mixture(base, ["red", "blue"], (Concept("tiger"),), (Concept("lion"),))
    np.testing.assert_allclose(matrix(edit), matrix(mixture.of_rows(torch.tensor([[0.75, 0.25]]))), atol=1e-6)


# -- the loop ------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("blank")
@pytest.mark.parametrize("mixes", ["rows", "outputs"])
def test_the_loop_is_the_papers(base: Denoiser, judge: Callable[[Seen], Judge], mixes: str) -> None:
    # concepts in turn, a round after the other: the second concept is as asked for in the second round, both in the fourth
    shares = [[1.0, 0.0], [0.5, 0.25], [0.75, 0.25], [0.25, 0.25], [0.0, 0.0]]
    one = judge(script(*(s for r in shares for s in r)))
    settings = {
        **SMALL,
        "rounds": 5,
        "sampler_steps": 1,
        "ratios": "1,3",
        "rate": 0.2,
        "tolerance": 0.1,
        "mixes": mixes,
    }
    erase = (Concept("tiger"), Concept("car"))
    eraser = Debias(**settings)
    edit = eraser.fit(base, erase, ["lion"])
    measured = [[[s, 1 - s] for s in r] for r in shares]
    moves = torch.tensor(oracle.loop(measured, [0.25, 0.75], 0.2, 0.1, 5))
    assert [bool(m.any()) for m in moves] == [True, True, True, False, False]
    assert not moves[1, 1].any()
    assert one.calls == 8  # nothing is drawn in the fifth round
    mixture = eraser.mixture(base, ["red", "blue"], erase, (Concept("lion"),))
    expected = mixture.of_outputs(base, moves) if mixes == "outputs" else mixture.of_rows(moves.sum(0))
    assert type(edit) is (Delta if mixes == "outputs" else TextMap)
    for k, t in expected.changes(base).items():
        torch.testing.assert_close(edit.changes(base)[k], t, atol=1e-5, rtol=0)
    assert differing(snapshot(base), snapshot(edit(base)))


@pytest.mark.usefixtures("blank")
def test_shares_as_asked_for_change_nothing(base: Denoiser, judge: Callable[[Seen], Judge]) -> None:
    one = judge(script(0.5))
    assert not differing(snapshot(base), snapshot(Debias(**SMALL).fit(base, "tiger")(base)))
    assert one.calls == 1
    one = judge(script(1.0))
    assert not differing(snapshot(base), snapshot(Debias(**{**SMALL, "rounds": 0}).fit(base, "tiger")(base)))
    assert one.calls == 0


@pytest.mark.usefixtures("blank")
def test_the_tolerance_is_a_bound_that_a_share_must_be_below(base: Denoiser, judge: Callable[[Seen], Judge]) -> None:
    for tolerance, calls in ((0.25, 2), (0.26, 1)):
        one = judge(script(0.25, 0.5))
        Debias(**{**SMALL, "tolerance": tolerance}).fit(base, "tiger")
        assert one.calls == calls


def test_each_round_draws_anew_from_the_edited_model_in_every_phrase(
    base: Denoiser, judge: Callable[[Seen], Judge], monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[tuple[Denoiser, list[str], list[int], dict[str, Any]]] = []
    images = Denoiser.images

    def noted(self: Denoiser, prompts: list[str], seeds: list[int], **kw: Any) -> list[np.ndarray]:
        drawn.append((self, prompts, seeds, kw))
        return images(self, prompts, seeds, **kw)

    monkeypatch.setattr(Denoiser, "images", noted)
    judge(script(1.0))
    Debias(**SMALL, guidance=2.0).fit(base, "tiger")
    assert [prompts for _, prompts, _, _ in drawn] == [["tiger", "a tiger", "a picture of a tiger", "tiger"]] * 3
    assert len({s for _, _, seeds, _ in drawn for s in seeds}) == 12
    assert all(kw == {"steps": 2, "guidance": 2.0} for *_, kw in drawn)
    drifts = [moved(base, model, "tiger") for model, *_ in drawn]
    assert drifts[0] < 1e-5 < drifts[1] < drifts[2]


def test_the_loop_arrives(base: Denoiser, judge: Callable[[Seen], Judge]) -> None:
    said = ["red", "blue"]
    means = [np.mean(base.images([a] * 6, range(6), steps=3), axis=0) for a in said]

    def nearest(pictures: list[np.ndarray]) -> list[str]:
        return [said[int(np.argmin([((p - m) ** 2).sum() for m in means]))] for p in pictures]

    one = judge(nearest)
    settings = {
        **SMALL,
        "rounds": 4,
        "batch": 9,
        "sampler_steps": 3,
        "tolerance": 0.2,
        "rate": 0.5,
        "wording": "{attribute}",
    }
    eraser = Debias(**settings)
    edited = eraser.fit(base, "tiger", ["lion"])(base)

    def share(model: Denoiser) -> float:  # of other seeds
        rng = torch.Generator().manual_seed(9)
        return float(sum(eraser.shares(model, Concept("tiger"), said, one, rng)[0] for _ in range(2)) / 2)

    assert share(base) > 0.75
    assert abs(share(edited) - 0.5) < 0.25
    assert moved(base, edited, "tiger") > 1.5 * moved(base, edited, "lion")


class Stopped(Log):
    """A run that is killed after so many rounds."""

    def __init__(self, path: Path, rounds: int = 99) -> None:
        super().__init__(path)
        self.left, self.starts = rounds, []

    def stage(self, name: str, total: int) -> Callable[[int], None]:
        return self.starts.append

    def loss(self, value: torch.Tensor) -> None:
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt


@pytest.mark.parametrize("mixes", ["rows", "outputs"])
def test_ctrl_c_and_again_is_as_if_nothing_had_happened(
    base: Denoiser, judge: Callable[[Seen], Judge], tmp_path: Path, mixes: str
) -> None:
    def by_pixel(pictures: list[np.ndarray]) -> list[str]:  # depends on the seeds
        return ["red" if int(p[0, 0, 0]) % 2 else "blue" for p in pictures]

    path, eraser = (
        tmp_path / "c.safetensors",
        Debias(**{**SMALL, "sampler_steps": 1, "tolerance": 1e-3, "mixes": mixes, "batch": 3}),
    )
    judge(by_pixel)
    straight = eraser.fit(base, "tiger")
    with pytest.raises(KeyboardInterrupt):
        eraser.fit(base, "tiger", log=Stopped(path, 2))
    log, one = Stopped(path), judge(by_pixel)
    resumed = eraser.fit(base, "tiger", log=log)
    assert (log.starts[0], one.calls) == (2, 1)
    assert all(torch.equal(t, resumed.tensors()[k]) for k, t in straight.tensors().items())
    assert not path.exists()
    again = Debias(**{**SMALL, "sampler_steps": 1, "tolerance": 1e-3, "mixes": mixes, "batch": 3, "seed": 1}).fit(
        base, "tiger"
    )
    assert any(not torch.equal(t, again.tensors()[k]) for k, t in straight.tensors().items())


def test_presets_are_the_two_releases() -> None:
    old, new = Debias.preset("2023"), Debias.preset("2025")
    assert (old.mixes, old.rate, old.solver) == ("outputs", 0.1, "uce-2023")
    assert (new.mixes, new.rate, new.solver) == ("rows", 1.0, "uce-2025")
    assert (old.batch, new.batch) == (50, 10)
    for one in (old, new):
        assert (one.rounds, one.tolerance, one.sampler_steps, one.guidance) == (30, 0.05, 20, 7.5)
        assert one.wording == "{attribute}"


@pytest.mark.parametrize("preset", ["2023", "2025"])
def test_presets_need_no_list_of_what_stays(base: Denoiser, preset: str) -> None:
    edit = Debias.preset(preset, attributes="red,blue", classifier="").fit(base, "tiger")
    assert moved(base, edit(base), "tiger") > 0.01


# -- what it refuses -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("asked", [{"attributes": "red,red"}, {"attributes": "red,blue", "wording": "{atribute} one"}])
def test_attributes_that_read_alike_are_refused(base: Denoiser, asked: dict[str, str]) -> None:
    with pytest.raises(UsageError, match="^Debias.attributes: expected different embeddings, got 'red,"):
        Debias(**asked, classifier="").fit(base, "tiger")


@pytest.mark.parametrize("ratios", ["1", "1,2,3", "1,0", "1,-1", "1,two", "1,", "nan,1"])
def test_ratios_are_a_number_for_each_attribute(base: Denoiser, ratios: str) -> None:
    with pytest.raises(UsageError) as caught:
        Debias(attributes="red,blue", ratios=ratios, classifier="").fit(base, "tiger")
    assert str(caught.value) == (
        f"Debias.ratios: expected a number above 0 for each of 2 attributes, got {ratios!r}; give 1,1 or such"
    )


def test_an_attribute_that_the_classifier_never_sees_is_refused(base: Denoiser) -> None:
    with pytest.raises(UsageError, match="Debias.attributes: moji-style has no 'nto'; did you mean 'noto'"):
        Debias(attributes="noto,nto", classifier="moji-style").fit(base, "tiger")
