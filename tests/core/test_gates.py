"""Gates per token: the residual, the choice among concepts, what is added at each site, and what training sees of it."""

from pathlib import Path

import numpy as np
import pytest
import torch
from oracles import cpe as oracle
from toys import differing, probe, snapshot

from efface.core.branches.gates import Sites, TokenGates, gated
from efface.core.concept import Concept
from efface.core.cond import Cond
from efface.core.denoiser import Denoiser
from efface.core.edit import Adapter, Header, load_edit
from efface.core.errors import UsageError
from efface.erasers.parts.gates import merge


@pytest.fixture(scope="module")
def sites(shared: Denoiser) -> Sites:
    return Sites.of(shared)


def leaves(
    sites: Sites, n: int, seed: int = 0, gate_rank: int = 3, site_rank: int = 2, tied: bool = False
) -> dict[str, torch.Tensor]:
    """Of gates that have learnt something: none is at its start."""
    rng = torch.Generator().manual_seed(seed)
    made = sites.leaves(n, gate_rank, site_rank, tied, rng)
    sizes = {"query": 0.3, "key": 0.3, "gate": 0.3, "down": 0.1, "up": 0.1}
    drawn = {k: t + sizes[k] * torch.randn(t.shape, generator=rng) for k, t in made.items()}
    for i, width in enumerate(sites.widths.values()):
        drawn["up"][:, i, :, width:] = 0  # what only fills up
    return drawn


def parts(branch: TokenGates) -> tuple[list[dict[str, np.ndarray]], list[list[np.ndarray]]]:
    """Concepts as the oracle takes them, and by site each concept's last factor."""
    t = {k: v.double().numpy() for k, v in branch.tensors.items()}
    concepts = [
        {"query": q, "key": k, "gate": g, "down": d}
        for q, k, g, d in zip(t["query"], t["key"], t["gate"], t["down"], strict=True)
    ]
    cuts = np.cumsum(list(branch.facts["sites"].values()))[:-1]
    return concepts, [list(block) for block in np.split(t["up"], cuts, axis=2)]


def added(branch: TokenGates, base: Denoiser, cond: Cond) -> dict[str, torch.Tensor]:
    rows = torch.empty(*cond.ids.shape, 0)
    return {site: add(rows, rows) for site, add in branch.additions(base)(cond).items()}


# -- what is added ----------------------------------------------------------------------------------------------------


def test_the_gate_and_its_residual_are_equation_8() -> None:
    rng = torch.Generator().manual_seed(0)
    q, k, w = (torch.randn(*s, generator=rng) for s in ((2, 8, 3), (2, 8, 3), (2, 8)))
    rows = torch.randn(2, 4, 5, 8, generator=rng)
    opening, residual = gated(rows, q, k, w)
    for n in range(2):
        for b in range(4):
            g, gathered = oracle.gate(*(x.double().numpy() for x in (rows[n, b], q[n], k[n], w[n])))
            np.testing.assert_allclose(opening[n, b].sigmoid(), g, atol=1e-5)
            np.testing.assert_allclose(residual[n, b], g[:, None] * gathered, atol=1e-4)


@pytest.mark.parametrize("n", [1, 3])
def test_each_token_gets_the_residual_of_the_most_open_concept_alone(base: Denoiser, sites: Sites, n: int) -> None:
    branch, cond = sites.branch(leaves(sites, n)), base.embed(["a tiger", "house", ""])
    concepts, ups = parts(branch)
    got = added(branch, base, cond)
    assert list(got) == [name.removesuffix(".weight") for name in base.params("xattn.kv")]
    for b, e in enumerate(cond.tokens.double().numpy()):
        if n > 1:
            best = {
                int(np.argmax([oracle.gate(e, c["query"], c["key"], c["gate"])[0][i] for c in concepts]))
                for i in range(16)
            }
            assert len(best) > 1 or b == 2  # the choice differs from token to token
        for i, out in enumerate(got.values()):
            np.testing.assert_allclose(out[b], oracle.added(e, concepts, i, ups[i]), atol=1e-4)


def test_the_choice_holds_where_gates_are_wide_open(base: Denoiser, sites: Sites) -> None:
    # σ(40) = σ(50) = 1 in float32: the larger one still wins
    some = leaves(sites, 2)
    cond = base.embed(["tiger"])
    some["query"] *= 0
    mean = cond.tokens.mean(1)[0]
    some["gate"] = torch.stack([40 * mean, 50 * mean]) / mean.square().sum()
    alone = {k: t[1:] for k, t in some.items()}
    both, one = (added(sites.branch(t), base, cond) for t in (some, alone))
    for site, out in both.items():
        torch.testing.assert_close(out, one[site])


