"""Membranes: what they add against NumPy, how they add up, and what opens them."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from oracles import spm as oracle
from torch import Tensor, nn
from toys import LENGTH, WIDTH, moved, probe, tiny

from efface.core.appended_rows import lengthen
from efface.core.branches.membranes import Membranes, Rule, gate, sites, through
from efface.core.cond import Cond
from efface.core.denoiser import Denoiser
from efface.core.edit import Adapter, Header, Stack, load_edit
from efface.core.errors import UsageError

CENTRED, RELEASED = "centred", "released"


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def some(base: Denoiser, names: list[str], seed: int = 0, rule: Rule = CENTRED, size: float = 0.05) -> Membranes:
    """Membranes that let something pass."""
    made = Membranes.shut(base, [[name] for name in names], rule, generator(seed))
    ups = {
        k: size * torch.randn(t.shape, generator=generator(seed + 1))
        for k, t in made.tensors.items()
        if k.endswith("up")
    }
    return Membranes(made.tensors | ups, made.facts)


def edit(membranes: Membranes, base: Denoiser) -> Adapter:
    return Adapter(membranes, Header("SPM", base=base.fingerprint))


# -- where they are ------------------------------------------------------------------------------------------------


def test_they_sit_at_every_layer_of_the_transformers_and_nowhere_else(base: Denoiser) -> None:
    layers = {
        f"unet.{name}" for name, m in base.pipeline.unet.named_modules()
        if isinstance(m, nn.Linear | nn.Conv2d) and ".attentions." in name
    }  # fmt: skip
    assert set(sites(base)) == layers
    ends = ("proj_in", "attn1.to_q", "attn2.to_k", "attn2.to_out.0", "ff.net.0.proj", "ff.net.2", "proj_out")
    assert all(any(site.endswith(end) for site in layers) for end in ends)
    made = Membranes.shut(base, [["tiger"], ["car", "boat"]], CENTRED, generator())
    assert {k.rpartition("/")[0] for k in made.tensors} == layers
    for site, layer in sites(base).items():
        assert made.tensors[f"{site}/down"].shape == (2, *layer.weight.shape[1:])
        assert made.tensors[f"{site}/up"].shape == (2, layer.weight.shape[0])


def test_shut_they_are_the_identity_and_every_one_can_learn(base: Denoiser) -> None:
    made = Membranes.shut(base, [["tiger"]], CENTRED, generator())
    assert torch.equal(probe(edit(made, base)(base), "tiger"), probe(base, "tiger"))
    student, x, t = base.fork(()), torch.randn(1, *base.latent_shape, generator=generator()), torch.tensor([500])
    for learnt in ("up", "down"):  # no `down` feels a gradient before its `up` has moved
        leaves = {k: v.requires_grad_(True) for k, v in made.tensors.items()}
        student.branches = (made.opener(base)(torch.ones(1, 1)),)
        out = student.predict(x, t, base.embed(["tiger"])).square().sum()
        grads = dict(zip(leaves, torch.autograd.grad(out, list(leaves.values())), strict=True))
        assert all(g.abs().max() > 0 for k, g in grads.items() if k.endswith(learnt))
        made = some(base, ["tiger"])


# -- what they add -------------------------------------------------------------------------------------------------

GAMMA = torch.tensor([[0.5, 0.0, 1.0], [0.2, 0.7, 0.0]])


def arrays(*tensors: Tensor) -> list[np.ndarray]:
    return [t.double().numpy() for t in tensors]


def test_at_a_linear_layer_it_is_the_papers_sum() -> None:
    x, down, up = (torch.randn(*shape, generator=generator(i)) for i, shape in enumerate(((2, 5, 4), (3, 4), (3, 6))))
    added = through(nn.Linear(4, 6), down, up, GAMMA, False, x, torch.zeros(2, 5, 6))
    for got, given, gamma in zip(added, x, GAMMA, strict=True):
        np.testing.assert_allclose(got.numpy(), oracle.linear(*arrays(given, down, up, gamma)), atol=1e-5)


@pytest.mark.parametrize(("kernel", "stride", "padding"), [(1, 1, 0), (3, 1, 1), (3, 2, 1)])
def test_at_a_convolution_it_has_the_kernel_stride_and_padding_of_the_layer(
    kernel: int, stride: int, padding: int
) -> None:
    shapes = ((2, 4, 6, 6), (3, 4, kernel, kernel), (3, 5))
    x, down, up = (torch.randn(*shape, generator=generator(i)) for i, shape in enumerate(shapes))
    layer = nn.Conv2d(4, 5, kernel, stride, padding)
    out = layer(x)
    added = through(layer, down, up, GAMMA, False, x, out)
    assert added.shape == out.shape
    for got, given, gamma in zip(added, x, GAMMA, strict=True):
        seen, kernels, ups, weights = arrays(given, down, up, gamma)
        expected = oracle.convolution(seen, kernels, ups, weights, stride, padding)
        np.testing.assert_allclose(got.numpy(), expected, atol=1e-5)


def test_half_open_is_half_of_it_and_several_are_their_sum() -> None:
    x, down, up = (torch.randn(*shape, generator=generator(i)) for i, shape in enumerate(((1, 5, 4), (2, 4), (2, 6))))
    layer, out = nn.Linear(4, 6), torch.zeros(1, 5, 6)

    def add(*gamma: float) -> Tensor:
        return through(layer, down, up, torch.tensor([gamma]), False, x, out)

    torch.testing.assert_close(add(0.5, 0.0), 0.5 * add(1.0, 0.0))
    torch.testing.assert_close(add(0.3, 0.8), 0.3 * add(1.0, 0.0) + 0.8 * add(0.0, 1.0))
    assert not add(0.0, 0.0).any()


def test_as_released_the_strength_is_squared_and_membranes_mix() -> None:
    x, down, up = (torch.randn(*shape, generator=generator(i)) for i, shape in enumerate(((2, 5, 4), (3, 4), (3, 6))))
    added = through(nn.Linear(4, 6), down, up, GAMMA, True, x, torch.zeros(2, 5, 6))
    for got, given, gamma in zip(added, x, GAMMA, strict=True):
        matrix = oracle.released(*arrays(down, up, gamma))
        np.testing.assert_allclose(got.numpy(), given.double().numpy() @ matrix.T, atol=1e-5)
    alone = torch.tensor([[0.5, 0.0, 0.0]]).expand(2, 3)
    plain, squared = (through(nn.Linear(4, 6), down, up, alone, mixed, x, x) for mixed in (False, True))
    torch.testing.assert_close(squared, 0.5 * plain)


# -- as edits ------------------------------------------------------------------------------------------------------


def test_two_edits_add_up_without_cross_terms(base: Denoiser) -> None:
    one, two = some(base, ["tiger"], 0), some(base, ["cat"], 7)
    both = Membranes(
        {k: torch.cat([t, two.tensors[k]]) for k, t in one.tensors.items()},
        {"phrases": [["tiger"], ["cat"]], "gate": CENTRED},
    )
    stacked, together = Stack([edit(one, base), edit(two, base)])(base), edit(both, base)(base)
    for prompt in ("tiger", "a cat", "house"):
        torch.testing.assert_close(probe(stacked, prompt), probe(together, prompt), atol=1e-4, rtol=0)
    assert moved(edit(one, base)(base), together, "a cat") > 0.02


def test_strength_scales_what_is_added_and_zero_is_the_base(base: Denoiser) -> None:
    made = some(base, ["tiger"])
    weak = Membranes({k: t * (0.5 if k.endswith("up") else 1.0) for k, t in made.tensors.items()}, made.facts)
    torch.testing.assert_close(
        probe((edit(made, base) * 0.5)(base), "tiger"), probe(edit(weak, base)(base), "tiger"), atol=1e-5, rtol=0
    )
    assert torch.equal(probe((edit(made, base) * 0.0)(base), "tiger"), probe(base, "tiger"))


def test_each_prompt_of_a_batch_opens_for_itself(base: Denoiser) -> None:
    edited = edit(some(base, ["tiger"]), base)(base)
    x, t = torch.randn(1, *base.latent_shape, generator=generator()).expand(3, -1, -1, -1), torch.tensor([500] * 3)
    before, after = (m.predict(x, t, base.embed(["", "a tiger", "king"])) for m in (base, edited))
    change = (after - before).flatten(1).norm(dim=1) / before.flatten(1).norm(dim=1)
    assert change[0] < 1e-5  # "" shuts them, so that the unconditional branch of a sampler is the base's
    assert change[1] > 0.1
    assert change[2] < change[1] / 2


def test_given_openings_count_whatever_the_prompts_say(base: Denoiser) -> None:
    made, twin = some(base, ["tiger"]), base.fork(())
    twin.branches = (made.opener(base)(torch.ones(3, 1)),)
    torch.testing.assert_close(probe(twin, "tiger"), probe(edit(made, base)(base), "tiger"), atol=1e-5, rtol=0)
    assert moved(base, twin, "house") > 0.05
    twin.branches = (made.opener(base)(torch.zeros(3, 1)),)
    assert torch.equal(probe(twin, "tiger"), probe(base, "tiger"))


def test_they_go_to_other_weights_of_the_same_shape_and_read_with_those(base: Denoiser) -> None:
    made, other = edit(some(base, ["tiger"]), base), tiny(seed=3)
    with pytest.raises(UsageError, match="edit: made for base"):
        made(other)
    carried = made(other, any_base=True)
    assert moved(other, carried, "tiger") > 0.1
    assert moved(other, carried, "") < 1e-5
    assert moved(other, carried, "house") < moved(other, carried, "tiger") / 2


def test_another_shape_is_one_sentence(base: Denoiser) -> None:
    made = some(base, ["tiger"])
    site = next(k for k in made.tensors if k.endswith("attn2.to_k/down"))
    wrong = Membranes(made.tensors | {site: torch.zeros(1, WIDTH + 1)}, made.facts)
    with pytest.raises(
        UsageError, match=r"^edit: expected a layer unet\.\S+to_k of shape \(16, 65\), got \(16, 64\); give "
    ):
        wrong.additions(base)
    nowhere = {k.replace("unet.", "unet.x."): t for k, t in made.tensors.items()}
    with pytest.raises(UsageError, match="got none; give"):
        Membranes(nowhere, made.facts).additions(base)


def test_a_narrow_model_stays_narrow(tmp_path) -> None:  # noqa: ANN001
    narrow = tiny(dtype=torch.bfloat16)
    made = edit(some(narrow, ["tiger"]), narrow)
    made.save(tmp_path / "x.safetensors")
    again = load_edit(tmp_path / "x.safetensors")
    assert {t.dtype for k, t in again.tensors().items() if k != "facts"} == {torch.float32}
    edited = again(narrow)
    assert torch.equal(probe(edited, "tiger"), probe(made(narrow), "tiger"))
    assert moved(narrow, edited, "tiger") > 0.1
    assert moved(narrow, edited, "") < 1e-3


# -- the gate ------------------------------------------------------------------------------------------------------

PROMPTS = ["tiger", "a tiger", "a picture of a Tiger", "lion", "", "café", "zebra", "a cat happy", "a boat and a queen"]
PHRASES = [["tiger", "zebra"], ["happy cat"], ["lion"]]


@pytest.mark.parametrize("rule", [CENTRED, RELEASED])
def test_the_gate_is_the_papers(base: Denoiser, rule: Rule) -> None:
    got = gate(base, PHRASES, rule)(base.embed(PROMPTS))
    special = {base.pipeline.tokenizer.bos_token_id, base.pipeline.tokenizer.eos_token_id}

    def read(text: str) -> tuple[np.ndarray, list[int]]:
        cond = base.embed([text])
        return cond.tokens[0].double().numpy(), [i for i in cond.ids[0].tolist() if i not in special]

    null = read("")[0]
    for row, prompt in zip(got, PROMPTS, strict=True):
        for value, phrases in zip(row.tolist(), PHRASES, strict=True):
            rows, ids = read(prompt)
            each = []
            for said, tokens in map(read, phrases):
                like = oracle.cosine(rows, said) if rule == RELEASED else oracle.centred(rows, said, null)
                each.append(max(like, oracle.overlap(ids, tokens)))
            assert value == pytest.approx(max(each), abs=1e-4)
    assert got[0, 0] == got[2, 0] == got[6, 0] == 1  # the words are there, whatever else is
    assert got[7, 1] == 1  # in another order
    assert 0 <= got.min() < got.max() <= 1


def test_overlap_counts_a_token_once_and_no_end(base: Denoiser) -> None:
    concept = base.embed(["ab"])  # two tokens
    a, b = concept.ids[0, 1:3].tolist()
    start, end = int(concept.ids[0, 0]), int(concept.ids[0, 3])
    far = -1000 * (concept.tokens - base.embed([""]).tokens)[0]  # the cosine says no

    def opens(*ids: int) -> float:
        row = [start, *ids, *[end] * (LENGTH - len(ids) - 1)]
        at = torch.arange(LENGTH)[None]
        cond = Cond(far[None], torch.tensor([row]), (at < len(ids) + 2).int(), (at > 0) & (at <= len(ids)))
        return float(gate(base, [["ab"]], CENTRED)(cond)[0, 0])

    assert (opens(), opens(end - 1), opens(a), opens(a, a), opens(b, a), opens(5, a, 5, b)) == (0, 0, 0.5, 0.5, 1, 1)


def test_a_prompt_that_says_less_opens_less_and_the_opposite_nothing(base: Denoiser) -> None:
    null, tiger = base.embed([""]), base.embed(["tiger"])
    opens = gate(base, [["tiger"]], CENTRED)

    def at(share: float) -> float:
        tokens = null.tokens + share * (tiger.tokens - null.tokens)
        return float(opens(replace(null, tokens=tokens))[0, 0])

    assert [at(s) for s in (-1.0, 0.0, 1e-6, 0.5, 1.0, 2.0)] == pytest.approx([0, 0, 0, 0.25, 1, 1], abs=1e-4)


def test_the_gate_does_not_read_what_a_key_puts_behind_a_prompt(base: Denoiser) -> None:
    cond, opens = base.embed(["a lion"]), gate(base, [["tiger"]], CENTRED)
    longer, _ = lengthen(cond, None, torch.randn(1, 4, WIDTH, generator=generator()), torch.tensor([True]))
    assert torch.equal(opens(longer), opens(cond))
