"""CPE: what each stage trains on, that it arrives, and that fifty concepts are one fit. The losses themselves: core/test_gates.py."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor
from toys import differing, moved, snapshot

from efface.core.branches.gates import Sites, gated
from efface.core.concept import Concept
from efface.core.denoiser import Denoiser
from efface.core.edit import Adapter, load_edit
from efface.core.log import Log
from efface.erasers.cpe import CPE
from efface.erasers.parts.anchors import anchor_pool, concept_rows
from efface.erasers.parts.lipschitz import of_sites

FEW = {"steps": 2, "opening": 3, "rounds": 2, "everyday": 6, "anchors": 3, "batch": 4, "attacks": 2}


@dataclass
class Call:
    rows: Tensor
    wish: Tensor | None
    scale: Tensor
    value: Tensor
    leaves: dict[str, Tensor]


class Watch(Log):
    """The losses of a training, each with the parts it was made of."""

    def __init__(self, calls: list[Call], checkpoint: Path | None = None, stop: int | None = None) -> None:
        super().__init__(checkpoint)
        self.calls, self.stop = calls, stop
        self.losses: list[float] = []
        self.parts: list[list[Call]] = []
        self.begun: list[int] = []  # the first is the step that training started from

    def stage(self, name: str, total: int) -> Callable[[int], None]:
        return self.begun.append

    def loss(self, value: Tensor) -> None:
        self.losses.append(float(value))
        self.parts.append(self.calls[:])
        self.calls.clear()
        if len(self.losses) == self.stop:
            raise KeyboardInterrupt


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Watch:
    calls: list[Call] = []
    miss = Sites.miss

    def noted(self: Sites, leaves: dict[str, Tensor], rows: Tensor, wish: Tensor | None, scale: Tensor) -> Tensor:
        out = miss(self, leaves, rows, wish, scale)
        copied = [None if x is None else x.detach().clone() for x in (rows, wish, scale, out)]
        calls.append(Call(*copied, {k: t.detach().clone() for k, t in leaves.items()}))  # type: ignore[arg-type]
        return out

    monkeypatch.setattr(Sites, "miss", noted)
    return Watch(calls)


def kinds(watch: Watch) -> list[int]:
    """How many parts each step's loss has: 1 in an attack, 2 in the first erasing (anchors, concept), 3 in a defence."""
    return [len(parts) for parts in watch.parts]


# -- what each stage trains on ----------------------------------------------------------------------------------------


def test_erasing_attacks_and_defences_take_turns(base: Denoiser, watch: Watch) -> None:
    CPE(**FEW).fit(base, "tiger", log=watch)
    assert kinds(watch) == [2] * 6 + [1] * 2 + [3] * 2 + [1] * 2 + [3] * 2  # it ends in a defence
    CPE(**{**FEW, "rounds": 0}).fit(base, "tiger", log=watch)
    assert kinds(watch)[14:] == [2] * 6


def test_the_learning_rate_falls_by_a_cosine_in_each_stage() -> None:
    plan = CPE(steps=4, opening=2, rounds=1).plan()
    assert [stage for stage, _ in plan] == [0] * 8 + [1] * 4 + [2] * 4
    assert [fall for _, fall in plan[8:12]] == pytest.approx([1, 0.5 + 0.5 * 0.5**0.5, 0.5, 0.5 - 0.5 * 0.5**0.5])
    assert [fall for _, fall in plan[:8:2]] == pytest.approx([fall for _, fall in plan[12:]])


def test_a_step_goes_as_far_as_its_stage_allows(base: Denoiser) -> None:
    # Adam's first step on U is the learning rate; a defence's is a tenth
    sites = Sites.of(base)
    unit = float(sites.tensors({"query": torch.empty(0), "up": torch.ones_like(sites.maps)[None]})["up"].max())
    first = CPE(**{**FEW, "steps": 1, "opening": 1, "rounds": 0, "lr": 1e-3}).fit(base, "tiger")
    assert float(first.tensors()["up"].abs().max()) == pytest.approx(1e-3 * unit, rel=1e-3)
    second = CPE(**{**FEW, "steps": 1, "opening": 1, "rounds": 1, "lr": 1e-3}).fit(base, "tiger")
    moved = (second.tensors()["gate"] - first.tensors()["gate"]).abs().max()
    assert 0 < float(moved) < 1.1e-4


@pytest.mark.parametrize("concept", [Concept("tiger", "cat", ("leopard",)), Concept("noto", kind="style")])
def test_a_concept_is_pushed_past_its_target(base: Denoiser, watch: Watch, concept: Concept) -> None:
    CPE(**{**FEW, "batch": 40, "eta": 0.7}).fit(base, concept, log=watch)
    rows, wish = watch.parts[0][1].rows[0], watch.parts[0][1].wish
    said, aims, counts = concept_rows(base, [concept])
    assert wish is not None
    met = set()
    for row, want in zip(rows, wish[0], strict=True):
        i = int((said[0] - row).flatten(1).norm(dim=1).argmin())
        met.add(i)
        torch.testing.assert_close(row, said[0, i])
        torch.testing.assert_close(want, 1.7 * (aims[0, i] - said[0, i]))
    assert met == set(range(int(counts[0])))  # forty draws meet all