def test_longer_prompts_have_gates_as_well(base: Denoiser, sites: Sites) -> None:
    branch, cond = sites.branch(leaves(sites, 2)), base.embed(["tiger"])
    more = Cond(*(torch.cat([rows, rows[:, :3]], 1) for rows in (cond.tokens, cond.ids, cond.mask, cond.words)))
    concepts, ups = parts(branch)
    out = list(added(branch, base, more).values())[-1]
    np.testing.assert_allclose(
        out[0], oracle.added(more.tokens[0].double().numpy(), concepts, len(ups) - 1, ups[-1]), atol=1e-4
    )


def test_beside_a_denoiser_it_adds_to_keys_and_values(
    base: Denoiser, sites: Sites, monkeypatch: pytest.MonkeyPatch
) -> None:
    edit = Adapter(sites.branch(leaves(sites, 2)))
    edited, plain = edit(base), probe(base, "a tiger")
    assert not differing(snapshot(base), snapshot(edited))
    got = probe(edited, "a tiger")
    for site, more in added(edit.branch, base, base.embed(["a tiger"])).items():
        linear = base.modules()["unet"].get_submodule(site.removeprefix("unet."))
        monkeypatch.setattr(linear, "forward", lambda x, linear=linear, more=more: x @ linear.weight.T + more)
    want = probe(base, "a tiger")
    torch.testing.assert_close(got, want, atol=1e-3, rtol=1e-3)
    assert float((want - plain).norm()) > 0.1


def test_at_the_start_nothing_is_added(base: Denoiser, sites: Sites) -> None:
    start = sites.leaves(2, 3, 2, False, torch.Generator().manual_seed(0))
    assert all(not out.any() for out in added(sites.branch(start), base, base.embed(["tiger"])).values())


# -- what training sees -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("term", ["erase", "anchor", "attack", "defend"])
def test_the_losses_are_the_papers(base: Denoiser, sites: Sites, term: str, tied: bool) -> None:
    n, eta, rng = 2, 0.7, torch.Generator().manual_seed(3)
    some = leaves(sites, n, tied=tied)
    concept, surrogate, delta = (torch.randn(n, 3, 4, 64, generator=rng) for _ in range(3))
    wish = (1 + eta) * (surrogate - concept)
    rows, wish = {
        "erase": (concept, wish), "anchor": (concept, None), "attack": (concept + delta, -delta), "defend": (concept + delta, wish - delta),
    }[term]  # fmt: skip
    scale = torch.rand(len(sites.widths), generator=rng)
    got = sites.miss(some, rows, wish, scale)
    weights = [w.double().numpy() for w in base.params("xattn.kv").values()]
    for i in range(n):
        branch = sites.branch({k: t[i : i + 1] for k, t in some.items()})
        concepts, ups = parts(branch)
        total = 0.0
        for b in range(3):
            e, t, s = (x[i, b].double().numpy() for x in (rows, concept, surrogate))
            pairs = []
            for k, (w, up) in enumerate(zip(weights, ups, strict=True)):
                p = e @ w.T + oracle.added(e, concepts, k, up)
                aim = {"anchor": e @ w.T, "attack": t @ w.T}.get(term, oracle.goal(w, t, s, eta))
                pairs.append((p, aim))
            total += oracle.distance(pairs, scale.tolist()) / 3
        assert float(got[i]) == pytest.approx(total, rel=1e-4)


def test_even_weights_make_a_mean(base: Denoiser, sites: Sites) -> None:
    # every key and value off by one in every channel is a miss of 1
    assert sites.even.tolist() == pytest.approx(
        [1 / len(sites.widths) / len(w) for w in base.params("xattn.kv").values()]
    )


def test_filling_never_learns(sites: Sites) -> None:
    some = {k: t.requires_grad_() for k, t in leaves(sites, 1).items()}
    rows = torch.randn(1, 2, 4, 64, generator=torch.Generator().manual_seed(0))
    grads = dict(
        zip(some, torch.autograd.grad(sites.miss(some, rows, rows, sites.even).sum(), list(some.values())), strict=True)
    )
    assert len(set(sites.widths.values())) > 1
    for i, width in enumerate(sites.widths.values()):
        assert not grads["up"][:, i, :, width:].any()
        assert grads["up"][:, i, :, :width].any()
    assert all(g.any() for g in grads.values())  # both projections of the gate among them


