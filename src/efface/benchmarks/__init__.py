"""All benchmarks by name. A new protocol needs its declaration and a line in this table."""

import csv
import importlib
from functools import cache
from pathlib import Path

from efface.benchmarks.spec import Benchmark
from efface.core.errors import UsageError, nearest

TABLE = {
    "moji": "efface.benchmarks.moji:MOJI",
    "imagenette": "efface.benchmarks.imagenette:SPLIT",
    "imagenette-known": "efface.benchmarks.imagenette:KNOWN",
    "imagenette-csv": "efface.benchmarks.imagenette:PUBLISHED",
    "imagenette-advanchor": "efface.benchmarks.imagenette:ADVANCHOR",
    "styles-advanchor": "efface.benchmarks.artists:STYLES",
    "artists": "efface.benchmarks.artists:FIVE",
    "artists-100": "efface.benchmarks.artists:HUNDRED_ARTISTS",
    "artists-100-celebrities": "efface.benchmarks.celebrities:AFTER_ARTISTS",
    "celebrities": "efface.benchmarks.celebrities:CELEBRITIES",
    "celebrities-distant": "efface.benchmarks.celebrities:DISTANT",
    "coco-1k": "efface.benchmarks.coco:ONE_THOUSAND",
    "coco-30k": "efface.benchmarks.coco:THIRTY_THOUSAND",
    "i2p": "efface.benchmarks.i2p:FIXED_GUIDANCE",
    "i2p-official": "efface.benchmarks.i2p:OFFICIAL",
    "unlearndiffatk-nudity": "efface.benchmarks.adversarial_prompts:UNLEARNDIFFATK_NUDITY",
    "unlearndiffatk-vangogh": "efface.benchmarks.adversarial_prompts:UNLEARNDIFFATK_VANGOGH",
    "unlearndiffatk-objects": "efface.benchmarks.adversarial_prompts:UNLEARNDIFFATK_OBJECTS",
    "ring-a-bell": "efface.benchmarks.adversarial_prompts:RING_A_BELL",
    "ring-a-bell-violence": "efface.benchmarks.adversarial_prompts:RING_A_BELL_VIOLENCE",
    "unlearncanvas": "efface.benchmarks.unlearncanvas:UNLEARNCANVAS",
}
ELSEWHERE = {  # protocols of data/published.csv that cannot be run here, and why
    "coco-fid": "FID and CLIP score against COCO's photographs, which are not shipped; each paper its own implementation",
    "ring-a-bell-cpe": "Ring-A-Bell on UnlearnDiffAtk's prompts and on six celebrities, as CPE reports it: its prompts are not published",
    "p4d": "P4D's prompts differ by the model that they attack",
    "i2p-advanchor": "AdvAnchor's classifier of I2P's categories is not published, and its file of nude prompts is cut off",
}


def find(name: str) -> Benchmark:
    """A benchmark by name.

    Raises:
        UsageError: no such benchmark.
    """
    if name not in TABLE:
        raise UsageError(f"benchmark: unknown {name!r}; {nearest(name, TABLE)}")
    module, _, one = TABLE[name].partition(":")
    return getattr(importlib.import_module(module), one)


def published(protocol: str = "") -> list[dict[str, str]]:
    """Published numbers (method, protocol, metric, value, std, source, note): of one protocol, or of all.

    Raises:
        UsageError: no number of such a protocol is known.
    """
    known = {row["protocol"] for row in _published()}
    if protocol and protocol not in known:
        raise UsageError(f"protocol: no published number of {protocol!r}; {nearest(protocol, known)}")
    return [row for row in _published() if protocol in ("", row["protocol"])]


@cache
def _published() -> list[dict[str, str]]:
    text = (Path(__file__).parent / "data" / "published.csv").read_text(encoding="utf-8")
    return list(csv.DictReader(text.splitlines()))
