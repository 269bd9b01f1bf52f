"""Pictures from a folder: their middle, on white, in their order; what is no picture is one sentence."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from efface.core.errors import UsageError
from efface.core.pictures import read_pictures


def save(path: Path, pixels: np.ndarray) -> None:
    Image.fromarray(pixels.astype(np.uint8)).save(path)


def test_pictures_come_by_name_in_zero_to_one(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (2, 16, 16, 3))
    save(tmp_path / "b.png", pixels[1])
    save(tmp_path / "a.PNG", pixels[0])
    (tmp_path / "notes.txt").write_text("not a picture")
    (tmp_path / "sub").mkdir()
    got = read_pictures(tmp_path, 16, "X.pictures")
    assert got.shape == (2, 3, 16, 16)
    np.testing.assert_allclose(got.permute(0, 2, 3, 1).numpy() * 255, pixels, atol=1e-3)


def test_the_middle_is_kept_at_any_size(tmp_path: Path) -> None:
    wide = np.zeros((40, 120, 3))
    wide[:, 32:88] = [255, 0, 0]  # the square in the middle, and as far as resizing looks
    save(tmp_path / "wide.png", wide)
    assert torch.equal(read_pictures(tmp_path, 16, "X")[0], torch.tensor([1.0, 0, 0])[:, None, None].expand(3, 16, 16))
    save(tmp_path / "wide.png", np.full((4, 3, 3), 255))  # smaller than asked for
    assert torch.equal(read_pictures(tmp_path, 16, "X"), torch.ones(1, 3, 16, 16))


def test_what_is_transparent_is_white_and_grey_is_colour(tmp_path: Path) -> None:
    clear = np.zeros((8, 8, 4))
    clear[:4] = [0, 0, 255, 255]
    save(tmp_path / "a.png", clear)
    save(tmp_path / "b.png", np.full((8, 8), 51))
    one, two = read_pictures(tmp_path, 8, "X")
    assert torch.equal(one[:, 0, 0], torch.tensor([0.0, 0, 1]))
    assert torch.equal(one[:, 7, 0], torch.ones(3))
    torch.testing.assert_close(two, torch.full((3, 8, 8), 0.2))


def test_a_photo_stands_upright(tmp_path: Path) -> None:
    pixels = np.zeros((8, 8, 3))
    pixels[0] = 255  # the top row, stored as the left column of a picture on its side
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.rot90(pixels).astype(np.uint8)).save(tmp_path / "a.png", exif=exif)
    got = read_pictures(tmp_path, 8, "X")[0, 0]
    assert torch.equal(got, torch.cat([torch.ones(1, 8), torch.zeros(7, 8)]))


def test_no_pictures_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("not a picture")
    with pytest.raises(UsageError) as caught:
        read_pictures(tmp_path, 8, "X.pictures")
    sentence = "X.pictures: expected a folder of pictures, {!r} {}; give one with a PNG or JPG file"
    assert str(caught.value) == sentence.format(str(tmp_path), "has no pictures")
    with pytest.raises(UsageError) as caught:
        read_pictures(tmp_path / "notes.txt", 8, "X.pictures")
    assert str(caught.value) == sentence.format(str(tmp_path / "notes.txt"), "is not a folder")


@pytest.mark.parametrize("damage", ["text", "cut"])
def test_a_damaged_picture_is_one_sentence(tmp_path: Path, damage: str) -> None:
    file = tmp_path / "a.png"
    save(file, np.random.default_rng(0).integers(0, 256, (64, 64, 3)))
    file.write_bytes(b"no picture" if damage == "text" else file.read_bytes()[:2000])
    with pytest.raises(UsageError) as caught:
        read_pictures(tmp_path, 8, "X")
    assert str(caught.value) == f"X: expected pictures, {file} cannot be read as one; repair or remove it"
