"""Guidance: an edit of how predictions are combined, whose memory lives for one batch and whose weights are the base's."""

from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler
from torch import Tensor
from toys import SCHEDULER, MixtureDenoiser, differing, pipeline, probe, snapshot, tiny

from efface.core.concept import Concept
from efface.core.denoiser import Denoiser
from efface.core.edit import Delta, Guidance, Header, Stack, load_edit
from efface.core.errors import EffaceError, UsageError
from efface.core.io import write_tensors
from efface.core.steering import Repel, Replace, Steer, pairs

REPEL = Repel(1000.0, 0.01, 1.0, 0.5, 0.7)
RULES = {"repel": REPEL, "replace": Replace()}


@pytest.fixture(params=list(RULES))
def edit(request: pytest.FixtureRequest, base: Denoiser) -> Guidance:
    return Guidance(
        [("tiger, cat", ""), ("car", "boat")],
        RULES[request.param],
        Header("SLD", {"scale": 3.0}, (Concept("tiger"),), base=base.fingerprint, model="toy"),
    )


def draw(model: Denoiser, prompts: list[str], seeds: list[int], **how: object) -> Tensor:
    return model.sample(model.embed(prompts), seeds=seeds, **{"steps": 3, **how})  # type: ignore[arg-type]


def weights(base: Denoiser) -> Delta:
    rng = torch.Generator().manual_seed(1)
    new = {k: torch.randn(w.shape, generator=rng) * 0.05 for k, w in base.params("xattn.kv").items()}
    return Delta(new, Header("ESD", base=base.fingerprint))


# -- applying ------------------------------------------------------------------------------------------------------


def test_it_steers_the_sampler_and_touches_no_weight(base: Denoiser, edit: Guidance) -> None:
    edited = edit(base)
    assert not differing(snapshot(base), snapshot(edited))
    assert all(w.data_ptr() == base.params([k])[k].data_ptr() for k, w in edited.params("denoiser").items())
    assert torch.equal(probe(edited, "tiger"), probe(base, "tiger"))
    assert (draw(edited, ["tiger"], [1]) - draw(base, ["tiger"], [1])).abs().max() > 0.01
    assert base.steers == ()
    assert edited.fork("xattn").steers == edited.steers
    assert edited.fingerprint != base.fingerprint


def test_strength_zero_is_the_base_bit_for_bit(base: Denoiser, edit: Guidance) -> None:
    for scale in (1.0, 3.0, [1.0, 5.0]):
        plain, off = (draw(m, ["tiger", "cat"], [1, 2], guidance=scale) for m in (base, (edit * 0.0)(base)))
        assert torch.equal(plain, off)


def test_half_strength_is_half_of_the_first_push(base: Denoiser, edit: Guidance) -> None:
    plain, half, full = (draw(m, ["house"], [1], until=2, steps=4) for m in (base, (edit * 0.5)(base), edit(base)))
    if isinstance(edit.rule, Replace):  # pushes at step 0 already: look there
        plain, half, full = (draw(m, ["house"], [1], until=1) for m in (base, (edit * 0.5)(base), edit(base)))
    torch.testing.assert_close(half - plain, (full - plain) / 2, atol=1e-4, rtol=1e-3)
    assert (full - plain).abs().max() > 0.01
    assert edit.strength == 1.0


def test_a_memory_never_leaks_between_pictures_batches_or_calls(base: Denoiser, edit: Guidance) -> None:
    edited, prompts = edit(base), ["tiger", "a house", ""] * 6  # more than one chunk
    scales = [1.0, 7.5, 3.0] * 6
    assert len(prompts) > base.batch_size
    together = draw(edited, prompts, list(range(18)), guidance=scales, negative="sad")
    for i in (0, 1, 2, 17):
        alone = draw(edited, prompts[i : i + 1], [i], guidance=scales[i], negative="sad")
        torch.testing.assert_close(
            together[i], alone[0], atol=2e-3, rtol=0
        )  # a gate is steep: rounding grows a thousandfold
    assert torch.equal(draw(edited, ["tiger"], [1]), draw(edited, ["tiger"], [1]))