def test_concepts_with_fewer_prompts_draw_their_own(base: Denoiser, watch: Watch) -> None:
    erase = [Concept("tiger", "cat"), Concept("noto", kind="style")]
    CPE(**{**FEW, "batch": 60}).fit(base, erase, log=watch)
    said, _, counts = concept_rows(base, erase)
    for i, rows in enumerate(watch.parts[0][1].rows):
        met = {int((said[i] - row).flatten(1).norm(dim=1).argmin()) for row in rows}
        assert met == set(range(int(counts[i])))


def test_the_loss_is_the_sum_of_its_parts(base: Denoiser, watch: Watch) -> None:
    CPE(**{**FEW, "anchor_weight": 7.0}).fit(base, ["tiger", "car"], log=watch)
    for value, parts in zip(watch.losses, watch.parts, strict=True):
        said = [7 * float(p.value.mean()) if p.wish is None else float(p.value.mean()) for p in parts]
        assert value == pytest.approx(sum(said), rel=1e-4)
        assert [p.wish is None for p in parts] == [True, False, False][: len(parts)] if len(parts) > 1 else [False]


def test_an_attack_and_its_defence_are_of_the_same_embeddings(base: Denoiser, watch: Watch) -> None:
    CPE(**{**FEW, "steps": 8, "attack_lr": 0.05, "eta": 0.5, "batch": 24}).fit(base, Concept("tiger", "cat"), log=watch)
    said, aims, _ = concept_rows(base, [Concept("tiger", "cat")])
    found: dict[int, set[int]] = {}
    finals = []
    for stage in (1, 3):  # of 24 + 8 + 8 + 8 + 8 steps
        last = watch.parts[24 + 8 * stage - 1][0]
        assert last.wish is not None
        for row, wish in zip(last.rows[0], last.wish[0], strict=True):  # E_t + δ shall do what -δ undoes
            assert float((said[0] - (row + wish)).flatten(1).norm(dim=1).min()) < 1e-3
        finals += list(-last.wish[0])
    for stage in (2, 4):
        found[stage] = set()
        for parts in watch.parts[24 + 8 * (stage - 1) : 24 + 8 * stage]:
            defended = parts[2]
            assert defended.wish is not None
            for row, wish, plain in zip(defended.rows[0], defended.wish[0], parts[1].rows[0], strict=True):
                added = row - plain
                i = int((said[0] - plain).flatten(1).norm(dim=1).argmin())
                torch.testing.assert_close(wish, 1.5 * (aims[0, i] - said[0, i]) - added, atol=1e-4, rtol=1e-4)
                gaps = [float((added - f).norm()) for f in finals]
                found[stage].add(min(range(4), key=gaps.__getitem__))
                assert min(gaps) < 0.2 * float(added.norm())  # but for the attack's very last step
    assert found == {2: {0, 1}, 4: {0, 1, 2, 3}}  # the bank keeps those of earlier rounds


def test_without_a_bank_only_the_last_attack_is_met(base: Denoiser, watch: Watch) -> None:
    CPE(**{**FEW, "steps": 6, "attack_lr": 0.05, "bank": False, "batch": 12}).fit(base, "tiger", log=watch)
    early = watch.parts[18 + 5][0].wish, watch.parts[18 + 17][0].wish
    first, second = (-w[0] for w in early if w is not None)
    for parts in watch.parts[-6:]:
        for added in parts[2].rows[0] - parts[1].rows[0]:
            near = [float((d - added).flatten(1).norm(dim=1).min()) for d in (first, second)]
            assert near[1] < near[0]


@pytest.mark.parametrize("bound", ["layers", "theorem", "released", "none"])
def test_anchors_weigh_by_how_far_they_could_move_the_output(base: Denoiser, watch: Watch, bound: str) -> None:
    CPE(**FEW, bound=bound).fit(base, "tiger", ["lion"], log=watch)
    anchors, erased = watch.parts[0]
    sites = Sites.of(base)
    pool, _ = anchor_pool(base, [Concept("tiger")], [Concept("lion")], concept_rows(base, [Concept("tiger")])[0], 6, 9)
    bounds = torch.tensor(of_sites(base, sites.widths, pool, bound == "released"))
    if bound == "layers":  # keys among keys, values among values: sites take turns
        bounds = torch.stack([bounds[::2] / bounds[::2].mean(), bounds[1::2] / bounds[1::2].mean()], 1).flatten()
    careful = sites.even if bound == "none" else sites.even * bounds / bounds.mean()
    torch.testing.assert_close(anchors.scale, careful)
    torch.testing.assert_close(erased.scale, careful if bound == "released" else sites.even)
    assert anchors.rows.shape[1] == 4
    torch.testing.assert_close(anchors.rows[0, -1], base.embed([""]).tokens[0])


def test_no_pass_of_the_denoiser(base: Denoiser, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*args: object, **kwargs: object) -> None:
        raise AssertionError("predict was called")

    monkeypatch.setattr(Denoiser, "predict", never)
    assert isinstance(CPE(**FEW).fit(base, "tiger"), Adapter)


