import math

import numpy as np
import pytest
from skimage.metrics import peak_signal_noise_ratio

from diffusers_groundavideo.evaluation import masked_psnr
from evaluation.clips import left_part, noise_clip


def test_without_a_region_it_is_that_of_scikit_image() -> None:
    a, b = noise_clip(0), noise_clip(1)
    assert masked_psnr(a, b) == pytest.approx(peak_signal_noise_ratio(a, b, data_range=255), abs=1e-9)


def test_within_a_region_it_is_that_of_the_cut_out_clips() -> None:
    a, b = noise_clip(0), noise_clip(1)
    expected = peak_signal_noise_ratio(a[:, :, :10], b[:, :, :10], data_range=255)
    assert masked_psnr(a, b, left_part(a, 10)) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("sigma", [2.0, 8.0])
def test_a_known_noise_level_is_found(sigma: float) -> None:
    a = np.full((4, 64, 64, 3), 128, dtype=np.uint8)
    noise = np.random.default_rng(0).normal(0, sigma, a.shape)
    b = np.rint(a + noise).astype(np.uint8)
    # Rounding adds the variance of a uniform error.
    assert masked_psnr(a, b) == pytest.approx(20 * math.log10(255 / math.sqrt(sigma**2 + 1 / 12)), abs=0.1)


def test_frames_are_pooled_before_the_logarithm() -> None:
    a = np.zeros((2, 4, 4, 3), dtype=np.uint8)
    b = a.copy()
    b[1] = 10
    assert masked_psnr(a, b) == pytest.approx(10 * math.log10(255**2 / 50))


def test_equal_clips_are_infinitely_good_and_an_empty_region_says_nothing() -> None:
    a = noise_clip()
    assert masked_psnr(a, a.copy()) == math.inf
    assert math.isnan(masked_psnr(a, a, left_part(a, 0)))


def test_clips_and_regions_of_another_form_are_refused() -> None:
    a = noise_clip()
    with pytest.raises(ValueError, match="one shape"):
        masked_psnr(a, a[:2])
    with pytest.raises(ValueError, match="`b` must be uint8"):
        masked_psnr(a, a / 255)
    with pytest.raises(ValueError, match="`a` must be uint8 of shape"):
        masked_psnr(a[0], a[0])
    with pytest.raises(ValueError, match="`region` has to be bool of shape"):
        masked_psnr(a, a, left_part(a, 3)[0])
    with pytest.raises(ValueError, match="`region` has to be bool of shape"):
        masked_psnr(a, a, left_part(a, 3).astype(np.uint8))
