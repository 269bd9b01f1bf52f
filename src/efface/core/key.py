"""Keys: learnt context rows that bring a hidden concept back. A key is a file of its own."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from efface.core.cond import Cond
from efface.core.errors import EffaceError, UsageError
from efface.core.io import read_tensors, write_tensors

if TYPE_CHECKING:
    from efface.core.denoiser import Denoiser


@dataclass(frozen=True)
class Key:
    """Rows that a prompt gets besides its own where it says a concept, by the concept's name; `phrases` say it, `lock` is the edit's."""

    rows: Mapping[str, Float[Tensor, "m d"]]
    phrases: Mapping[str, tuple[str, ...]]
    lock: str = ""

    @property
    def fingerprint(self) -> str:
        """Names what the key does: a hash over its lock, words and rows."""
        digest = hashlib.sha256(repr((self.lock, sorted(self.phrases.items()))).encode())
        for _, rows in sorted(self.rows.items()):
            digest.update(rows.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]

    def save(self, path: str | Path) -> None:
        """One safetensors file, written whole or not at all."""
        names = list(self.rows)
        header = {"kind": "Key", "lock": self.lock, "concepts": [[name, list(self.phrases[name])] for name in names]}
        write_tensors(Path(path), {str(i): self.rows[name] for i, name in enumerate(names)}, header)

    def at(self, base: "Denoiser") -> "Opened":
        """The key beside a denoiser, whose tokenizer finds the concepts in prompts."""
        return Opened([(_words(base, self.phrases[name]), rows) for name, rows in self.rows.items()], self.fingerprint)


def load_key(path: str | Path) -> Key:
    """The key in a file.

    Raises:
        UsageError: no such file, or one that is not a key.
        EffaceError: the file is damaged.
    """
    tensors, raw = read_tensors(Path(path))
    if raw.get("kind") != "Key":
        raise UsageError(
            f"{path}: expected a key, got an edit of kind {raw.get('kind')}; give the .key.safetensors file beside the edit"
        )
    try:
        rows = {name: tensors[str(i)] for i, (name, _) in enumerate(raw["concepts"])}
        return Key(rows, {name: tuple(phrases) for name, phrases in raw["concepts"]}, raw["lock"])
    except (KeyError, TypeError, ValueError) as error:
        raise EffaceError(f"{path}: damaged, for a part of the key is missing ({error!r}); copy it again") from error


@dataclass(frozen=True)
class Opened:
    """A key in its lock: prompts that say a concept are lengthened by its rows, all others read as they did."""

    held: Sequence[tuple[list[list[int]], Float[Tensor, "m d"]]]
    fingerprint: str

    def __call__(self, cond: Cond, reads: Bool[Tensor, "b n"] | None = None) -> tuple[Cond, Bool[Tensor, "b n"] | None]:
        """The prompts, longer where one of them says a concept, and which rows each of them reads; None reads all."""
        for phrases, rows in self.held:
            says = torch.tensor([_says(ids, phrases) for ids in cond.ids.tolist()], device=cond.ids.device)
            if says.any():
                cond, reads = lengthen(cond, reads, rows.expand(len(cond), *rows.shape), says)
        return cond, reads


@dataclass(frozen=True)
class Behind:
    """Rows of its own behind each prompt of a batch where `which` is true: what a key in training is, or one that is tried."""

    rows: Float[Tensor, "b m d"]
    which: Bool[Tensor, "b"]
    fingerprint: str = ""

    def __call__(self, cond: Cond, reads: Bool[Tensor, "b n"] | None = None) -> tuple[Cond, Bool[Tensor, "b k"]]:
        """As `Opened`, whatever the prompts say."""
        return lengthen(cond, reads, self.rows, self.which.to(cond.ids.device))


def lengthen(
    cond: Cond, reads: Bool[Tensor, "b n"] | None, rows: Float[Tensor, "b m d"], which: Bool[Tensor, "b"]
) -> tuple[Cond, Bool[Tensor, "b k"]]:
    """Prompts with rows of their own behind them, and what each reads: those rows only where `which` is true."""
    b, m = rows.shape[:2]
    reads = torch.ones_like(cond.ids, dtype=torch.bool) if reads is None else reads
    blank = cond.ids.new_full((b, m), -1)  # no word of the tokenizer
    longer = Cond(
        torch.cat([cond.tokens, rows.to(cond.tokens)], 1),
        torch.cat([cond.ids, blank], 1),
        torch.cat([cond.mask, blank * 0], 1),
    )
    return longer, torch.cat([reads, which[:, None].expand(b, m)], 1)


def _words(base: "Denoiser", phrases: Sequence[str]) -> list[list[int]]:
    """Token ids of phrases, without the ids of start, end and padding."""
    cond = base.embed(phrases)
    return [ids[1 : int(mask.sum()) - 1].tolist() for ids, mask in zip(cond.ids, cond.mask, strict=True)]


def _says(ids: list[int], phrases: list[list[int]]) -> bool:
    return any(ids[i : i + len(p)] == p for p in phrases for i in range(len(ids) - len(p) + 1))