# -- that it arrives --------------------------------------------------------------------------------------------------

LEARN = {"steps": 60, "opening": 2, "everyday": 12, "batch": 2, "anchors": 4, "lr": 3e-3, "anchor_weight": 30.0}


def test_the_gate_opens_for_the_concept_and_its_target_comes(base: Denoiser, watch: Watch) -> None:
    edit = CPE(**LEARN, rounds=0, eta=0.0, site_rank=4).fit(base, Concept("tiger", "cat"), ["lion"], log=watch)
    assert isinstance(edit, Adapter)
    start, end = watch.parts[0][1], watch.parts[-1][1]
    assert float(end.value) < 0.5 * float(start.value)
    t = edit.branch.tensors
    opening = {
        p: float(gated(base.embed([p]).tokens[None], t["query"], t["key"], t["gate"])[0].max())
        for p in ("a tiger", "a lion", "a boat", "")
    }
    assert opening["a tiger"] > 1 + max(opening[p] for p in ("a lion", "a boat", ""))
    edited = edit(base)
    assert moved(base, edited, "a tiger") > 3 * max(moved(base, edited, p) for p in ("a lion", "a boat", ""))


def test_attacks_bring_the_concept_back_and_defences_take_it_again(base: Denoiser, watch: Watch) -> None:
    some = {**LEARN, "steps": 40, "everyday": 3, "anchors": 3}
    CPE(**some, rounds=1, attack_lr=0.03, attacks=2).fit(base, "tiger", ["lion"], log=watch)
    attack = [float(parts[0].value) for parts in watch.parts[80:120]]
    assert attack[-1] < 0.7 * attack[0]
    met = [parts[2] for parts in watch.parts[120:]]
    sites, (before, after) = Sites.of(base), (met[i].leaves for i in (0, -1))
    missed = [sum(float(sites.miss(now, c.rows, c.wish, c.scale)) for c in met) for now in (before, after)]
    assert missed[1] < 0.95 * missed[0]


def test_what_is_preserved_stays_closer_than_without(base: Denoiser) -> None:
    kept, free = (
        CPE(**{**LEARN, "anchor_weight": a}, rounds=0).fit(base, Concept("tiger", "cat"), ["lion", "house"])(base)
        for a in (30.0, 0.0)
    )
    assert moved(base, kept, "lion") < 0.5 * moved(base, free, "lion")
    assert moved(base, kept, "tiger") > 0.1


def test_fifty_concepts_are_one_fit_and_one_file(base: Denoiser, tmp_path: Path) -> None:
    names = [
        f"{a} {b}"
        for a in ("red", "blue", "happy", "sad", "stone")
        for b in base.words(40)
        if b not in {"red", "blue", "stone"}
    ][:50]
    edit = CPE(**{**FEW, "rounds": 1, "opening": 6, "lr": 5e-3, "batch": 2}).fit(base, names, ["moon"])
    edit.save(tmp_path / "e.safetensors")
    again = load_edit(tmp_path / "e.safetensors")
    assert len(again.header.erase) == len(again.tensors()["gate"]) == 50
    assert (tmp_path / "e.safetensors").stat().st_size < 50 * 4 * (64 * (2 * 8 + 1) + 2 * (64 * 20 + 2 * 480)) + 16384
    assert moved(base, again(base), names[0]) > 0.02


# -- rituals ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stop", [26, 33])  # within an attack, within a defence
def test_ctrl_c_and_again_is_as_if_nothing_had_happened(base: Denoiser, tmp_path: Path, stop: int) -> None:
    path, some = tmp_path / "c.safetensors", {**FEW, "steps": 6, "opening": 4, "attack_lr": 0.1}
    straight = CPE(**some).fit(base, ["tiger", "car"], log=Watch([]))
    with pytest.raises(KeyboardInterrupt):
        CPE(**some).fit(base, ["tiger", "car"], log=Watch([], path, stop=stop))
    log = Watch([], path)
    resumed = CPE(**some).fit(base, ["tiger", "car"], log=log)
    assert (log.begun[0], len(log.losses)) == (25, 48 - 25)
    assert all(torch.equal(t, resumed.tensors()[k]) for k, t in straight.tensors().items())
    assert not path.exists()


def test_the_released_preset_reads_its_query_twice(base: Denoiser) -> None:
    few = {"steps": 1, "rounds": 1, "anchors": 2, "attacks": 2, "everyday": 3}
    t = CPE.preset("released", **few).fit(base, "tiger").tensors()
    assert torch.equal(t["query"], t["key"])
    assert (t["query"].shape[2], t["up"].shape[1]) == (16, 1)
    ours = CPE(**few).fit(base, "tiger").tensors()
    assert not torch.equal(ours["query"], ours["key"])
    assert (
        CPE.presets["released"]["rounds"] == 4
    )  # its five stages of erasing; the attack after the last changes nothing


def test_no_steps_no_change(base: Denoiser) -> None:
    edited = CPE(steps=0).fit(base, "tiger")(base)
    assert not differing(snapshot(base), snapshot(edited))
    assert moved(base, edited, "tiger") == 0
