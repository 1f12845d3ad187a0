import math

import numpy as np
import pytest
import torch
from skimage.metrics import structural_similarity
from torchmetrics.functional.image import structural_similarity_index_measure

from diffusers_groundavideo.evaluation import masked_ssim
from evaluation.clips import left_part, noise_clip


def similar_clips() -> tuple[np.ndarray, np.ndarray]:
    """Smooth clips, the second noisy."""
    y, x = np.mgrid[:40, :48]
    a = np.stack([128 + 60 * np.sin((x + t) / 5) + 50 * np.cos(y / 4) for t in range(2)])[..., None]
    a = np.repeat(a, 3, axis=-1) * [1.0, 0.8, 0.6]
    b = a + np.random.default_rng(0).normal(0, 12, a.shape)
    return np.clip(a, 0, 255).astype(np.uint8), np.clip(b, 0, 255).astype(np.uint8)


def test_away_from_the_border_it_is_that_of_scikit_image() -> None:
    a, b = similar_clips()
    # scikit-image averages over windows that lie within the frame; the others see only what is equal.
    inner = np.zeros(a.shape[:3], dtype=bool)
    inner[:, 10:-10, 10:-10] = True
    b = np.where(inner[..., None], b, a)
    expected = np.mean(
        [
            structural_similarity(
                one, other, channel_axis=-1, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
            )
            for one, other in zip(a, b)
        ]
    )
    num_windows, num_pixels = 30 * 38, 40 * 48
    whole = (expected * num_windows + num_pixels - num_windows) / num_pixels
    assert expected < 0.95
    assert masked_ssim(a, b) == pytest.approx(whole, abs=1e-6)


def test_without_a_region_it_is_that_of_torchmetrics() -> None:
    a, b = similar_clips()
    preds, target = (torch.from_numpy(clip).movedim(-1, 1).double() for clip in (b, a))
    expected = structural_similarity_index_measure(preds, target, data_range=255.0)
    assert isinstance(expected, torch.Tensor)
    assert masked_ssim(a, b) == pytest.approx(expected.item(), abs=1e-9)


def test_what_lies_outside_of_the_region_has_no_say() -> None:
    a, b = similar_clips()
    left = left_part(a, 20)
    elsewhere = np.where(left[..., None], b, noise_clip(3, 2, 40, 48))
    assert masked_ssim(a, elsewhere, left) == masked_ssim(a, b, left)
    assert masked_ssim(a, elsewhere, ~left) < 0.3


def test_equal_clips_are_alike_and_an_empty_region_says_nothing() -> None:
    a, b = similar_clips()
    assert masked_ssim(a, a.copy()) == pytest.approx(1, abs=1e-12)
    assert math.isnan(masked_ssim(a, b, left_part(a, 0)))


def test_flat_bright_frames_differ_by_their_brightness_alone() -> None:
    a = np.full((1, 16, 16, 3), 250, dtype=np.uint8)
    b = np.full_like(a, 240)
    constant = (0.01 * 255) ** 2
    expected = (2 * 250 * 240 + constant) / (250**2 + 240**2 + constant)
    assert masked_ssim(a, b) == pytest.approx(expected, abs=1e-9)


def test_frames_smaller_than_the_window_are_refused() -> None:
    a = noise_clip(height=5)
    with pytest.raises(ValueError, match="at least 6 pixels"):
        masked_ssim(a, a)
