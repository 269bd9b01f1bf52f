"""Every preset of every method, value by value, as the released code or its scripts have it; a preset without a row here is a failure.

A row names where its values were read; what a preset leaves at a default is in its row as well, where the released code has a word
for it. Numbers in the units of a method of ours (CPE's and MACE's weights) are derived beside the row.
"""

from dataclasses import fields
from typing import Any

import pytest

from efface.erasers import TABLE, find

# the sampling that ESD's scripts and all that descend from them share: --start_guidance 3, ddim_steps 50, one latent at a time of the
# model in training, the bare prompt
ESD_2023 = {
    "steps": 1000,
    "lr": 1e-5,
    "batch": 1,
    "source": "edited",
    "reuse": 1,
    "sampler_steps": 50,
    "guidance": 3.0,
    "templates": False,
}

RELEASED: dict[str, dict[str, Any]] = {
    # rohitgandikota/unified-concept-editing at f7222e6: lamb 0.5, erase_scale 1, preserve_scale max(0.1, 1/n) (0 here), `replace`
    "uce-2023": {
        "tokens": "last_to_end", "ridge": 0.5, "ridge_unit": "absolute", "erase_scale": 1.0, "preserve_scale": 0.0, "everyday": 0,
        "templates": False, "technique": "replace", "pooled": False,
    },
    "uce-2023-tensor": {
        "tokens": "last_to_end", "ridge": 0.5, "ridge_unit": "absolute", "erase_scale": 1.0, "preserve_scale": 0.0, "everyday": 0,
        "templates": False, "technique": "tensor", "pooled": False,
    },
    # the same at 28c81ed, trainscripts/uce_sd_erase.py: lamb 0.5, erase_scale 1, preserve_scale 1, the last token alone
    "uce-2025": {
        "tokens": "last", "ridge": 0.5, "ridge_unit": "absolute", "erase_scale": 1.0, "preserve_scale": 1.0, "everyday": 0,
        "templates": False, "technique": "replace", "pooled": False,
    },
    # f7222e6, train-scripts/train_debias.py: weight_step 0.1, 5 seeds x 10 images, preserve_scale 0.1, no "" among what stays
    "debias-2023": {
        "wording": "{attribute}", "rounds": 30, "rate": 0.1, "tolerance": 0.05, "batch": 50, "sampler_steps": 20, "guidance": 7.5,
        "mixes": "outputs", "solver": "uce-2023", "preserve_scale": 0.1, "keep_empty": False,
        "classifier": "clip:openai/clip-vit-base-patch32",
    },
    # 28c81ed, trainscripts/uce_sd_debias.py: step_size is not used, num_images_per_prompt 10, preserve_scale 1 (UCE's of 2025)
    "debias-2025": {
        "wording": "{attribute}", "rounds": 30, "rate": 1.0, "tolerance": 0.05, "batch": 10, "sampler_steps": 20, "guidance": 7.5,
        "mixes": "rows", "solver": "uce-2025", "preserve_scale": 0.0, "keep_empty": False,
        "classifier": "clip:openai/clip-vit-base-patch32",
    },
    # bahjat-kawar/time-diffusion, apply_time.py and train_funcs.py: lamb 0.1
    "time-released": {
        "alignment": "forward", "preserve_scale": 0.0, "ridge": 0.1, "ridge_unit": "absolute", "padding": "each", "templates": False,
        "pooled": False,
    },
    # CharlesGong12/RECE, scripts/nudity.sh: regular_scale 0.1, epochs 3, preserve_scale 0.1, lamb 0.1, [" "] * concepts
    "rece-released": {
        "rounds": 3, "limit": 0.1, "limit_unit": "absolute", "enough": 0.0, "anchor": "edited", "erase_scale": 1.0, "preserve_scale": 0.1,
        "ridge": 0.1, "empty": "each", "templates": False, "pooled": False,
    },
    # scripts/art.sh and train_object.py's defaults: regular_scale 1e-3, epochs 1, [""] + what is preserved
    "rece-released-narrow": {
        "rounds": 1, "limit": 1e-3, "limit_unit": "absolute", "enough": 0.0, "anchor": "edited", "erase_scale": 1.0,
        "preserve_scale": 0.1, "ridge": 0.1, "empty": "once", "templates": False, "pooled": False,
    },
    # Shilin-LU/MACE, configs/celebrity and art: learning_rate 1e-4, max_train_steps 50, train_batch_size 1, eight images by 30 steps at
    # 7.5, use_pooler, importance_sampling. COCO's trace is 2e4 concepts' (3.7e10 / 1.8e6): a scale of 1e-4 is λ2 = 2, and its square 2e-4
    "mace-released": {
        "steps": 50, "lr": 1e-4, "batch": 1, "drawn": 8, "sampler_steps": 30, "guidance": 7.5, "words": "ends", "loss": "norm",
        "focus": True, "refine_prior": 2e-4, "fuse_prior": 2.0,
    },
    # Hyun1A/CPE, configs/train_celeb and its script: 450 iterations, factor_init_iter 4, factor_init_lr 10, lr 3e-5, guide 0.3, pal 1e5,
    # gate_rank 16, rank 1, num_add_prompts 16, num_stages 5 (of which the last attack is not used), 50 + 100 anchors, 32 mixed a step;
    # the noise of 0.001 |E|_F is a quarter of an entry's root mean square: √(77 · 768) / 1000
    "cpe-released": {
        "steps": 450, "opening": 4, "rounds": 4, "lr": 3e-4, "batch": 1, "eta": 0.3, "anchor_weight": 1e5, "anchors": 32, "near": 150,
        "noise": 0.25, "mixup": True, "gate_rank": 16, "site_rank": 1, "attacks": 16, "attack_lr": 1e-2, "bank": False,
        "bound": "released", "tied": True, "pooled": False,
    },
    # rohitgandikota/erasing: the paper's names for the weights
    "esd-x": {"where": "xattn", "eta": 1.0},
    "esd-u": {"where": "noxattn", "eta": 1.0},
    "esd-selfattn": {"where": "selfattn", "eta": 1.0},
    "esd-full": {"where": "denoiser", "eta": 1.0},
    "esd-strict": {"where": "xattn.kv", "eta": 1.0},
    # at a2189e9, train-scripts/train-esd.py
    "esd-2023": {**ESD_2023, "where": "xattn", "eta": 1.0},
    # at 25613d2, esd_sd.py: negative_guidance 2 is η + 1; Linear and Conv2d modules alone
    "esd-2025": {**ESD_2023, "where": "xattn.layers", "eta": 1.0, "steps": 200, "lr": 5e-5, "source": "base"},
    # tuananhbui89/Adaptive-Guided-Erasure, train-naive.py: negative_guidance 1, lamda 0.1
    "naive-released": {**ESD_2023, "where": "xattn", "eta": 1.0, "preserve_scale": 0.1, "kept_latents": "concept"},
    # nupurkmr9/concept-ablation, diffusers/README.md: lr 2e-6 times a batch of 4 on 2 GPUs, and twice that with a prior, whose weight of 1
    # is 1/4 where the other term sums over four channels
    "ablation-object": {
        "objective": "model", "where": "xattn.kv", "teacher": "frozen", "steps": 100, "lr": 3.2e-5, "batch": 8, "guidance": 6.0,
        "sampler_steps": 25, "drawn": 200, "prior": 0.25,
    },
    "ablation-style": {
        "objective": "model", "where": "xattn.kv", "teacher": "frozen", "steps": 100, "lr": 1.6e-5, "batch": 8, "guidance": 6.0,
        "sampler_steps": 25, "drawn": 200, "prior": 0.0,
    },
    # lr 5e-7 times a batch of 2 on 2 GPUs, twice with its prior
    "ablation-memorised": {
        "objective": "reverse", "where": "denoiser", "teacher": "frozen", "steps": 400, "lr": 4e-6, "batch": 4, "guidance": 6.0,
        "sampler_steps": 25, "prior": 0.25, "templates": False,
    },
    "ablation-released": {
        "objective": "model", "where": "xattn.kv", "teacher": "live", "steps": 100, "lr": 1.6e-5, "batch": 8, "guidance": 6.0,
        "sampler_steps": 25, "drawn": 1000, "prior": 0.0, "templates": False,
    },
    # tuananhbui89/Erasing-Adversarial-Preservation, run_imagenette.sh
    "ap-released": {
        **ESD_2023, "where": "xattn", "eta": 1.0, "keep": 1.0, "closest": 1000, "picks": 100, "cluster_by": "distance", "mode": "hard",
        "temperature": 2.0, "search_lr": 1e-2, "frozen_gradient": False, "space": "x0",
    },
    # tuananhbui89/Adaptive-Guided-Erasure, scripts/imagenette/erase_imagenette.sh
    "age-released": {
        **ESD_2023, "where": "xattn", "eta": 1.0, "keep": 1.0, "closest": 100, "picks": 100, "cluster_by": "distance", "mode": "hard",
        "temperature": 0.1, "search_lr": 1e-2, "frozen_gradient": False, "space": "x0",
    },
    # Con6924/SPM, configs/snoopy: la_strength 1000, sampling_batch_size 4, max_denoising_steps 30
    "spm-released": {
        "eta": 1.0, "anchoring": 1000.0, "anchors": 4, "around": "noise", "gate": "released", "steps": 3000, "lr": 1e-4, "batch": 1,
        "source": "edited", "reuse": 1, "sampler_steps": 30, "guidance": 3.0, "templates": False,
    },
    # jasper0314-huang/Receler, train_receler.py: its 50 inner steps change nothing (the prompts go into a copy)
    "receler-released": {
        **ESD_2023, "width": 128, "eta": 1.0, "steps": 500, "lr": 3e-4, "localise": 0.1, "threshold": 0.1, "keep": 0.0, "vectors": 16,
        "adversarial_steps": 0,
    },
    # eq. 15 of the talk: towards the target, not past it
    "kpop-talk": {"eta": 0.0, "recover": 1.0},
    # ml-research/safe-latent-diffusion, the table of configurations; "weak20" is diffusers' weak
    "sld-weak": {"scale": 200.0, "threshold": 0.0, "warmup": 15, "momentum": 0.0, "beta": 0.0},
    "sld-weak20": {"scale": 20.0, "threshold": 0.0, "warmup": 15, "momentum": 0.0, "beta": 0.0},
    "sld-medium": {"scale": 1000.0, "threshold": 0.01, "warmup": 10, "momentum": 0.3, "beta": 0.4},
    "sld-strong": {"scale": 2000.0, "threshold": 0.025, "warmup": 7, "momentum": 0.5, "beta": 0.7},
    "sld-max": {"scale": 5000.0, "threshold": 1.0, "warmup": 0, "momentum": 0.5, "beta": 0.7},
}  # fmt: skip