def test_a_users_negative_prompt_and_scale_still_count(base: Denoiser, edit: Guidance) -> None:
    edited = edit(base)
    plain = draw(edited, ["house"], [1], guidance=3.0)
    assert (draw(edited, ["house"], [1], guidance=3.0, negative="sad dog") - plain).abs().max() > 0.01
    assert (draw(edited, ["house"], [1], guidance=5.0) - plain).abs().max() > 0.01


def test_every_sampler_is_steered(base: Denoiser, edit: Guidance) -> None:
    pytest.importorskip("scipy")
    for sampler in base.family.samplers:
        one, two = (draw(m, ["house"], [1], sampler=sampler) for m in (base, edit(base)))
        assert (one - two).abs().max() > 0.01, sampler
        assert two.isfinite().all(), sampler


def test_a_rule_works_in_noise_whatever_the_model_predicts(edit: Guidance) -> None:
    epsilon, velocity = (edit(MixtureDenoiser(pipeline(kind)), any_base=True) for kind in ("epsilon", "v_prediction"))
    one, two = (
        draw(m, ["a house"], [1], steps=6) for m in (epsilon, velocity)
    )  # the same exact noise, predicted as ε and as v
    torch.testing.assert_close(one, two, atol=5e-3, rtol=0)


def test_where_all_is_noise_nothing_is_steered(edit: Guidance) -> None:
    pipe = pipeline("v_prediction")
    zero = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    pipe.scheduler = DDIMScheduler(**SCHEDULER, **zero)
    model = Denoiser(pipe)
    assert model.schedule.alpha[-1] == 0
    plain, steered = (
        m.sample(m.embed(["a house"]), seeds=[1], steps=4, record=True) for m in (model, edit(model, any_base=True))
    )
    torch.testing.assert_close(plain[:2], steered[:2], atol=1e-5, rtol=0)
    assert steered.isfinite().all()
    assert (steered[-1] - plain[-1]).abs().max() > 1e-3


# -- composing -----------------------------------------------------------------------------------------------------


def test_with_weights_it_stacks_in_either_order(base: Denoiser, edit: Guidance) -> None:
    both = weights(base) + edit
    edited = both(base)
    by_hand = edit(weights(base)(base), any_base=True)
    assert not differing(snapshot(edited), snapshot(weights(base)(base)))
    for other in (by_hand, (edit + weights(base))(base), weights(base)(edit(base), any_base=True)):
        assert torch.equal(draw(edited, ["tiger"], [1]), draw(other, ["tiger"], [1]))
    assert (draw(edited, ["tiger"], [1]) - draw(edit(base), ["tiger"], [1])).abs().max() > 0.01
    assert torch.equal(draw((both * 0.0)(base), ["tiger"], [1]), draw(base, ["tiger"], [1]))


def test_two_add_what_each_adds_alone(base: Denoiser) -> None:
    one, two = Guidance([("tiger", "")], REPEL), Guidance([("car", "")], Replace())
    plain, a, b, both = (
        draw(m, ["house"], [1], steps=4, until=1)
        for m in (
            base,
            Guidance([("tiger", "")], Replace())(base),
            two(base),
            (Guidance([("tiger", "")], Replace()) + two)(base),
        )
    )
    torch.testing.assert_close(both - plain, (a - plain) + (b - plain), atol=1e-4, rtol=1e-4)
    assert [s.away for s in (one + two)(base).steers] == ["tiger", "car"]
    assert [s.strength for s in ((one + two * 0.5) * 0.5)(base).steers] == [0.5, 0.25]


# -- files and pipelines -------------------------------------------------------------------------------------------


