"""Branches: what an edit adds beside the model's own modules adds up, can be scaled, and leaves no trace."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from toys import LENGTH, WIDTH, differing, pipeline, probe, snapshot, tiny

from efface.core.branch import Branch
from efface.core.cond import Cond
from efface.core.denoiser import Denoiser
from efface.core.edit import Adapter, Stack, load_edit
from efface.core.errors import UsageError
from efface.core.hooks import Added

PREFIX = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2"


class Plus(Branch):
    """Adds `matrix` times the input of one site, times how many prompts of the call say something."""

    def additions(self, base: Denoiser) -> Callable[[Cond], dict[str, Added]]:
        only = base.embed(self.facts["phrases"]).ids if "phrases" in self.facts else None

        def added(cond: Cond) -> dict[str, Added]:
            opens = torch.ones(len(cond)) if only is None else (cond.ids[:, None] == only[None]).all(2).any(1).float()
            return {
                self.facts["site"]: lambda given, out: (
                    opens[:, None, None].to(given) * (given @ self.tensors["matrix"].to(given))
                )
            }

        return added


class Again(Branch):
    """Adds a site's own output once more."""

    def additions(self, base: Denoiser) -> Callable[[Cond], dict[str, Added]]:
        return lambda cond: {self.facts["site"]: lambda given, out: out}


def plus(base: Denoiser, seed: int = 0, **facts: object) -> Adapter:
    wide = base.params([f"{PREFIX}.to_k.weight"])[f"{PREFIX}.to_k.weight"].shape[0]
    matrix = torch.randn(WIDTH, wide, generator=torch.Generator().manual_seed(seed)) / 8
    return Adapter(Plus({"matrix": matrix}, {"site": f"{PREFIX}.to_k", **facts}))


def test_what_it_adds_is_what_the_weights_would(base: Denoiser) -> None:
    """A branch that is linear in a module's input is a change of that module's weight."""
    edit, name = plus(base), f"{PREFIX}.to_k.weight"
    edited, twin = edit(base), base.fork([name])
    with torch.no_grad():
        twin.params([name])[name].add_(edit.branch.tensors["matrix"].T)
    torch.testing.assert_close(probe(edited, "tiger"), probe(twin, "tiger"), atol=1e-5, rtol=1e-4)
    assert (probe(edited, "tiger") - probe(base, "tiger")).abs().max() > 1e-2


@pytest.mark.parametrize("strength", [0.5, -1.0, 2.0])
def test_strength_scales_what_is_added(base: Denoiser, strength: float) -> None:
    edit = plus(base)
    scaled = plus(base)
    scaled.branch.tensors["matrix"] *= strength
    torch.testing.assert_close(
        probe((edit * strength)(base), "tiger"), probe(scaled(base), "tiger"), atol=1e-5, rtol=1e-4
    )


def test_scaled_to_nothing_it_is_the_base_bit_for_bit(base: Denoiser) -> None:
    edited = (plus(base) * 0.0)(base)
    assert edited.branches == ()
    assert torch.equal(probe(edited, "tiger"), probe(base, "tiger"))
    assert edited.fingerprint == base.fingerprint


