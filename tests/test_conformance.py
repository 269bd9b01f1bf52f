"""Every eraser of the table, with every preset, keeps every promise of an eraser."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import toys
from toys import differing, moved, probe, snapshot, tiny

from efface.core.concept import Concept, concepts
from efface.core.denoiser import Denoiser
from efface.core.edit import Edit, Guidance, Header, Keyed, LowRank, Stack, load_edit
from efface.core.errors import UsageError
from efface.core.key import load_key
from efface.core.params import choices, fields
from efface.erasers import TABLE, find, make, names, split
from efface.erasers.base import NEEDS, Eraser

# a training short enough for a test; a method takes those it knows
SMALL = {"steps": 2, "batch": 2, "sampler_steps": 2, "reuse": 2, "warmup": 1, "drawn": 3}
LONGER = {
    "steps": 6,
    "batch": 3,
    "sampler_steps": 3,
    "reuse": 6,
    "drawn": 6,
    "lr": 1e-3,
    "warmup": 1,
    "anchor_weight": 1.0,
}  # long enough to erase something
ERASE = (Concept("tiger", prompts=("leopard",)), Concept("car", "boat"))
KEEP = ("lion", "house")


def small(name: str, settings: dict[str, Any] = SMALL, **changes: Any) -> Eraser:
    known = {f.name for f in dataclasses.fields(split(name)[0])}
    return make(name, **{k: v for k, v in settings.items() if k in known} | changes)


def trains(name: str) -> bool:
    """Whether a method draws random numbers: all that train do, closed forms do not."""
    return "steps" in {f.name for f in fields(split(name)[0])}


def tensors(edit: Edit) -> dict[str, torch.Tensor]:
    return {k: t.clone() for k, t in edit.tensors().items()}


def look(edited: Denoiser, model: Denoiser, prompt: str) -> torch.Tensor:
    """What `model` does with a prompt where `edited` differs: what it predicts or, if only its sampler is steered, what it draws."""
    if not edited.steers:
        return probe(model, prompt)
    path = model.sample(model.embed([prompt]), seeds=[1, 2], steps=3, record=True)
    assert isinstance(path, torch.Tensor)
    return path


def equal(a: Edit, b: Edit) -> bool:
    one, two = a.tensors(), b.tensors()
    return one.keys() == two.keys() and all(torch.equal(t, two[k]) for k, t in one.items())


METHODS = names()
methods = pytest.mark.parametrize("name", METHODS)
table = pytest.mark.parametrize("name", list(TABLE))  # where a preset could make no difference


@pytest.fixture(scope="module")
def shared() -> Denoiser:
    """The smallest model with cross-attention, self-attention, convolutions, and cross-attention at two resolutions."""
    return tiny(levels=1)


@pytest.fixture(scope="module")
def untouched(shared: Denoiser) -> dict[str, torch.Tensor]:
    return snapshot(shared)


@pytest.fixture(scope="module")
def larger() -> Denoiser:
    """Where six steps of training are to be seen: with cross-attention in its inner blocks too."""
    return tiny()


@pytest.fixture(scope="module")
def stranger() -> Denoiser:
    """The same shape, other weights."""
    return tiny(seed=1, levels=1)


@pytest.fixture(scope="module")
def narrow() -> Denoiser:
    """Another width of the text rows, and narrower blocks."""
    unet = toys.UNet2DConditionModel
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("toys.WIDTH", 32)
        patch.setattr("toys.UNet2DConditionModel", lambda **how: unet(**{**how, "block_out_channels": [8, 16]}))
        return tiny(levels=1)


@pytest.fixture(scope="module")
def fitted(shared: Denoiser) -> Iterator[dict[str, Edit]]:
    """One small edit of each method, fitted when first asked for; the model must not notice."""

    class Fitted(dict[str, Edit]):
        def __missing__(self, name: str) -> Edit:
            self[name] = small(name).fit(shared, ERASE, KEEP, model="toy")
            return self[name]

    before = snapshot(shared)
    yield Fitted()
    assert not differing(before, snapshot(shared))


# -- what a fit leaves alone ---------------------------------------------------------------------------------------


@methods
def test_fit_leaves_the_base_bit_for_bit_and_draws_from_no_global_generator(
    base: Denoiser, fitted: dict[str, Edit], name: str
) -> None:
    torch.manual_seed(777)  # no method's own seed
    before, fingerprint, state = snapshot(base), base.fingerprint, torch.get_rng_state()
    edit = fitted[name]
    assert not differing(before, snapshot(base))
    assert torch.equal(torch.get_rng_state(), state)
    assert base.fingerprint == fingerprint
    parts = (base.pipeline.unet, base.pipeline.text_encoder)
    assert all(p.grad is None and not p.requires_grad for part in parts for p in part.parameters())
    torch.manual_seed(12345)
    state = torch.get_rng_state()
    assert equal(small(name).fit(base, ERASE, KEEP), edit)  # same seed, same bits, whatever the global seed
    assert torch.equal(torch.get_rng_state(), state)


@table
def test_another_seed_gives_other_bits_where_a_method_draws(base: Denoiser, fitted: dict[str, Edit], name: str) -> None:
    other = small(name, seed=1).fit(base, ERASE, KEEP)
    assert equal(other, fitted[name]) is not trains(name)
    assert other.header.seed == 1


@methods
def test_it_touches_only_the_weights_it_declares(base: Denoiser, fitted: dict[str, Edit], name: str) -> None:
    edit = fitted[name]
    edited = edit(base)
    changed = differing(snapshot(base), snapshot(edited))
    # a training method declares its weights, the others leave it to their kind of edit: Guidance declares none, and steers
    declared = base.params(getattr(small(name), "where", getattr(edit, "where", ()))).keys()
    assert bool(changed) is bool(declared)
    assert changed or edited.steers or edited.branches
    assert changed <= declared
    for k, w in edited.params("denoiser").items():
        assert k in declared or w.data_ptr() == base.params([k])[k].data_ptr()


@methods
def test_it_makes_what_it_says(fitted: dict[str, Edit], name: str) -> None:
    assert type(fitted[name]) in split(name)[0].makes


@pytest.mark.parametrize("name", [n for n in TABLE if "rank" in {f.name for f in fields(find(n))}])
def test_asked_for_low_rank_it_gives_low_rank(base: Denoiser, name: str) -> None:
    edit = small(name, rank=2).fit(base, ERASE, KEEP)
    assert isinstance(edit.hidden if isinstance(edit, Keyed) else edit, LowRank)
    assert {min(t.shape) for t in edit.tensors().values()} <= {1, 2}
    assert differing(snapshot(base), snapshot(edit(base)))


# -- what it does --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "kind"), [*((n, "epsilon") for n in METHODS), *((n, "v_prediction") for n in TABLE)])
def test_the_erased_concept_moves_more_than_an_unrelated_and_a_preserved_one(
    larger: Denoiser, velocity: Denoiser, name: str, kind: str
) -> None:
    model = larger if kind == "epsilon" else velocity
    edited = small(name, LONGER).fit(model, Concept("tiger", "cat"), ["lion"])(model)
    if edited.steers:  # a rule is the same for every prompt: it promises a direction, not which prompts go it
        assert_away(model, edited)
        return
    erased = moved(model, edited, "tiger")
    assert erased > 0.1
    assert erased > 1.1 * max(moved(model, edited, other) for other in ("house", ""))
    assert erased > moved(model, edited, "lion")  # a neighbour; not every method takes a list to preserve


def assert_away(model: Denoiser, edited: Denoiser) -> None:
    """The first step that is steered goes away from what the steer names and towards its target, in clean latents, for any prompt."""
    (steer,) = edited.steers
    for prompt in ("a picture of a tiger", "house", ""):
        plain, steered = (m.sample(m.embed([prompt]), seeds=range(4), steps=3, record=True) for m in (model, edited))
        k = next(i for i in range(3) if not torch.allclose(plain[i + 1], steered[i + 1], atol=1e-4))
        t = model.timesteps(3)[k].expand(4)
        with torch.no_grad():
            away, towards = (
                model.to_x0(plain[k], t, model.predict(plain[k], t, model.embed([text])))
                for text in (steer.away, steer.towards)
            )
        step, concept = (steered[k + 1] - plain[k + 1]).flatten(), (away - towards).flatten()
        assert torch.cosine_similarity(step, concept, 0) < -0.3


@methods
def test_its_neutral_setting_is_the_identity(base: Denoiser, name: str) -> None:
    # training: no steps; closed forms: a target that is other words but the same tokens (é in one letter or two), which a user cannot give
    same = Concept("caf\u00e9")
    object.__setattr__(same, "target", "cafe\u0301")
    edit = small(name, steps=0).fit(base, ERASE, KEEP) if trains(name) else small(name).fit(base, same, KEEP)
    edited = edit(base)
    assert not differing(snapshot(base), snapshot(edited))
    torch.testing.assert_close(look(edited, edited, "tiger"), look(edited, base, "tiger"), atol=1e-4, rtol=0)


@table
def test_case_of_a_name_does_not_matter(base: Denoiser, fitted: dict[str, Edit], name: str) -> None:
    other = (Concept("Tiger ", prompts=("leopard",)), Concept("car", "boat"))
    assert equal(small(name).fit(base, other, KEEP), fitted[name])


@pytest.mark.parametrize("name", [n for n in METHODS if not trains(n)])
def test_the_order_of_concepts_does_not_matter_to_a_closed_form(
    base: Denoiser, fitted: dict[str, Edit], name: str
) -> None:
    one, two = fitted[name](base), small(name).fit(base, ERASE[::-1], KEEP[::-1])(base)
    torch.testing.assert_close(
        look(one, one, "tiger"), look(two, two, "tiger"), atol=1e-4, rtol=0
    )  # sums in another order


@table
def test_scaled_to_nothing_it_is_the_base_bit_for_bit_and_to_half_it_is_between(
    base: Denoiser, fitted: dict[str, Edit], name: str
) -> None:
    whole, half, none = ((fitted[name] * s)(base) for s in (1.0, 0.5, 0.0))
    seen = {label: look(whole, model, "tiger") for label, model in (("none", none), ("half", half), ("whole", whole))}
    assert torch.equal(seen["none"], look(whole, base, "tiger"))
    way = (seen["whole"] - seen["none"]).norm()
    assert 0 < (seen["half"] - seen["none"]).norm() < way
    assert 0 < (seen["whole"] - seen["half"]).norm() < way


def test_edits_of_all_methods_stack_and_each_comes_off_again(base: Denoiser, fitted: dict[str, Edit]) -> None:
    every = Stack([fitted[name] for name in TABLE])
    assert differing(snapshot(base), snapshot(every(base)))
    assert not differing(snapshot(base), snapshot((every * 0.0)(base)))
    edits = list(
        {type(edit): edit for edit in every.edits}.values()
    )  # one of each kind: each comes off from where it stands
    stack = Stack(edits)
    whole = stack(base)
    for i, edit in enumerate(edits):
        less, rest = stack.without(i)(base), Stack(edits[:i] + edits[i + 1 :])(base)
        assert torch.equal(look(whole, less, "tiger"), look(whole, rest, "tiger")), type(edit)
        assert not torch.equal(look(whole, less, "tiger"), look(whole, whole, "tiger")), type(edit)


@pytest.mark.parametrize(("one", "two"), [("spm", "cpe"), ("receler", "spm"), ("cpe", "receler")])
def test_adapters_of_two_methods_stack_in_any_order(
    base: Denoiser, fitted: dict[str, Edit], one: str, two: str
) -> None:
    there, back = (fitted[one] + fitted[two])(base), (fitted[two] + fitted[one])(base)
    torch.testing.assert_close(probe(there, "tiger"), probe(back, "tiger"), atol=1e-4, rtol=1e-3)
    for alone in (one, two):
        assert not torch.allclose(probe(there, "tiger"), probe(fitted[alone](base), "tiger"), atol=1e-4)


# -- what it leaves ------------------------------------------------------------------------------------------------


CHILD = """
import sys, torch
from pathlib import Path
from safetensors.torch import save_file
from test_conformance import look
from toys import tiny
from efface.core.edit import load_edit
base, folder = tiny(levels=1), Path(sys.argv[1])
edited = {p.stem: load_edit(p)(base) for p in folder.glob("*.safetensors") if ".key" not in p.suffixes}
save_file({name: look(model, model, "tiger") for name, model in edited.items()}, folder / "out.bin")
"""


def test_saved_and_loaded_in_a_new_process_they_predict_the_same(
    base: Denoiser, fitted: dict[str, Edit], tmp_path: Path, child
) -> None:
    for name in METHODS:
        fitted[name].save(tmp_path / f"{name}.safetensors")
    got = child(CHILD, tmp_path)
    assert got.keys() == set(METHODS)
    for name in METHODS:
        edited = fitted[name](base)
        assert torch.equal(got[name], look(edited, edited, "tiger")), name
        assert not torch.equal(got[name], look(edited, base, "tiger")), name


@methods
def test_it_holds_its_tensors_as_its_file_does(fitted: dict[str, Edit], tmp_path: Path, name: str) -> None:
    """Kernels add in an order that depends on the layout: only equal layouts give equal bits on every processor."""
    edit = fitted[name]
    edit.save(tmp_path / "x.safetensors")
    held, read = edit.tensors(), load_edit(tmp_path / "x.safetensors").tensors()
    if isinstance(edit, Keyed):
        assert edit.key
        held, read = {**held, **edit.key.rows}, {**read, **load_key(tmp_path / "x.key.safetensors").rows}
    assert held.keys() == read.keys()
    for k, t in held.items():
        assert t.is_contiguous(), k
        assert (t.dtype, t.shape, t.stride()) == (read[k].dtype, read[k].shape, read[k].stride()), k
        assert t.data_ptr() % 64 == read[k].data_ptr() % 64 == 0, (
            k
        )  # BLAS may read aligned memory by other instructions


@methods
def test_the_header_is_the_recipe_and_survives_the_file(
    base: Denoiser, fitted: dict[str, Edit], tmp_path: Path, name: str
) -> None:
    edit, eraser = fitted[name], small(name)
    header = edit.header
    assert (header.method, header.base, header.model, header.seed) == (
        split(name)[0].__name__,
        base.fingerprint,
        "toy",
        0,
    )
    assert header.settings == dataclasses.asdict(eraser)
    assert (header.erase, header.preserve) == (ERASE, concepts(KEEP))
    assert header.version
    assert header.created.endswith("+00:00")
    assert header.seconds > 0
    edit.save(tmp_path / "x.safetensors")
    again = load_edit(tmp_path / "x.safetensors")
    assert isinstance(again.header, Header)
    assert again.header == header
    assert equal(again, edit)
    # the recipe is enough to make it again
    cls = find(next(n for n in TABLE if find(n).__name__ == header.method))
    assert cls(**again.header.settings) == eraser


@pytest.mark.parametrize("name", [n for n in TABLE if Guidance not in find(n).makes])  # a rule has no shape
def test_a_model_of_another_shape_is_refused(fitted: dict[str, Edit], narrow: Denoiser, name: str) -> None:
    with pytest.raises(UsageError, match=r"^edit: .*; give (the|a) model"):
        fitted[name](narrow, any_base=True)


@methods
def test_the_edit_of_one_model_is_refused_by_another(fitted: dict[str, Edit], stranger: Denoiser, name: str) -> None:
    with pytest.raises(UsageError, match="edit: made for base"):
        fitted[name](stranger)


# -- what it refuses -----------------------------------------------------------------------------------------------


@methods
@pytest.mark.parametrize(
    ("erase", "preserve", "sentence"),
    [
        ((), (), "{}.fit: erase is empty; give at least one concept"),
        (("tiger", "Tiger"), (), "{}.fit: 'Tiger' is given twice; give it once"),
        ("tiger", ("lion", " TIGER"), "{}.fit: ' TIGER' is both erased and preserved; take it out of one of the lists"),
        ("", (), "concept: the name is empty; give the words to erase or preserve, such as 'tiger'"),
        ("tiger", ("",), "concept: the name is empty; give the words to erase or preserve, such as 'tiger'"),
    ],
)
def test_bad_concepts_are_one_sentence(base: Denoiser, name: str, erase, preserve, sentence: str) -> None:  # noqa: ANN001
    with pytest.raises(UsageError) as caught:
        small(name).fit(base, erase, preserve)
    assert str(caught.value) == sentence.format(split(name)[0].__name__)


def bad_values() -> list[tuple[str, str, Any]]:
    """(method, hyper-parameter, value): one beyond each bound, an unknown choice, another type."""
    out: list[tuple[str, str, Any]] = []
    for method in TABLE:
        for f in fields(find(method)):
            m = f.metadata
            beyond = [
                m["at_least"] - 1 if m["at_least"] is not None else None,
                m["above"],
                m["at_most"] + 1 if m["at_most"] is not None else None,
            ]
            out += [(method, f.name, f.type(v)) for v in beyond if v is not None]
            out.append((method, f.name, 7 if f.type is str else "no such thing"))
            if f.type is float:
                out.append((method, f.name, float("nan")))
    return out


@pytest.mark.parametrize(("method", "name", "value"), bad_values())
@pytest.mark.usefixtures("untyped")
def test_a_bad_hyper_parameter_is_one_sentence(method: str, name: str, value: Any) -> None:
    cls = find(method)
    f = next(f for f in fields(cls) if f.name == name)
    with pytest.raises(UsageError) as caught:
        cls(**{name: value})
    message = str(caught.value)
    assert message.startswith(f"{cls.__name__}.{name}: ")
    assert repr(value) in message
    assert f.metadata["help"] in message or all(str(c) in message for c in choices(f))
    assert "\n" not in message


@pytest.mark.parametrize("method", list(TABLE))
def test_an_eraser_is_a_frozen_value_with_defaults(method: str) -> None:
    cls = find(method)
    assert cls() == cls()
    assert all(f.metadata["help"] for f in fields(cls))
    assert cls.needs <= NEEDS.keys()
    with pytest.raises(dataclasses.FrozenInstanceError):
        cls().seed = 3  # type: ignore[misc]
    with pytest.raises(UsageError, match=rf"^{cls.__name__}: unknown preset 'no such'; known: "):
        cls.preset("no such")


def test_names_are_methods_and_their_presets() -> None:
    assert set(TABLE) < set(METHODS)
    for name in METHODS:
        cls, settings = split(name)
        assert make(name) == (cls.preset(name.partition("-")[2]) if settings else cls())
        assert {k: getattr(make(name), k) for k in settings} == settings
    assert make("esd-x", steps=7).steps == 7
    for wrong in ("uec", "uce-2077", "nothing", "esd-"):
        with pytest.raises(UsageError, match=f"^method: unknown '{wrong}'; .*known: .*uce-2023"):
            make(wrong)
    with pytest.raises(UsageError, match="did you mean 'uce'"):
        find("ucee")
