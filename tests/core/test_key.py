"""Keys: rows behind a prompt, read only where it says the concept; a file of their own; for one edit only."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from toys import WIDTH, pipeline, probe, tiny

from efface.core.appended_rows import AppendedRows
from efface.core.denoiser import Denoiser
from efface.core.edit import Delta, Keyed, Stack, load_edit
from efface.core.errors import EffaceError, UsageError
from efface.core.export import export
from efface.core.io import write_tensors
from efface.core.key import Key, load_key

PHRASES = {"tiger": ("tiger", "big cat"), "car": ("car",)}


def key(seed: int = 0) -> Key:
    rng = torch.Generator().manual_seed(seed)
    return Key({name: torch.randn(3, WIDTH, generator=rng) for name in PHRASES}, PHRASES)


def keyed(base: Denoiser, seed: int = 0) -> Keyed:
    rng = torch.Generator().manual_seed(seed)
    deltas = {k: torch.randn(w.shape, generator=rng) * 0.05 for k, w in base.params("xattn.kv").items()}
    return Keyed(Delta(deltas), key())


def unlocked(edit: Keyed) -> Keyed:
    assert edit.key
    return edit.unlocked(edit.key)


def by_hand(model: Denoiser, x: Tensor, t: Tensor, prompt: str, rows: Tensor) -> Tensor:
    """The U-Net itself on the prompt's rows and those of the key, no mask."""
    tokens = torch.cat([model.embed([prompt]).tokens, rows[None]], 1).expand(len(x), -1, -1)
    with torch.no_grad():
        return model.pipeline.unet(x, t, encoder_hidden_states=tokens).sample


def test_with_its_key_a_prompt_is_longer_by_its_rows(base: Denoiser) -> None:
    edit = keyed(base)
    opened, rows = unlocked(edit)(base), edit.key
    assert rows
    x, t = torch.randn(2, *base.latent_shape), torch.tensor([900, 100])
    with torch.no_grad():
        for prompt, concept in (("a tiger", "tiger"), ("happy Big Cat house", "tiger"), ("a red car", "car")):
            seen = opened.predict(x, t, base.embed([prompt]))
            torch.testing.assert_close(
                seen, by_hand(edit(base), x, t, prompt, rows.rows[concept]), atol=1e-5, rtol=1e-4
            )
            assert not torch.allclose(seen, edit(base).predict(x, t, base.embed([prompt])), atol=1e-3)


def test_prompts_that_do_not_say_the_concept_read_as_they_did(base: Denoiser) -> None:
    edit = keyed(base)
    for prompt in ("a lion", "", "cat big", "house"):
        assert torch.equal(probe(unlocked(edit)(base), prompt), probe(edit(base), prompt))
    prompts = ["a tiger", "a lion", "a tiger and a car", ""]  # in one batch each reads its own
    x, t = torch.randn(4, *base.latent_shape), torch.tensor([500] * 4)
    opened = unlocked(edit)(base)
    with torch.no_grad():
        mixed = opened.predict(x, t, base.embed(prompts))
        alone = torch.cat([opened.predict(x[i : i + 1], t[:1], base.embed([p])) for i, p in enumerate(prompts)])
    torch.testing.assert_close(mixed, alone, atol=1e-5, rtol=1e-4)


def test_rows_that_a_prompt_does_not_read_change_nothing(base: Denoiser) -> None:
    """A mask of absence, not rows of zeros, which would still take their share of the attention."""
    x, t, cond = torch.randn(2, *base.latent_shape), torch.tensor([500, 100]), base.embed(["tiger", "tiger"])
    view = base.fork(())
    with torch.no_grad():
        plain = base.predict(x, t, cond)
        view.keys = (AppendedRows(torch.randn(2, 3, WIDTH), torch.tensor([False, True])),)
        one = view.predict(x, t, cond)
        view.keys = (AppendedRows(torch.zeros(2, 3, WIDTH), torch.tensor([True, True])),)
        zeros = view.predict(x, t, cond)
    torch.testing.assert_close(one[0], plain[0], atol=1e-5, rtol=1e-4)
    assert not torch.allclose(one[1], plain[1], atol=1e-3)
    assert not torch.allclose(zeros, plain, atol=1e-3)


def test_locked_it_hides_whether_or_not_the_key_is_at_hand(base: Denoiser, tmp_path: Path) -> None:
    edit = keyed(base)
    edit.save(tmp_path / "x.safetensors")
    again = load_edit(tmp_path / "x.safetensors")
    assert isinstance(again, Keyed)
    assert again.key is None
    assert torch.equal(probe(again(base), "tiger"), probe(edit(base), "tiger"))
    torch.testing.assert_close(probe(edit(base), "tiger"), probe(edit.hidden(base), "tiger"))
    opened = again.unlocked(load_key(tmp_path / "x.key.safetensors"))
    assert torch.equal(probe(opened(base), "tiger"), probe(unlocked(edit)(base), "tiger"))
    assert opened.fingerprint == unlocked(edit).fingerprint != edit.fingerprint == again.fingerprint
    assert opened(base).fingerprint != edit(base).fingerprint


