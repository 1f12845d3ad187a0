"""With random weights in the backbone, as its own are a download; the layers that LPIPS learned on top are real."""

import math

import numpy as np
import pytest
import torch
from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

from diffusers_groundavideo.evaluation import masked_lpips
from evaluation.clips import left_part, noise_clip


pytestmark = pytest.mark.usefixtures("lpips_backbone")


def reference(a: np.ndarray, b: np.ndarray) -> float:
    """Mean LPIPS of the frames, in torchmetrics' other range of values."""
    lpips = LearnedPerceptualImagePatchSimilarity(net_type="squeeze")
    return float(lpips(*(torch.from_numpy(clip).movedim(-1, 1).float() / 127.5 - 1 for clip in (a, b))))


def test_without_a_region_it_is_that_of_torchmetrics_at_any_batch_size() -> None:
    a, b = noise_clip(0, 3, 32, 40), noise_clip(1, 3, 32, 40) // 2
    expected = reference(a, b)
    assert expected > 1e-4
    assert masked_lpips(a, b) == pytest.approx(expected, rel=1e-4)
    assert masked_lpips(a, b, batch_size=2) == pytest.approx(expected, rel=1e-4)


def test_the_distance_of_the_pasted_clip_is_divided_by_the_share_of_the_region() -> None:
    a, b = noise_clip(0, 2, 32, 40), noise_clip(1, 2, 32, 40) // 2
    left = left_part(a, 10)
    pasted = a.copy()
    pasted[:, :, :10] = b[:, :, :10]
    assert masked_lpips(a, b, left) == pytest.approx(4 * reference(a, pasted), rel=1e-4)


def test_what_lies_outside_of_the_region_has_no_say() -> None:
    a = noise_clip(0, 2, 32, 40)
    left = left_part(a, 10)
    changed_right = np.where(left[..., None], a, noise_clip(1, 2, 32, 40))
    assert masked_lpips(a, changed_right, left) == 0
    assert masked_lpips(a, changed_right, ~left) > 0


def test_the_same_damage_counts_about_the_same_in_a_smaller_region() -> None:
    a, b = noise_clip(0, 1, 128, 128), noise_clip(1, 1, 128, 128) // 2
    half, whole = masked_lpips(a, b, left_part(a, 64)), masked_lpips(a, b)
    assert half == pytest.approx(whole, rel=0.15)


def test_equal_clips_have_no_distance_and_an_empty_region_says_nothing() -> None:
    a = noise_clip(0, 1, 32, 32)
    assert masked_lpips(a, a.copy()) == 0
    assert math.isnan(masked_lpips(a, a, left_part(a, 0)))


def test_a_backbone_whose_weights_cannot_be_had_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    # No name resolves through a proxy on a port that nobody listens to.
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    a = noise_clip(0, 1, 32, 32)
    with pytest.raises(OSError, match="weights of its backbone 'alex'"):
        masked_lpips(a, a, net="alex")


def test_other_backbones_and_frames_too_small_are_refused() -> None:
    a = noise_clip(0, 1, 16, 32)
    with pytest.raises(ValueError, match="squeeze, alex, vgg"):
        masked_lpips(a, a, net="resnet")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="at least 17 pixels"):
        masked_lpips(a, a)
