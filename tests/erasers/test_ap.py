"""AP: its losses against NumPy, its search's gradient against differences, and a search that finds what is hurt most."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from oracles import esd as esd_oracle
from oracles import search as oracle
from torch import Generator, Tensor
from toys import MixtureDenoiser, differing, pipeline, snapshot, tiny
from watch import killed_and_resumed

from efface.core.concept import Concept
from efface.core.cond import Cond
from efface.core.denoiser import Denoiser
from efface.core.edit import load_edit
from efface.core.log import Log
from efface.erasers.ap import AP
from efface.erasers.parts.search import Search

WORDS = "lion, cat, house, moon"
SMALL = {"steps": 1, "batch": 3, "sampler_steps": 4, "templates": False, "reuse": 1, "vocabulary": WORDS}


@dataclass
class Call:
    model: Denoiser
    x: Tensor
    t: Tensor
    ids: Tensor
    out: np.ndarray


class Watch(Log):
    """Losses of a training, and the predictions each was made of."""

    def __init__(self, calls: list[Call], count: int = 5) -> None:
        super().__init__()
        self.calls, self.count = calls, count
        self.losses: list[float] = []
        self.used: list[list[Call]] = []

    def loss(self, value: Tensor) -> None:
        self.losses.append(float(value))
        self.used.append(self.calls[-self.count :])
        self.calls.clear()


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Watch:
    calls: list[Call] = []
    predict = Denoiser.predict

    def noted(self: Denoiser, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        out = predict(self, x, t, cond)
        calls.append(Call(self, x, t, cond.expand(len(x)).ids, out.detach().double().numpy()))
        return out

    monkeypatch.setattr(Denoiser, "predict", noted)
    return Watch(calls)


@pytest.fixture(params=["epsilon", "v_prediction"])
def model(request: pytest.FixtureRequest, shared: Denoiser, velocity: Denoiser) -> Denoiser:
    return shared if request.param == "epsilon" else velocity


def search_of(base: Denoiser, words: list[str], **changes: object) -> Search:
    settings = {"steps": 1, "lr": 0.1, "temperature": 1.0, "hard": True, "top": 9, "templates": False, **changes}
    return Search(base, (Concept("tiger"),), words, torch.ones(1, len(words), dtype=torch.bool), **settings)


# -- the objective -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("space", ["native", "x0"])
@pytest.mark.parametrize(("eta", "keep"), [(0.0, 1.0), (2.0, 0.3)])
def test_the_loss_is_the_papers(
    model: Denoiser, watch: Watch, eta: float, keep: float, space: Literal["native", "x0"]
) -> None:
    AP(eta=eta, keep=keep, space=space, **{**SMALL, "steps": 2, "lr": 1e-2}).fit(model, "tiger", log=watch)
    for value, (concept, null, student, before, after) in zip(watch.losses, watch.used, strict=True):
        assert null.model is concept.model is before.model is model
        assert student.model is after.model is not model
        assert torch.equal(before.x, after.x)
        assert not torch.equal(before.x, concept.x)
        assert torch.equal(before.t, concept.t)
        assert all(torch.equal(c.ids, model.embed([""]).ids.expand(3, -1)) is (c is null) for c in (null, concept))
        known = {tuple(model.embed([w]).ids[0].tolist()) for w in WORDS.split(",")}
        assert {tuple(i.tolist()) for i in before.ids} <= known
        assert torch.equal(before.ids, after.ids)
        bars = model.schedule.alpha[null.t].double().square().numpy()
        square = {
            "native": oracle.square,
            "x0": lambda a, b, bars=bars: (
                oracle.square(a, b, bars) if model.schedule.prediction == "epsilon" else oracle.square_v(a, b, bars)
            ),
        }[space]
        goal = esd_oracle.goal(null.out, concept.out, eta)
        assert value == pytest.approx(square(student.out, goal) + keep * square(after.out, before.out), rel=2e-4)
    assert abs(watch.used[1][4].out - watch.used[1][3].out).max() > 1e-3  # by then the word is hurt


def test_a_target_takes_the_place_of_the_empty_prompt(base: Denoiser, watch: Watch) -> None:
    watch.count = 6
    AP(eta=1.0, **SMALL).fit(base, Concept("tiger", "cat"), log=watch)
    concept, null, target, student, before, after = watch.used[0]
    for call, prompt in ((null, ""), (concept, "tiger"), (target, "cat"), (student, "tiger")):
        assert torch.equal(call.ids, base.embed([prompt] * 3).ids)
    want = oracle.square(student.out, target.out - (concept.out - null.out)) + oracle.square(after.out, before.out)
    assert watch.losses[0] == pytest.approx(want, rel=1e-4)


# -- the search ----------------------------------------------------------------------------------------------------


def differences(value: Callable[[], float], search: Search, h: float = 0.02) -> np.ndarray:
    """Slope of `value` in every logit, by central differences."""
    logits, out = search.leaves["logits"], np.zeros(len(search.words))
    for k in range(len(out)):
        ends = []
        for step in (h, -2 * h, h):
            with torch.no_grad():
                logits[0, k] += step
            ends.append(value())
        out[k] = (ends[0] - ends[1]) / (2 * h)
    return out


def gradient(search: Search, value: Tensor) -> np.ndarray:
    return torch.autograd.grad(value, search.leaves["logits"])[0][0].double().numpy()


@pytest.mark.parametrize("frozen_gradient", [True, False])
def test_the_search_climbs_the_whole_slope_or_the_released_part(frozen_gradient: bool) -> None:
    base, student = (tiny(seed=s, dtype=torch.float64) for s in (0, 1))
    search = search_of(base, [w.strip() for w in WORDS.split(",")], hard=False)
    rng = Generator().manual_seed(0)
    x, t = torch.randn(3, *base.latent_shape, generator=rng, dtype=torch.float64), torch.tensor([900, 500, 100])
    picked, noise, eraser = torch.zeros(3, dtype=torch.long), search.noise(3, rng), AP(frozen_gradient=frozen_gradient)
    got = gradient(search, eraser.hurt(base, student, x, t, search.found(picked, noise)))
    with torch.no_grad():
        still = base.predict(x, t, search.found(picked, noise))

    def whole() -> float:
        with torch.no_grad():
            return float(eraser.hurt(base, student, x, t, search.found(picked, noise)))

    def part() -> float:  # the frozen model's answer stays what it was
        with torch.no_grad():
            return float((student.predict(x, t, search.found(picked, noise)) - still).square().mean())

    slopes = {True: differences(whole, search), False: differences(part, search)}
    size = np.linalg.norm(slopes[frozen_gradient])
    assert size > 1e-4
    assert np.linalg.norm(got - slopes[frozen_gradient]) < 0.01 * size
    assert np.linalg.norm(got - slopes[not frozen_gradient]) > 0.1 * size


def test_a_hard_search_follows_each_words_row(base: Denoiser) -> None:
    base, student = (tiny(seed=s, dtype=torch.float64) for s in (0, 1))
    words = [w.strip() for w in WORDS.split(",")]
    search = search_of(base, words)
    rng = Generator().manual_seed(0)
    x, t = torch.randn(1, *base.latent_shape, generator=rng, dtype=torch.float64), torch.tensor([500])
    picked, noise = torch.zeros(1, dtype=torch.long), search.noise(1, rng)
    found = search.found(picked, noise)
    got = gradient(search, AP().hurt(base, student, x, t, found))
    slopes = np.zeros(4)
    for i, row in enumerate(base.embed(words).tokens):
        ends = []
        for h in (1e-4, -1e-4):
            with torch.no_grad():
                cond = replace(found, tokens=found.tokens.detach() + h * row)
                ends.append(float(AP().hurt(base, student, x, t, cond)))
        slopes[i] = (ends[0] - ends[1]) / 2e-4
    want = oracle.straight(oracle.soft(np.zeros(4), noise[0].numpy(), 1.0), slopes, 1.0)
    np.testing.assert_allclose(got, want, atol=2e-3 * np.abs(want).max())


class Hurt(MixtureDenoiser):
    """A mixture whose means moved, for each prompt by how much its rows lie along one direction."""

    direction: Tensor

    def means(self, cond: Cond) -> Tensor:
        along = cond.tokens.flatten(1) @ self.direction
        return super().means(cond) + along[:, None, None, None]


def test_a_soft_word_is_of_all_candidates(base: Denoiser, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[Search, Tensor, Cond]] = []
    found = Search.found

    def noted(self: Search, picked: Tensor, noise: Tensor) -> Cond:
        seen.append((self, noise, found(self, picked, noise)))
        return seen[-1][2]

    monkeypatch.setattr(Search, "found", noted)
    words = "lion, cat, house, moon, bird, red, car"
    AP(mode="soft", temperature=5.0, **{**SMALL, "vocabulary": words}).fit(base, "tiger")
    search, noise, out = seen[0]  # every word is as likely yet
    assert len(search.words) == 7
    rows = base.embed(search.words).tokens.double().numpy()
    for one, g in zip(out.tokens.detach().double().numpy(), noise.numpy(), strict=True):
        weights = oracle.soft(np.zeros(7), g, 5.0)
        np.testing.assert_allclose(one, np.einsum("n,ntd->td", weights, rows), atol=1e-5)
        assert weights.min() > 0.01  # the least of them would be missed


def test_it_finds_the_word_that_is_hurt_most() -> None:
    pipe = pipeline(dtype=torch.float64)
    base, student = MixtureDenoiser(pipe), Hurt(pipe)
    words = ["lion", "cat", "house", "moon", "bird", "red"]
    rows = base.embed(words).tokens.flatten(1)
    for most in (1, 4):
        pull = torch.tensor([2.0 if i == most else 1.0 for i in range(6)], dtype=torch.float64)
        student.direction = torch.linalg.pinv(rows) @ pull
        search, rng = search_of(base, words, temperature=2.0, lr=0.2), Generator().manual_seed(0)
        for _ in range(30):
            x = torch.randn(8, *base.latent_shape, generator=rng, dtype=torch.float64)
            t = torch.randint(1000, (8,), generator=rng)
            found = search.found(torch.zeros(8, dtype=torch.long), search.noise(8, rng))
            search.ascend(AP().hurt(base, student, x, t, found))
        with torch.no_grad():
            x, t, n = torch.zeros(6, *base.latent_shape, dtype=torch.float64), torch.full((6,), 500), range(6)
            cond = base.embed(words)
            damage = oracle.damage(student.predict(x, t, cond).numpy(), base.predict(x, t, cond).numpy())
        assert max(n, key=damage.__getitem__) == most == int(search.shares[0].argmax())
        assert float(search.shares[0, most]) > 0.5


def test_each_step_climbs_while_the_weights_descend(base: Denoiser, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[Tensor] = []
    descend = Search.descend
    monkeypatch.setattr(Search, "descend", lambda self, g: (steps.append(-g["logits"]), descend(self, g))[1])
    edit = AP(search_lr=0.05, **{**SMALL, "steps": 6, "lr": 1e-2, "reuse": 6}).fit(base, "tiger")
    assert len(steps) == 6
    assert float(steps[0].abs().max()) == 0.0  # nothing is hurt yet
    assert float(steps[-1].abs().max()) > 0.0
    shares = edit.header.notes["found"]["tiger"]["shares"]
    assert set(shares) == {"lion", "cat", "house", "moon"}
    assert all(s[0] == s[1] == 0.25 for s in shares.values())
    assert len({s[-1] for s in shares.values()}) > 1


# -- training ------------------------------------------------------------------------------------------------------

LEARN = {"steps": 10, "batch": 3, "sampler_steps": 3, "lr": 2e-3, "reuse": 10, "templates": False}


def hurt(base: Denoiser, edited: Denoiser, word: str) -> float:
    """Mean square change of what is predicted for a word on latents of it that training has not seen."""
    x, t = base.sample(base.embed([word]), seeds=range(900, 904), steps=4, until=2), base.timesteps(4)[2].expand(4)
    with torch.no_grad():
        a, b = (m.predict(x, t, base.embed([word])).double().numpy() for m in (base, edited))
    return oracle.square(a, b)


def test_keeping_found_words_spares_them(base: Denoiser) -> None:
    with_, without = (AP(keep=k, vocabulary="lion, dog", **LEARN).fit(base, "tiger")(base) for k in (3.0, 0.0))
    for word in ("lion", "dog"):
        assert hurt(base, with_, word) < 0.7 * hurt(base, without, word)
    assert hurt(base, with_, "tiger") > 0.5 * hurt(base, without, "tiger")


@pytest.mark.parametrize("name", list(AP.presets))
def test_presets_run(base: Denoiser, name: str) -> None:
    edit = AP.preset(name, steps=2, batch=2, sampler_steps=3, vocabulary=WORDS).fit(base, "tiger")
    assert differing(snapshot(base), snapshot(edit(base)))


def test_killed_and_run_again_is_as_if_nothing_had_happened(base: Denoiser, tmp_path: Path) -> None:
    some = {
        **SMALL,
        "steps": 27,
        "batch": 1,
        "sampler_steps": 2,
        "reuse": 25,
        "lr": 1e-3,
        "rank": 2,
        "source": "edited",
    }
    straight, resumed, _ = killed_and_resumed(
        lambda log: AP(**some).fit(base, "tiger", log=log), tmp_path / "c.safetensors", stop=26, start=25
    )
    assert all(torch.equal(t, resumed.tensors()[k]) for k, t in straight.tensors().items())
    assert resumed.header.notes == straight.header.notes
    straight.save(tmp_path / "e.safetensors")
    assert load_edit(tmp_path / "e.safetensors").header.notes == straight.header.notes


def test_a_file_of_other_words_is_another_training(base: Denoiser, tmp_path: Path) -> None:
    words, recipes = tmp_path / "words.txt", set()
    for given in ("lion\ncat\n", "lion\ndog\n"):
        words.write_text(given, encoding="utf-8")
        log = Log()
        AP(**{**SMALL, "steps": 0, "vocabulary": str(words)}).fit(base, "tiger", log=log)
        recipes.add(log.recipe)
    assert len(recipes) == 2