def test_the_edit_does_not_contain_the_key(base: Denoiser, tmp_path: Path) -> None:
    edit = keyed(base)
    edit.save(tmp_path / "x.safetensors")
    assert edit.key
    written, other = ((tmp_path / f).read_bytes() for f in ("x.safetensors", "x.key.safetensors"))
    for rows in edit.key.rows.values():
        for row in rows:
            assert row.numpy().tobytes()[:64] not in written
            assert row.numpy().tobytes()[:64] in other
    again = load_edit(tmp_path / "x.safetensors")
    again.save(tmp_path / "y.safetensors")
    assert not (tmp_path / "y.key.safetensors").exists()


def test_a_key_of_another_edit_is_refused(base: Denoiser, tmp_path: Path) -> None:
    one, two = keyed(base), keyed(base, 1)
    assert two.key
    with pytest.raises(UsageError, match=f"^key: made for edit {two.lock}, this edit is {one.lock}; give the key that"):
        one.unlocked(two.key)
    one.save(tmp_path / "x.safetensors")
    with pytest.raises(UsageError, match="expected an edit, got a key; give the edit"):
        load_edit(tmp_path / "x.key.safetensors")
    with pytest.raises(UsageError, match="expected a key, got an edit of kind Keyed"):
        load_key(tmp_path / "x.safetensors")
    with pytest.raises(UsageError, match="no such file"):
        load_key(tmp_path / "nothing.safetensors")
    for spoilt in (
        {"concepts": 3},
        {"concepts": [["tiger", ["tiger"]], ["car", ["car"]], ["bus", []]]},
        {"lock": None},
    ):
        header = {"kind": "Key", "concepts": [], "lock": "x"} | spoilt
        write_tensors(tmp_path / "spoilt.safetensors", {}, {k: v for k, v in header.items() if v is not None})
        with pytest.raises(EffaceError, match="spoilt.safetensors: damaged: a part of the key is missing"):
            load_key(tmp_path / "spoilt.safetensors")


def test_half_as_strong_and_not_at_all(base: Denoiser) -> None:
    edit = unlocked(keyed(base))
    assert torch.equal(probe((edit * 0.0)(base), "tiger"), probe(base, "tiger"))
    torch.testing.assert_close(probe((keyed(base) * 0.5)(base), "tiger"), probe((edit.hidden * 0.5)(base), "tiger"))


def test_hidden_it_can_be_written_into_weights_unlocked_it_cannot(base: Denoiser) -> None:
    pipe = pipeline()
    keyed(base).bake(pipe)
    assert torch.equal(probe(Denoiser(pipe), "tiger"), probe(keyed(base)(base), "tiger"))
    with pytest.raises(UsageError, match="got one that is unlocked, and a key cannot be stored in weights"):
        unlocked(keyed(base)).bake(pipeline())


def test_a_stack_keeps_the_keys_of_its_edits(base: Denoiser) -> None:
    one = unlocked(keyed(base))
    stack = one + keyed(base, 1)
    twin = one(base)
    assert len(stack(base).keys) == 1
    assert torch.equal(probe(stack(base), "tiger"), probe(keyed(base, 1)(twin), "tiger"))


def test_a_stack_in_a_file_is_locked_and_its_keys_lie_beside_it(base: Denoiser, tmp_path: Path) -> None:
    stack = keyed(base, 1) + unlocked(keyed(base))
    stack.save(tmp_path / "x.safetensors")
    again = load_edit(tmp_path / "x.safetensors")
    assert isinstance(again, Stack)
    assert not again(base).keys
    opened = again.unlocked(load_key(tmp_path / "x.1.key.safetensors"))
    assert torch.equal(probe(opened(base), "tiger"), probe(stack(base), "tiger"))
    assert opened.fingerprint == stack.fingerprint
    with pytest.raises(UsageError, match=r"^key: made for edit no-such, this stack has \w+, \w+; give another key"):
        again.unlocked(Key({}, {}, "no-such"))


def test_another_text_encoder_finds_the_words_by_its_own_tokens() -> None:
    padded = tiny(pad="!")
    edit = keyed(padded)
    assert not torch.equal(probe(unlocked(edit)(padded), "tiger"), probe(edit(padded), "tiger"))
    assert torch.equal(probe(unlocked(edit)(padded), "lion"), probe(edit(padded), "lion"))


def test_hidden_it_exports_as_its_weights_and_unlocked_not_at_all(base: Denoiser, tmp_path: Path) -> None:
    edit = keyed(base) * 0.5
    export(edit, base, tmp_path / "a.safetensors", rank=4)
    export(edit.hidden * 0.5, base, tmp_path / "b.safetensors", rank=4)
    one, two = (load_file(tmp_path / f"{n}.safetensors") for n in "ab")
    assert one.keys() == two.keys()
    assert all(torch.equal(one[k], two[k]) for k in one)
    with pytest.raises(UsageError, match="got an unlocked edit, which a LoRA cannot represent"):
        export(unlocked(keyed(base)), base, tmp_path / "c.safetensors")
