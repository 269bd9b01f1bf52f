"""The search over words: candidates against brute force, the Gumbel softmax against NumPy, and what is kept of it."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from oracles import search as oracle
from torch import Generator, Tensor

from efface.core.concept import Concept
from efface.core.denoiser import Denoiser
from efface.core.errors import UsageError
from efface.core.prompts import ConceptPrompts
from efface.erasers.parts.search import MARKS, SHOWN, Search, candidates, choice, gumbel, listed, medoids, walks

TIGER = (Concept("tiger"),)
ALL = {"closest": 99, "picks": 99, "cluster_by": "embedding"}


def search(base: Denoiser, words: list[str], erase: tuple[Concept, ...] = TIGER, **changes: object) -> Search:
    settings = {"steps": 4, "lr": 0.1, "temperature": 1.0, "hard": True, "top": 3, "templates": True, **changes}
    return Search(base, erase, words, torch.ones(len(erase), len(words), dtype=torch.bool), **settings)


def row(base: Denoiser, word: str) -> np.ndarray:
    return base.embed([word]).tokens.double().numpy().ravel()


# -- candidates ----------------------------------------------------------------------------------------------------


def test_words_come_from_a_list_a_file_or_the_model(base: Denoiser, tmp_path: Path) -> None:
    assert listed("", base) == base.words(3000)
    assert "lion" in listed(" ", base)
    (tmp_path / "words.txt").write_text("red car\nlion\n\n", encoding="utf-8")
    for given in ("red car, lion ,", str(tmp_path / "words.txt")):
        assert candidates(base, TIGER, listed(given, base), **ALL)[0] == ["red car", "lion"]


def test_no_word_is_the_concept_by_any_of_its_names(base: Denoiser) -> None:
    erase = (Concept("Tiger", prompts=("red cat",)), Concept("caf\u00e9"))
    given = ["TIGER", "lion", " tiger ", "Red  Cat", "cafe\u0301", "Lion", "cat", ""]
    words, allowed = candidates(base, erase, given, **ALL)
    assert words == ["lion", "cat"]
    assert bool(allowed.all())
    with pytest.raises(UsageError, match="^vocabulary: expected words that are not erased themselves, got none; "):
        candidates(base, TIGER, ["Tiger", ""], **ALL)
    with pytest.raises(UsageError, match=r"^vocabulary: expected .* got no such file 'no such.txt'; "):
        listed("no such.txt", base)


def test_candidates_are_the_closest_to_each_concept(base: Denoiser) -> None:
    erase, given = (Concept("tiger"), Concept("car")), base.words(99)
    words, allowed = candidates(base, erase, given, ["stone"], closest=4, picks=9, cluster_by="embedding")
    for concept, mine in zip(erase, allowed.tolist(), strict=True):
        rest = [w for w in given if w not in ("tiger", "car", "stone")]
        near = sorted(rest, key=lambda w: float(np.linalg.norm(row(base, w) - row(base, concept.name))))[:4]
        assert {w for w, yes in zip(words, mine, strict=True) if yes} == {*near, "stone"}
    assert candidates(base, TIGER, ["lion"], ["lion"], **ALL)[0] == ["lion"]
    assert bool(allowed.any(0).all())  # no word that nobody may choose


def test_picks_stand_for_the_closest(base: Denoiser) -> None:
    given = base.words(99)
    near = sorted(
        (w for w in given if w != "tiger"), key=lambda w: float(np.linalg.norm(row(base, w) - row(base, "tiger")))
    )
    for cluster_by in ("embedding", "distance"):
        words, _ = candidates(base, TIGER, given, closest=12, picks=3, cluster_by=cluster_by)
        rows = torch.from_numpy(np.stack([row(base, w) for w in near[:12]]))
        points = (
            rows if cluster_by == "embedding" else (rows - torch.from_numpy(row(base, "tiger"))).norm(dim=1)[:, None]
        )
        assert set(words) == {near[i] for i in medoids(points.float(), 3).tolist()}


def test_medoids_are_the_best_of_all_choices() -> None:
    rng = np.random.default_rng(3)
    centres = np.array([[0, 0, 0], [9, 0, 0], [0, 9, 0]])
    points = np.concatenate([c + rng.normal(size=(4, 3)) for c in centres])

    def cost(chosen: tuple[int, ...]) -> float:
        return sum(min(float(np.linalg.norm(p - points[i])) for i in chosen) for p in points)

    best = min(itertools.combinations(range(12), 3), key=cost)
    assert tuple(sorted(medoids(torch.from_numpy(points).float(), 3).tolist())) == best
    assert medoids(torch.zeros(5, 2), 3).unique().numel() == 3  # equal points: no group is empty
    assert medoids(torch.from_numpy(points).float(), 12).tolist() == list(range(12))


# -- the Gumbel softmax --------------------------------------------------------------------------------------------


def drawn(seed: int = 0, n: int = 6) -> tuple[Tensor, Tensor]:
    rng = Generator().manual_seed(seed)
    return torch.randn(3, n, generator=rng, dtype=torch.float64), gumbel((3, n), rng).double()


def test_a_choice_is_the_papers() -> None:
    logits, noise = drawn()
    for tau in (0.5, 2.0):
        soft = np.stack([oracle.soft(a.numpy(), g.numpy(), tau) for a, g in zip(logits, noise, strict=True)])
        hard = choice(logits, noise, tau, hard=True, top=1)
        mixed = choice(logits, noise, tau, hard=False, top=2)
        np.testing.assert_array_equal(hard.numpy(), np.stack([oracle.hard(y) for y in soft]))
        np.testing.assert_allclose(mixed.numpy(), np.stack([oracle.kept(y, 2) for y in soft]), rtol=1e-12)
        np.testing.assert_allclose(choice(logits, noise, tau, hard=False, top=99).numpy(), soft, rtol=1e-12)


def test_a_hard_choice_has_the_gradient_of_the_soft_one() -> None:
    logits, noise = drawn()
    slopes = torch.randn(3, 6, generator=Generator().manual_seed(9), dtype=torch.float64)
    leaf = logits.clone().requires_grad_(True)
    (g,) = torch.autograd.grad((choice(leaf, noise, 0.7, hard=True, top=1) * slopes).sum(), leaf)
    for i in range(3):
        y = oracle.soft(logits[i].numpy(), noise[i].numpy(), 0.7)
        np.testing.assert_allclose(g[i].numpy(), oracle.straight(y, slopes[i].numpy(), 0.7), rtol=1e-9)
        for k in range(6):  # and that is the slope of Σ s_j y_j
            up, down = (logits[i].numpy() + h * np.eye(6)[k] for h in (1e-5, -1e-5))
            ends = [float(slopes[i].numpy() @ oracle.soft(v, noise[i].numpy(), 0.7)) for v in (up, down)]
            assert float(g[i, k]) == pytest.approx((ends[0] - ends[1]) / 2e-5, abs=1e-6)


def test_the_foremost_word_comes_as_often_as_its_share(base: Denoiser) -> None:
    one = search(base, ["lion", "cat", "dog"], temperature=3.0)
    with torch.no_grad():
        one.leaves["logits"].copy_(torch.tensor([[1.0, 0.0, -1.0]]))
    noise = one.noise(20000, Generator().manual_seed(1))
    assert float(noise.mean()) == pytest.approx(0.5772, abs=0.02)
    assert float(noise.var()) == pytest.approx(np.pi**2 / 6, abs=0.05)
    picks = choice(one.leaves["logits"].detach().expand(20000, 3), noise, 3.0, hard=True, top=1).mean(0)
    torch.testing.assert_close(picks, one.shares[0], atol=0.015, rtol=0)  # four standard errors


# -- words as prompts ----------------------------------------------------------------------------------------------


def test_found_words_are_said_as_the_concept_is(base: Denoiser) -> None:
    erase = (Concept("tiger", prompts=("lion",)), Concept("red", kind="style"))
    words = ["cat", "dog"]
    one = search(base, words, erase)
    said = ConceptPrompts.of(erase).prompts
    replaced = [p.replace("a lion", "tiger").replace("a tiger", "tiger").replace("lion", "tiger") for p in said]
    for hot in (0, 1):
        noise = torch.full((len(said), 2), -50.0)
        noise[:, hot] = 50.0
        got = one.found(torch.arange(len(said)), noise)
        for i, (prompt, concept) in enumerate(zip(replaced, [0] * 6 + [1] * 7, strict=True)):
            word = words[hot]
            want = (
                prompt.replace("tiger", f"a {word}" if i % 3 else word) if concept == 0 else prompt.replace("red", word)
            )
            assert torch.equal(got.ids[i], base.embed([want]).ids[0]), want
            torch.testing.assert_close(got.tokens[i], base.embed([want]).tokens[0], atol=1e-5, rtol=0)
            assert torch.equal(got.mask[i], base.embed([want]).mask[0])


def test_a_soft_word_is_the_mean_of_rows(base: Denoiser) -> None:
    words = ["cat", "dog", "house", "moon"]
    one = search(base, words, hard=False, top=2, templates=False, temperature=0.8)
    noise = one.noise(3, Generator().manual_seed(2))
    got = one.found(torch.zeros(3, dtype=torch.long), noise).tokens.detach().double().numpy()
    for i in range(3):
        y = oracle.kept(oracle.soft(np.zeros(4), noise[i].numpy(), 0.8), 2)
        want = sum(share * row(base, w) for share, w in zip(y, words, strict=True))
        np.testing.assert_allclose(got[i].ravel(), want, atol=1e-5)


def test_a_word_that_is_barred_is_never_found(base: Denoiser) -> None:
    erase = (Concept("tiger"), Concept("car"))
    one = Search(
        base, erase, ["cat", "dog", "boat"], torch.tensor([[True, False, True], [False, True, False]]),
        steps=1, lr=1.0, temperature=1.0, hard=False, top=9, templates=False,
    )  # fmt: skip
    cond = one.found(torch.tensor([0] * 40 + [1] * 40), one.noise(80, Generator().manual_seed(0)))
    known = {tuple(base.embed([w]).ids[0].tolist()): w for w in one.words}
    seen = [known[tuple(ids.tolist())] for ids in cond.ids]
    assert set(seen[:40]) == {"cat", "boat"}
    assert set(seen[40:]) == {"dog"}
    one.ascend(cond.tokens.square().sum())  # no gradient is NaN where a logit is -∞
    assert bool(one.leaves["logits"].isfinite().all())
    assert one.shares[1].tolist() == [0.0, 1.0, 0.0]


def test_it_climbs(base: Denoiser) -> None:
    one = search(base, ["cat", "dog", "house"])
    goal = base.embed(["house"]).tokens
    rng = Generator().manual_seed(0)
    for _ in range(40):
        found = one.found(torch.zeros(8, dtype=torch.long), one.noise(8, rng))
        one.ascend((found.tokens * goal).sum(dim=(1, 2)).mean())
    assert one.words[int(one.shares[0].argmax())] == "house"


# -- what is kept --------------------------------------------------------------------------------------------------


def test_what_was_found_is_kept_with_the_state(base: Denoiser) -> None:
    words = base.words(99)
    one, two = search(base, words, steps=120), search(base, words, steps=120)
    assert one.marks == [*range(0, 120, 3), 120]
    assert len(one.marks) <= MARKS + 1
    for step in range(120):
        one.note(step)
        with torch.no_grad():
            one.leaves["logits"][0, words.index("moon")] += 0.1
        if step == 60:
            two.restore(one.state())
        if step > 60:
            two.note(step)
            with torch.no_grad():
                two.leaves["logits"].copy_(one.leaves["logits"])
    notes = one.notes()
    assert notes == two.notes()
    found = notes["found"]["tiger"]
    assert found["of"] == len(words)
    assert found["steps"] == one.marks
    assert len(found["shares"]) == SHOWN
    assert next(iter(found["shares"])) == "moon"
    n = len(words)
    want = [np.exp(0.1 * s) / (n - 1 + np.exp(0.1 * s)) for s in one.marks]
    np.testing.assert_allclose(found["shares"]["moon"], want, atol=1e-4)


def test_two_walks_share_noise_and_level(base: Denoiser) -> None:
    one = search(base, ["lion", "cat"], templates=False)
    got = walks(base, base.embed(["tiger"]), one, Generator().manual_seed(3), batch=4, reuse=2, steps=3, guidance=2.0)
    first, second = next(got), next(got)
    assert torch.equal(first[4], second[4])  # the words stay with their trajectories
    assert not torch.equal(first[4], next(got)[4])
    levels = base.timesteps(3).tolist()
    for x, x_found, t, picked, noise in (first, second):
        assert picked.tolist() == [0] * 4
        for i in range(4):
            if t[i] == levels[0]:
                assert torch.equal(x[i], x_found[i])  # the start noise
            else:
                assert not torch.equal(x[i], x_found[i])
        words = [one.words[int(g.argmax())] for g in noise]
        rng = Generator().manual_seed(3)
        torch.randint(1, (4,), generator=rng)
        seeds = torch.randint(2**31, (4,), generator=rng).tolist()
        for i in range(4):
            for latent, word in ((x[i], "tiger"), (x_found[i], words[i])):
                alone = base.sample(
                    base.embed([word]), seeds=[seeds[i]], steps=3, guidance=2.0, until=levels.index(int(t[i]))
                )
                torch.testing.assert_close(latent, alone[0], atol=1e-4, rtol=0)
