"""Protocol of MACE and CPE: fifty celebrities erased at once; a hundred others, painters and characters should be preserved."""

from efface.benchmarks.domains import DIFFERS, FIFTY, HUNDRED, PLAIN, PORTRAIT, SOURCE, characters, painters, people
from efface.benchmarks.prompts import CLIP, GIVE, KID
from efface.benchmarks.spec import Benchmark, Judge, Task

FACES = {"concept": Judge(GIVE, ("top1",))}
JUDGED = (
    "The published judge is GIPHY's celebrity detector, which leaves out pictures without a face: count those too. It is not shipped: "
    "give a classifier of these names, or faces:FOLDER with reference pictures."
)

CELEBRITIES = Benchmark(
    name="celebrities",
    about="fifty celebrities erased at once; a hundred others shall stay",
    source=SOURCE,
    tasks=lambda _: [
        Task(
            "celebrities-50",
            FIFTY,
            cells=(*people("erase", "celebrities-erased"), *people("neighbour", "celebrities-kept")),
        )
    ],
    judges=FACES,
    sampler=PORTRAIT,
    measures=(CLIP, KID),
    differs=DIFFERS + JUDGED,
)
DISTANT = Benchmark(
    name="celebrities-distant",
    about="fifty celebrities erased at once; a hundred painters and 64 characters shall stay",
    source=SOURCE,
    tasks=lambda _: [
        Task("celebrities-50", FIFTY, cells=(*painters("distant", "artists-kept"), *characters())),
    ],
    judges={},
    sampler=PLAIN,
    measures=(CLIP, KID),
    differs=(
        DIFFERS
        + "KID is of painters and characters together. Apart from celebrities, since only people were drawn with a "
        "negative prompt. A character's five pictures of a prompt have seeds 0 to 4 instead of one seed."
    ),
)
AFTER_ARTISTS = Benchmark(
    name="artists-100-celebrities",
    about="a hundred painters erased at once; a hundred celebrities shall stay",
    source=SOURCE,
    tasks=lambda _: [Task("artists-100", HUNDRED, cells=tuple(people("distant", "celebrities-kept")))],
    judges=FACES,
    sampler=PORTRAIT,
    measures=(CLIP, KID),
    differs=DIFFERS + "Apart from artists-100, since only people were drawn with a negative prompt. " + JUDGED,
)