# -- merging ----------------------------------------------------------------------------------------------------------


def edits(sites: Sites, **ranks: int) -> list[Adapter]:
    header = Header("CPE", base="same")
    made = [
        Adapter(sites.branch(leaves(sites, n, seed, **(ranks if seed == 2 else {}))), header)
        for seed, n in ((1, 1), (2, 2), (3, 1))
    ]
    return [e.stamped(Header("CPE", erase=(Concept(name),), base="same")) for e, name in zip(made, "abc", strict=True)]


def test_one_alone_is_itself(sites: Sites) -> None:
    (one, *_) = edits(sites)
    same = merge([one])
    assert same.fingerprint == one.fingerprint
    assert same.header.erase == one.header.erase


@pytest.mark.parametrize("ranks", [{}, {"gate_rank": 1, "site_rank": 3}])
def test_merged_in_any_order_each_token_takes_one_concept(base: Denoiser, sites: Sites, ranks: dict[str, int]) -> None:
    every, cond = edits(sites, **ranks), base.embed(["a tiger", "house"])
    whole, other = merge(every), merge(every[::-1])
    assert [c.name for c in whole.header.erase] == ["a", "b", "c"]
    assert whole.header.base == "same"
    got, turned = added(whole.branch, base, cond), added(other.branch, base, cond)
    apart = [parts(e.branch) for e in every]
    for site, out in got.items():
        torch.testing.assert_close(out, turned[site], atol=1e-5, rtol=1e-5)
    e, last = cond.tokens[0].double().numpy(), len(sites.widths) - 1
    gates = [oracle.gate(e, c["query"], c["key"], c["gate"])[0] for concepts, _ in apart for c in concepts]
    alone = [
        oracle.added(e, [c], last, [up]) for concepts, ups in apart for c, up in zip(concepts, ups[last], strict=True)
    ]
    want = np.stack([alone[int(np.argmax([g[i] for g in gates]))][i] for i in range(16)])
    np.testing.assert_allclose(list(got.values())[-1][0], want, atol=1e-4)
    total = sum(list(added(e.branch, base, cond).values())[-1] for e in every)
    assert not torch.allclose(total, list(got.values())[-1], atol=1e-2)  # a stack would add up


def test_a_weaker_edit_is_merged_as_weak_as_it_is(base: Denoiser, sites: Sites) -> None:
    (one, *_) = edits(sites)
    half = merge([one * 0.5])  # type: ignore[list-item]
    cond = base.embed(["tiger"])
    for a, b in zip(added(half.branch, base, cond).values(), added(one.branch, base, cond).values(), strict=True):
        torch.testing.assert_close(a, b / 2)


def test_only_edits_of_one_model_merge(base: Denoiser, sites: Sites) -> None:
    one = Adapter(sites.branch(leaves(sites, 1)), Header("CPE", base="x"))
    elsewhere = one.stamped(Header("CPE", base="y"))
    for wrong in ([], [one, elsewhere]):
        with pytest.raises(UsageError, match="merge: expected edits of one model"):
            merge(wrong)  # type: ignore[arg-type]


# -- files ------------------------------------------------------------------------------------------------------------


def test_fifty_concepts_are_one_small_file(base: Denoiser, sites: Sites, tmp_path: Path) -> None:
    edit = Adapter(sites.branch(leaves(sites, 50, gate_rank=16, site_rank=1)))
    m, total, d = len(sites.widths), sum(sites.widths.values()), 64
    numbers = 50 * (2 * d * 16 + d + m * d + total)
    assert sum(t.numel() for t in edit.branch.tensors.values()) == numbers
    edit.save(tmp_path / "e.safetensors")
    assert 0 <= (tmp_path / "e.safetensors").stat().st_size - 4 * numbers < 8192
    again = load_edit(tmp_path / "e.safetensors")
    assert torch.equal(probe(again(base), "tiger"), probe(edit(base), "tiger"))


def test_the_papers_count_of_weights() -> None:
    # Stable Diffusion 1.4: 16 blocks of 320, 640 and 1280 channels; 75 K and 295 K a concept
    widths = {str(i): w for i, w in enumerate(2 * (5 * [320] + 5 * [640] + 6 * [1280]))}
    for gate_rank, site_rank, numbers in ((16, 1, 74_880), (64, 4, 297_216)):
        sites = Sites(widths, torch.zeros(32, 1280, 768))
        branch = sites.branch(sites.leaves(1, gate_rank, site_rank, False, torch.Generator().manual_seed(0)))
        assert sum(t.numel() for t in branch.tensors.values()) == numbers
