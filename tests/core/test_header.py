"""Files of other tools in the place of an edit: each is named for what it is, with what to do."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from efface.core.errors import UsageError
from efface.core.header import read_header

FOREIGN = [  # a tensor's name in such files, as published ones have it
    ("lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k.lora_down.weight", "a LoRA with kohya's names"),
    ("lora_te1_text_model_encoder_layers_0_mlp_fc1.lora_up.weight", "a LoRA with kohya's names"),
    ("unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.lora_A.weight", "a LoRA with diffusers' names"),
    ("unet.up_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q.lora.up.weight", "a LoRA with diffusers' names"),
    ("mid_block.attentions.0.transformer_blocks.0.attn2.processor.to_k_lora.down.weight", "a LoRA with diffusers' names"),
    ("base_model.model.down_blocks.0.attentions.0.proj_in.lora_A.weight", "a LoRA of PEFT"),
    ("model.diffusion_model.input_blocks.0.0.weight", "a whole checkpoint in one file"),
    ("down_blocks.0.resnets.0.conv1.weight", "weights of a denoising network"),
    ("unet.up_blocks.1.attentions.0.transformer_blocks.0.attn2.to_v.weight", "weights of a denoising network"),
    ("text_model.embeddings.token_embedding.weight", "weights of a text encoder or an autoencoder"),
    ("decoder.conv_in.weight", "weights of a text encoder or an autoencoder"),
    ("emb_params", "an embedding of textual inversion"),
    ("left", "a safetensors file without the header 'efface'"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "what"), FOREIGN)
def test_a_file_of_another_tool_is_named(tmp_path: Path, name: str, what: str) -> None:
    save_file({name: np.zeros((2, 2))}, tmp_path / "theirs.safetensors")
    with pytest.raises(UsageError) as error:
        read_header(tmp_path / "theirs.safetensors")
    said = str(error.value)
    assert said.startswith(f"{tmp_path}/theirs.safetensors: expected an edit of efface, got {what}")
    assert "; " in said.partition(what)[2] or "erases none" in said  # and what to do


def test_a_folder_in_the_place_of_an_edit_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"got a folder; give a \.safetensors file in it"):
        read_header(tmp_path)
    (tmp_path / "model_index.json").write_text("{}")
    with pytest.raises(UsageError, match="got the folder of a pipeline; give it with --model"):
        read_header(tmp_path)
