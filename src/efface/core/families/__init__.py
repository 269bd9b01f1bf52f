"""Model families: `family_of` finds the one of a pipeline. All code that differs between families is in this folder."""

from diffusers import DiffusionPipeline

from efface.core.errors import UsageError
from efface.core.families.base import Family as Family
from efface.core.families.flux import Flux
from efface.core.families.sd import StableDiffusion
from efface.core.families.sd3 import StableDiffusion3
from efface.core.families.sdxl import StableDiffusionXL

FAMILIES: tuple[Family, ...] = (StableDiffusion(), StableDiffusionXL(), StableDiffusion3(), Flux())
PIPELINES = tuple(c.__name__ for f in FAMILIES for c in f.pipelines)  # diffusers' classes


def family_of(pipeline: DiffusionPipeline) -> Family:
    """The family of a pipeline that has all its parts.

    Raises:
        UsageError: a pipeline of no known family, or one without a part.
    """
    family = next((f for f in FAMILIES if isinstance(pipeline, f.pipelines)), None)
    if family is None:
        raise UsageError(
            f"model: expected a text-to-image pipeline ({', '.join(PIPELINES)}), got {type(pipeline).__name__}; give another model"
        )
    for part in (*family.parts.values(), *family.tokenizers):
        if getattr(pipeline, part) is None and part not in family.optional:
            raise UsageError(
                f"model: expected a pipeline with {part}, got one without; efface encodes prompts: load the whole pipeline"
            )
    for name in family.tokenizers:
        tok = getattr(pipeline, name)
        if tok is not None and len(tok) <= len(
            set(tok.all_special_ids)
        ):  # what transformers makes of a folder without the files
            raise UsageError(
                f"model: expected a {name} with a vocabulary, got one without; the model's folder lacks {name}/: copy it whole"
            )
    if getattr(pipeline, "vae", None) is None:
        raise UsageError(
            "model: expected a pipeline with vae, got one without; it decodes latents to pictures: load the whole pipeline"
        )
    return family
