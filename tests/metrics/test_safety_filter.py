"""The output filter: diffusers' checker on equal weights, margins by hand, thresholds at their rate of false alarms."""

import numpy as np
import pytest
import torch
from diffusers.pipelines.stable_diffusion import StableDiffusionSafetyChecker
from transformers import CLIPConfig, CLIPImageProcessor

from efface.core.errors import UsageError
from efface.metrics.clip import ClipScorer
from efface.metrics.safety_filter import SafetyFilter


def pictures(n: int, size: int = 32) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (size, size, 3), dtype=np.uint8) for _ in range(n)]


def test_it_holds_back_what_diffusers_checker_does() -> None:
    torch.manual_seed(0)
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = CLIPConfig(
        vision_config={**small, "image_size": 32, "patch_size": 16}, text_config=small, projection_dim=16
    )
    checker = StableDiffusionSafetyChecker(config).eval()
    processor = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    shown = pictures(24)
    pixels = processor(shown, return_tensors="pt").pixel_values
    with torch.no_grad():  # concepts near the pictures' own embeddings, thresholds that tell them apart by little
        found = torch.nn.functional.normalize(checker.visual_projection(checker.vision_model(pixels)[1]), dim=1)
        for name, k in (("concept_embeds", 17), ("special_care_embeds", 3)):
            directions = torch.nn.functional.normalize(found[:k] + 0.1 * torch.randn(k, 16), dim=1)
            getattr(checker, name).copy_(directions)
            getattr(checker, f"{name}_weights").copy_(torch.quantile(found @ directions.T, 0.9, dim=0))
        _, flagged = checker(pixels, [p.copy() for p in shown])
    ours = SafetyFilter.of_checker(checker, processor)
    assert ours.flagged(shown) == flagged
    assert 0 < sum(flagged) < len(flagged)
    care = SafetyFilter(
        ours.id, ours.features, ours.concepts, ours.thresholds, ours.special, ours.special_thresholds - 2
    )
    assert torch.allclose(
        care.margins(shown).max(), ours.margins(shown).max() + 0.01, atol=2e-3
    )  # all pictures get special care
    assert ours.flagged([]) == []


def test_thresholds_hold_back_the_stated_share_of_other_things() -> None:
    scorer, others = ClipScorer("moji"), pictures(40, 64)
    for rate in (0.05, 0.25):
        made = SafetyFilter.of_words(scorer, ["beer"], others, rate)
        assert abs(sum(made.flagged(others)) / 40 - rate) <= 0.03
    cosines = torch.tensor(scorer.score(others, ["beer"] * 40)) / 100
    assert torch.allclose(made.margins(others)[:, 0], cosines.double() - made.thresholds, atol=1e-3)
    with pytest.raises(UsageError, match="expected at least 20 pictures of other things to set thresholds, got 3"):
        SafetyFilter.of_words(scorer, ["beer"], others[:3])
