"""A model made elsewhere as an edit: how its weights differ from those of the unedited model."""

from collections.abc import Sequence

import torch

from efface.core.concept import Concept
from efface.core.denoiser import Denoiser
from efface.core.edit import Delta, Header
from efface.core.errors import UsageError

ELSEWHERE = "made elsewhere"  # in a header's `method`: there is no file of the edit itself


@torch.no_grad()
def difference(base: Denoiser, other: Denoiser, erased: Sequence[Concept], name: str) -> Delta:
    """The edit that turns `base` into `other`, up to rounding: differences of the denoiser's and the text encoder's weights.

    Args:
        base: the unedited model.
        other: the model made elsewhere.
        erased: what it was made to forget.
        name: what the user calls it.

    Raises:
        UsageError: `other` is of another family or shape, has another autoencoder, or does not differ.
    """
    mine, theirs = ({**m.params("denoiser"), **m.params("text")} for m in (base, other))
    shapes = [{k: tuple(w.shape) for k, w in weights.items()} for weights in (mine, theirs)]
    if type(base.family) is not type(other.family) or shapes[0] != shapes[1]:
        odd = next(iter(sorted(shapes[0].items() ^ shapes[1].items())), ("", ()))[0]
        raise UsageError(
            f"{name}: its weights have other names or shapes than those of the unedited model ({odd}); give its original with --model"
        )
    decoders = [dict(m.pipeline.vae.named_parameters()) for m in (base, other)]
    if decoders[0].keys() != decoders[1].keys() or any(
        not torch.equal(w, decoders[1][k].to(w)) for k, w in decoders[0].items()
    ):
        raise UsageError(
            f"{name}: it has another autoencoder than the unedited model; put the original's into its folder"
        )
    changed = {k: theirs[k].float().cpu() - w.float().cpu() for k, w in mine.items()}
    changed = {k: change for k, change in changed.items() if change.any()}
    if not changed:
        raise UsageError(
            f"{name}: its weights are those of the unedited model; give a model that was changed, and its original with --model"
        )
    header = Header(
        ELSEWHERE, erase=tuple(erased), base=base.fingerprint, model=name, signature=base.signature.written()
    )
    return Delta(changed, header)
