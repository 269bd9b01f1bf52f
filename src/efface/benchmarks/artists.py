"""Protocols for painters: Bui et al.'s five and AdvAnchor's nine erased one by one, MACE's and CPE's hundred at once."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from efface.benchmarks.domains import DIFFERS, HUNDRED, PLAIN, SOURCE, characters, painters
from efface.benchmarks.imagenette import ADVANCHOR, LMS, one_by_one
from efface.benchmarks.prompts import CLIP, GIVE, KID, NONE, PROMPT, SEED, names, read_prompts
from efface.benchmarks.spec import Benchmark, Cell, Judge, PromptFile, Task
from efface.core.concept import Concept
from efface.core.errors import UsageError, nearest

NICHE = PromptFile(
    {"prompt": PROMPT, "seed": SEED, "artist": ("artist",)},
    "data/long_niche_art_prompts.csv of github.com/tuananhbui89/Erasing-Adversarial-Preservation",
    rows=200,
)


def _five(files: Mapping[str, Path]) -> Iterator[Task]:
    rows, known = read_prompts(files["artists"], NICHE), names("artists-five")
    if strange := [row["artist"] for row in rows if row["artist"] not in known]:
        raise UsageError(
            f"{files['artists']}: {strange[0]!r} is no artist of the protocol; {nearest(strange[0], known)}"
        )
    for gone in known:
        cells = [
            Cell("erase" if row["artist"] == gone else "neighbour", row["artist"], row["prompt"], row["seed"] + i, NONE)
            for row in rows for i in range(5)
        ]  # fmt: skip
        yield Task(gone.replace(":", ""), (Concept(gone, kind="style"),), (), tuple(cells))


FIVE = Benchmark(
    name="artists",
    about="five painters erased one by one; forty prompts for each, five pictures of each prompt",
    source="Bui et al., arXiv:2410.15618 (AP), arXiv:2403.12326 (KPOP)",
    tasks=_five,
    judges={},
    sampler=LMS,
    files={"artists": NICHE},
    measures=(CLIP,),
    differs=(
        "The five pictures of a row with seed s have seeds s to s + 4, where the published ones are five draws from one "
        "generator. Some were drawn by DDIM. The published LPIPS, at 512 pixels, needs weights of yours (lpips:512:FILE); CLIP "
        "was given pictures resized to 224, and clamped at 0."
    ),
)
HUNDRED_ARTISTS = Benchmark(
    name="artists-100",
    about="a hundred painters erased at once; a hundred others and 64 characters shall stay",
    source=SOURCE,
    tasks=lambda _: [
        Task(
            "artists-100",
            HUNDRED,
            cells=(*painters("erase", "artists-erased"), *painters("neighbour", "artists-kept"), *characters()),
        )
    ],
    judges={},
    sampler=PLAIN,
    measures=(CLIP, KID),
    differs=DIFFERS + "A character's five pictures of a prompt have seeds 0 to 4 instead of one seed.",
)
STYLES = Benchmark(
    name="styles-advanchor",
    about="nine painters erased one by one, asked for by bare names; 250 pictures of each",
    source=ADVANCHOR.source,
    tasks=lambda _: one_by_one(names("styles-advanchor"), "style", 250),
    judges={"concept": Judge(GIVE, ("top1",))},
    sampler=ADVANCHOR.sampler,
    measures=ADVANCHOR.measures,
    differs=(
        "250 seeds of one picture each stand for 50 seeds of five. The published judge is a ResNet-18 whose last layer was "
        "trained on the unedited model's pictures of these names; it is not to be had: train one and give its folder. The sampler "
        "is not known to us. The published LPIPS, at 64 pixels, needs weights of yours (lpips:64:FILE); FID of what was erased is "
        "not computed. Published numbers are means of three fits: give three seeds."
    ),
)
