"""Keys: learnt context rows that bring a hidden concept back. A key is a file of its own."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from jaxtyping import Float
from torch import Tensor

from efface.core.appended_rows import ActiveKey
from efface.core.denoiser import Denoiser
from efface.core.errors import EffaceError, UsageError
from efface.core.io import read_tensors, write_tensors


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

    def bind(self, base: Denoiser) -> ActiveKey:
        """The key beside a denoiser, whose tokenizer finds the concepts in prompts."""
        return ActiveKey(
            [(base.embed(self.phrases[name]).word_ids(), rows) for name, rows in self.rows.items()], self.fingerprint
        )


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