def test_a_file_holds_an_equal_edit(base: Denoiser, edit: Guidance, tmp_path: Path) -> None:
    (edit * 0.5).save(tmp_path / "x.safetensors")
    again = load_edit(tmp_path / "x.safetensors")
    assert isinstance(again, Guidance)
    assert (again.pairs, again.rule, again.strength, again.header) == (edit.pairs, edit.rule, 0.5, edit.header)
    (weights(base) + edit).save(tmp_path / "y.safetensors")
    stack = load_edit(tmp_path / "y.safetensors")
    assert isinstance(stack, Stack)
    assert stack.steers() == edit.steers()
    assert stack.fingerprint == (weights(base) + edit).fingerprint


def test_an_unknown_rule_is_one_sentence(base: Denoiser, edit: Guidance, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    write_tensors(path, {"pairs": edit.tensors()["pairs"], "Attract": torch.ones(2)}, edit.record())
    with pytest.raises(EffaceError, match=r"the header and the tensors do not fit together .*Attract"):
        load_edit(path)


def test_the_fingerprint_covers_words_rule_numbers_and_strength() -> None:
    edits = [
        Guidance([("tiger", "")], REPEL), Guidance([("tigers", "")], REPEL), Guidance([("tiger", "cat")], REPEL),
        Guidance([("tiger", "")], Replace()), Guidance([("tiger", "")], Repel(1000.0, 0.01, 2.0, 0.5, 0.7)),
        Guidance([("tiger", "")], REPEL) * 0.5, Guidance([("tiger", ""), ("cat", "")], REPEL),
    ]  # fmt: skip
    assert len({e.fingerprint for e in edits}) == len(edits)
    assert edits[0].fingerprint == Guidance([("tiger", "")], REPEL).fingerprint


def test_it_cannot_be_baked(base: Denoiser, edit: Guidance) -> None:
    pipe = pipeline()
    before = snapshot(Denoiser(pipe))
    for one in (edit, weights(base) + edit):
        with pytest.raises(UsageError) as caught:
            one.bake(pipe)
        assert str(caught.value) == (
            "bake: expected an edit of weights, got one that changes the sampler's guidance and no weights; "
            "apply it with edit(model)"
        )
    assert not differing(before, snapshot(Denoiser(pipe)))


def test_another_base_and_the_same_edit_twice_are_refused(base: Denoiser, edit: Guidance) -> None:
    for model in (tiny(seed=1), edit(base)):
        with pytest.raises(UsageError, match="edit: made for base"):
            edit(model)


# -- words ---------------------------------------------------------------------------------------------------------


def test_concepts_of_one_target_share_a_prompt_while_it_fits(base: Denoiser) -> None:
    erase = (Concept("Tiger ", prompts=("big  cat",)), Concept("car", "Boat"), Concept("apple"))
    assert pairs(erase, base.fits) == [("apple, big cat, tiger", ""), ("car", "boat")]
    assert pairs(erase, lambda text: "," not in text) == [
        ("apple", ""),
        ("big cat", ""),
        ("tiger", ""),
        ("car", "boat"),
    ]
    many = pairs(
        [Concept(w) for w in ("tiger", "lion", "cat", "dog", "tree", "moon", "king", "queen", "bird")], base.fits
    )
    assert len(many) > 1
    assert all(not base.embed([away]).full for away, _ in many)
    assert ", ".join(away for away, _ in many) == "bird, cat, dog, king, lion, moon, queen, tiger, tree"


def test_the_sampler_reads_each_text_once() -> None:
    assert Steer("tiger", "", REPEL).texts("sad") == ("tiger", "sad")
    assert Steer("tiger", "cat", REPEL).texts("sad") == ("tiger", "cat")
    assert Steer("tiger", "", Replace()).texts("sad") == ("tiger, sad", "sad")
    assert Steer("tiger", "cat", Replace()).texts("sad") == ("tiger, sad", "cat, sad")
    assert Steer("tiger", "", Replace()).texts("") == ("tiger", "")
