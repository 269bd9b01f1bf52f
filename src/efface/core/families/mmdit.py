"""What families share whose denoiser is a multimodal transformer (MM-DiT) trained by rectified flow: Stable Diffusion 3 and Flux."""

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import nn
from typing_extensions import override  # in typing from Python 3.12

from efface.core.errors import UsageError
from efface.core.families.base import CrossAttention, Family, Rule
from efface.core.schedule import Schedule

TEXT = (".add_q_proj.", ".add_k_proj.", ".add_v_proj.", ".to_add_out.", ".norm_added_q.", ".norm_added_k.")
LAST = ("transformer.proj_out", "transformer.norm_out", "transformer.time_text_embed")


def _inside(name: str) -> bool:
    return name.startswith("transformer.")


def _text(name: str) -> bool:
    return _inside(name) and any(part in name for part in TEXT)


SELECTIONS: dict[str, Rule] = {
    "xattn.kv": lambda name, _: _inside(name) and (".add_k_proj." in name or ".add_v_proj." in name),
    "xattn": lambda name, _: _text(name),
    "selfattn": lambda name, _: _inside(name) and (".attn." in name or ".attn2." in name) and not _text(name),
    "attn": lambda name, _: _inside(name) and (".attn." in name or ".attn2." in name),
    "noxattn": lambda name, _: _inside(name) and not _text(name),
    "noxattn.2023": lambda name, _: _inside(name) and not _text(name) and not name.startswith(LAST),
    "denoiser": lambda name, _: _inside(name),
    "denoiser.layers": lambda name, owner: _inside(name) and isinstance(owner, nn.Linear | nn.Conv2d),
    "xattn.layers": lambda name, owner: _text(name) and isinstance(owner, nn.Linear),
    "noxattn.layers": lambda name, owner: (
        _inside(name) and not _text(name) and isinstance(owner, nn.Linear | nn.Conv2d)
    ),
    "text": lambda name, _: name.startswith(("text.", "text2.")),
    "text.layers": lambda name, owner: name.startswith(("text.", "text2.")) and isinstance(owner, nn.Linear),
    "text.embeddings": lambda name, _: name.startswith(("text.", "text2.")) and name.endswith("token_embedding.weight"),
}  # of an MM-DiT, "xattn" are the projections of the text rows in each joint attention

SAMPLERS = {
    "ddim": ("FlowMatchEulerDiscreteScheduler", {}),  # on a rectified flow, a step of DDIM is one of Euler's method
    "euler": ("FlowMatchEulerDiscreteScheduler", {}),
    "heun": ("FlowMatchHeunDiscreteScheduler", {}),
}


class MultimodalTransformer(Family):
    """Text and picture meet in joint attention: text enters by `context_embedder`, and by a pooled vector beside the timestep."""

    denoiser: ClassVar = "transformer"
    selections: ClassVar[Mapping[str, Rule]] = SELECTIONS
    samplers: ClassVar[Mapping[str, tuple[str, Mapping[str, Any]]]] = SAMPLERS
    kohya: ClassVar[Mapping[str, str]] = {}
    masks: ClassVar = False  # text has no position here: leaving a row out is the same as not attending to it

    @override
    def text_readers(self, pipe: Any) -> dict[str, nn.Linear]:
        return {"transformer.context_embedder": pipe.transformer.context_embedder}

    @override
    def pooled_readers(self, pipe: Any) -> dict[str, nn.Linear]:
        return {
            "transformer.time_text_embed.text_embedder.linear_1": pipe.transformer.time_text_embed.text_embedder.linear_1
        }

    @override
    def cross_attentions(self, pipe: Any) -> dict[str, CrossAttention]:
        return {}

    @override
    def transformers(self, pipe: Any) -> dict[str, nn.Module]:
        net, kinds = pipe.transformer, ("transformer_blocks", "single_transformer_blocks")
        return {f"transformer.{kind}.{i}": block for kind in kinds for i, block in enumerate(getattr(net, kind, ()))}

    @override
    def schedule(self, pipe: Any) -> Schedule:
        config = pipe.scheduler.config
        if not type(pipe.scheduler).__name__.startswith("FlowMatch"):
            raise UsageError(
                f"model: expected a flow-matching scheduler, got {type(pipe.scheduler).__name__}; give the model's own scheduler"
            )
        return Schedule.rectified_flow(config.num_train_timesteps, self.device(pipe))