def test_every_preset_has_its_row() -> None:
    assert {f"{method}-{preset}" for method in TABLE for preset in find(method).presets} == set(RELEASED)


@pytest.mark.parametrize("name", list(RELEASED))
def test_presets_are_as_released(name: str) -> None:
    method, _, preset = name.partition("-")
    made, plain = find(method).preset(preset), find(method)()
    given = {f.name: getattr(made, f.name) for f in fields(made)}
    assert {k: given[k] for k in RELEASED[name]} == RELEASED[name]
    others = {k: v for k, v in given.items() if k not in RELEASED[name]}
    assert others == {k: getattr(plain, k) for k in others}  # whatever a preset changes is in its row


def test_noise_and_weights_in_our_units_are_the_released_ones() -> None:
    assert RELEASED["cpe-released"]["noise"] == pytest.approx((77 * 768) ** 0.5 / 1000, rel=0.03)
    scale = 3.7e10 / 1.8e6  # traces of COCO's rows and of one concept's thirty prompts
    assert RELEASED["mace-released"]["fuse_prior"] == pytest.approx(1e-4 * scale, rel=0.05)
    assert RELEASED["mace-released"]["refine_prior"] == pytest.approx(1e-8 * scale, rel=0.05)
    assert RELEASED["ablation-object"]["lr"] == pytest.approx(2e-6 * 4 * 2 * 2)
    assert RELEASED["ablation-style"]["lr"] == pytest.approx(2e-6 * 4 * 2)
    assert RELEASED["ablation-memorised"]["lr"] == pytest.approx(5e-7 * 2 * 2 * 2)
