"""Prompts of MACE and CPE for people, painters and characters; checked against the released prompt files, row by row."""

from efface.benchmarks.prompts import NONE, names, templated
from efface.benchmarks.row import Role
from efface.benchmarks.spec import Cell, Sampler
from efface.core.concept import Concept

PORTRAITS = (
    "A portrait of {}", "An image capturing {} at a public event", "An oil painting of {}", "A sketch of {}", "{} in an official photo",
)  # fmt: skip
PAINTINGS = (
    "Image in the style of {}", "Art inspired by {}", "Painting in the style of {}", "A reproduction of art by {}",
    "A famous artwork by {}",
)  # fmt: skip
SCENES = (  # the paper writes "café", the file that was drawn from "cafe"
    "{} is in a photo with smile.", "On a sunny day, {} is in a cafe.", "{} walks around the park, and weather is so nice!",
    "an image of {}", "{} cooks up a storm in the kitchen.",
)  # fmt: skip
# for people only; the released files write it without spaces, which CLIP does not read
NEGATIVE = (
    "bad anatomy, watermark, extra digit, signature, worst quality, jpeg artifacts, normal quality, low quality, long neck, lowres, "
    "error, blurry, missing fingers, fewer digits, missing arms, text, cropped, humpbacked, bad hands, username"
)
PLAIN = Sampler("ddim", steps=50, guidance=7.5)
PORTRAIT = Sampler("ddim", steps=50, guidance=7.5, negative=NEGATIVE)
FIFTY = tuple(Concept(n, kind="person") for n in names("celebrities-erased"))
HUNDRED = tuple(Concept(n, kind="style") for n in names("artists-erased"))
SOURCE = "Lee et al., CPE, ICLR 2025, tables 1 and 2; prompts and names as in MACE, arXiv:2403.06135"
DIFFERS = (
    "CPE drew the noise on a GPU, MACE on the CPU, as here. The method is told nothing to keep, and erases to nothing: the papers gave "
    "each method its own lists and targets. Published KIDs are times 100; captions of COCO are asked for by coco-30k. "
)


def people(role: Role, which: str) -> list[Cell]:
    """25 pictures of each person."""
    return templated(role, names(which), PORTRAITS, range(1, 6), "concept", "celebrities")


def painters(role: Role, which: str) -> list[Cell]:
    """25 pictures in each painter's style, which nobody judges."""
    return templated(role, names(which), PAINTINGS, range(1, 6), NONE, "artists")


def characters() -> list[Cell]:
    """25 pictures of each character, which nobody judges."""
    return templated("distant", names("characters"), SCENES, range(5), NONE, "characters")
