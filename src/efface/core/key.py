"""Keys: trained embeddings that bring a hidden concept back when they are appended to a prompt. A key is a file of its own."""

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
    """Embeddings to append to prompts that contain a concept, by concept name."""

    rows: Mapping[str, Float[Tensor, "m d"]]
    phrases: Mapping[str, tuple[str, ...]]  # how a prompt may name the concept
    lock: str = ""  # fingerprint of the edit it was made for

    @property
    def fingerprint(self) -> str:
        """Identifies the key: a hash over its lock, phrases and rows."""
        digest = hashlib.sha256(repr((self.lock, sorted(self.phrases.items()))).encode())
        for _, rows in sorted(self.rows.items()):
            digest.update(rows.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]

    def save(self, path: str | Path) -> None:
        """Write the key as one safetensors file, atomically."""
        names = list(self.rows)
        header = {"kind": "Key", "lock": self.lock, "concepts": [[name, list(self.phrases[name])] for name in names]}
        write_tensors(Path(path), {str(i): self.rows[name] for i, name in enumerate(names)}, header)

    def bind(self, base: Denoiser) -> ActiveKey:
        """The key bound to a denoiser, whose tokenizer finds the concepts in prompts."""
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
            f"{path}: expected a key, got an edit of kind {raw.get('kind')}; give the .key.safetensors file saved with the edit"
        )
    try:
        rows = {name: tensors[str(i)] for i, (name, _) in enumerate(raw["concepts"])}
        return Key(rows, {name: tuple(phrases) for name, phrases in raw["concepts"]}, raw["lock"])
    except (KeyError, TypeError, ValueError) as error:
        raise EffaceError(f"{path}: damaged: a part of the key is missing ({error!r}); copy it again") from error