def test_several_add_up_and_each_sees_the_modules_own_output(base: Denoiser) -> None:
    one, two = plus(base, 1), plus(base, 2)
    both = Adapter(Plus({"matrix": one.branch.tensors["matrix"] + two.branch.tensors["matrix"]}, one.branch.facts))
    torch.testing.assert_close(probe((one + two)(base), "tiger"), probe(both(base), "tiger"), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(probe(two(one(base)), "tiger"), probe((one + two)(base), "tiger"), atol=1e-5, rtol=1e-4)
    again = Adapter(Again({}, {"site": f"{PREFIX}.to_v"}))
    name = f"{PREFIX}.to_v.weight"
    tripled = base.fork([name])
    with torch.no_grad():
        tripled.params([name])[name].mul_(3)  # own + own + own, not (own + own) + (own + own)
    torch.testing.assert_close(probe((again + again)(base), "a"), probe(tripled, "a"), atol=1e-5, rtol=1e-4)


def test_a_stack_without_one_of_three_equals_the_other_two(base: Denoiser) -> None:
    one, two, three = (plus(base, seed) for seed in (1, 2, 3))
    stack = Stack([one, two, three])
    assert torch.equal(probe(stack.without(1)(base), "tiger"), probe((one + three)(base), "tiger"))


def test_a_gate_opens_for_its_prompt_only(base: Denoiser) -> None:
    edited = plus(base, phrases=["tiger"])(base)
    assert torch.equal(probe(edited, "lion"), probe(base, "lion"))
    assert not torch.allclose(probe(edited, "tiger"), probe(base, "tiger"), atol=1e-3)
    x, t = torch.randn(2, *base.latent_shape), torch.tensor([500, 500])
    with torch.no_grad():  # prompts of one batch do not open each other's
        mixed = edited.predict(x, t, base.embed(["tiger", "lion"]))
        alone = torch.cat(
            [edited.predict(x[i : i + 1], t[:1], base.embed([w])) for i, w in enumerate(("tiger", "lion"))]
        )
    torch.testing.assert_close(mixed, alone, atol=1e-5, rtol=1e-4)


def test_it_leaves_no_hook_behind_even_after_an_error(base: Denoiser) -> None:
    edited = plus(base)(base)
    probe(edited, "tiger")
    with pytest.raises(RuntimeError):
        edited.predict(
            torch.zeros(1, 4, 9, 9), torch.tensor([1]), replace(base.embed([""]), tokens=torch.zeros(1, LENGTH, 5))
        )
    hooks = [m for part in edited.modules().values() for m in part.modules() if m._forward_hooks]
    assert not hooks
    assert not differing(snapshot(base), snapshot(edited))


def test_the_file_holds_weights_and_facts_and_both_are_in_the_fingerprint(base: Denoiser, tmp_path: Path) -> None:
    edit = plus(base, phrases=["tiger", "größer"]) * 0.5
    edit.save(tmp_path / "a.safetensors")
    again = load_edit(tmp_path / "a.safetensors")
    assert isinstance(again, Adapter)
    assert (again.strength, again.branch.facts) == (0.5, edit.branch.facts)
    assert torch.equal(probe(again(base), "tiger"), probe(edit(base), "tiger"))
    assert again.fingerprint == edit.fingerprint
    assert plus(base, phrases=["lion"]).fingerprint != plus(base, phrases=["tiger"]).fingerprint
    assert plus(base)(base).fingerprint not in (base.fingerprint, plus(base, 1)(base).fingerprint)


def test_a_finished_edit_does_not_learn_on(base: Denoiser) -> None:
    branch = Plus({"matrix": torch.zeros(WIDTH, 16, requires_grad=True)}, {"site": f"{PREFIX}.to_k"})
    edit = Adapter(branch)
    with torch.no_grad():
        branch.tensors["matrix"].add_(1)
    assert not edit.branch.tensors["matrix"].any()
    assert not edit.branch.tensors["matrix"].requires_grad


def test_gradients_reach_the_leaves(base: Denoiser) -> None:
    leaf = plus(base).branch.tensors["matrix"].requires_grad_(True)
    student = base.fork(())
    student.branches = (Plus({"matrix": leaf}, {"site": f"{PREFIX}.to_k"}).bind(base),)
    x = torch.randn(2, *base.latent_shape)
    loss = student.predict(x, torch.tensor([500, 100]), base.embed(["tiger"])).square().sum()
    (found,) = torch.autograd.grad(loss, leaf)
    step = torch.zeros_like(leaf)
    step[5, 2] = 1e-2

    def at(scale: float) -> Tensor:
        student.branches = (Plus({"matrix": leaf.detach() + scale * step}, {"site": f"{PREFIX}.to_k"}).bind(base),)
        with torch.no_grad():
            return student.predict(x, torch.tensor([500, 100]), base.embed(["tiger"])).double().square().sum()

    torch.testing.assert_close(
        float(found[5, 2]), float((at(1) - at(-1)) / 2e-2), rtol=2e-2, atol=2e-2 * float(found.abs().max())
    )


def test_weights_cannot_hold_it(base: Denoiser) -> None:
    for edit in (plus(base), plus(base) + plus(base, 1)):
        with pytest.raises(
            UsageError, match="^bake: expected an edit of weights, got one that adds modules that a stock"
        ):
            edit.bake(pipeline())
    assert torch.equal(probe((plus(base) * 0.0)(base), "a"), probe(base, "a"))


def test_a_bfloat16_model_stays_one() -> None:
    half = tiny(dtype=torch.bfloat16)
    edited = plus(half)(half)
    assert torch.isfinite(probe(edited, "tiger")).all()
    assert not torch.equal(probe(edited, "tiger"), probe(half, "tiger"))


def test_a_pipeline_without_a_text_encoder_is_refused() -> None:
    pipe = pipeline()
    pipe.text_encoder = None
    with pytest.raises(
        UsageError, match="^model: expected a pipeline with text_encoder, got one without; .* load the whole pipeline$"
    ):
        Denoiser(pipe)
