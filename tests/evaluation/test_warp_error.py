import math

import numpy as np
import pytest

from diffusers_groundavideo.evaluation import warp_error
from diffusers_groundavideo.spriteworld import random_scene, render
from evaluation.clips import noise_clip


def uniform_flow(clip: np.ndarray, dx: float, dy: float) -> np.ndarray:
    flow = np.empty((len(clip) - 1, 2, *clip.shape[1:3]), dtype=np.float32)
    flow[:, 0], flow[:, 1] = dx, dy
    return flow


def nothing_occluded(clip: np.ndarray) -> np.ndarray:
    return np.zeros((len(clip) - 1, *clip.shape[1:3]), dtype=bool)


def shifted_clip(dx: int, dy: int, num_frames: int = 4) -> np.ndarray:
    """Windows of 24 x 32 on noise that moves by (dx, dy) pixels a frame."""
    picture = noise_clip(0, 1, 80, 80)[0]
    starts = [(28 - dy * t, 24 - dx * t) for t in range(num_frames)]
    return np.stack([picture[y : y + 24, x : x + 32] for y, x in starts])


@pytest.mark.parametrize(("dx", "dy"), [(0, 0), (3, 0), (0, 2), (-2, 5)])
def test_a_clip_that_moves_with_the_flow_has_no_error(dx: int, dy: int) -> None:
    clip = shifted_clip(dx, dy)
    assert warp_error(clip, uniform_flow(clip, dx, dy), nothing_occluded(clip)) == pytest.approx(0, abs=1e-12)


def test_against_the_flow_the_error_is_that_of_independent_pixels() -> None:
    clip = shifted_clip(3, 1)
    # The mean squared difference of two independent pixels, uniform on 0 .. 255, is twice their variance.
    expected = 2 * (256**2 - 1) / 12 / 255**2
    assert warp_error(clip, uniform_flow(clip, -3, -1), nothing_occluded(clip)) == pytest.approx(expected, rel=0.05)


def test_half_a_pixel_is_read_between_two() -> None:
    ramp = np.broadcast_to(np.arange(0, 160, 10, dtype=np.uint8)[None, :, None], (8, 16, 3))
    clip = np.stack([ramp, ramp])
    error = warp_error(clip, uniform_flow(clip, 0.5, 0), nothing_occluded(clip))
    assert error == pytest.approx((5 / 255) ** 2, rel=1e-6)


def test_a_known_noise_level_is_found() -> None:
    sigma = 6.0
    noise = np.random.default_rng(0).normal(128, sigma, (3, 64, 64, 3))
    clip = np.rint(noise).astype(np.uint8)
    expected = 2 * (sigma**2 + 1 / 12) / 255**2
    assert warp_error(clip, uniform_flow(clip, 0, 0), nothing_occluded(clip)) == pytest.approx(expected, rel=0.03)


def test_pixels_that_are_occluded_or_leave_the_frame_do_not_count() -> None:
    clip = np.zeros((2, 8, 8, 3), dtype=np.uint8)
    clip[1, :, :4] = 255
    occluded = nothing_occluded(clip)
    occluded[:, :, :3] = True
    # Of the 5 columns that are left, one changed.
    assert warp_error(clip, uniform_flow(clip, 0, 0), occluded) == pytest.approx(1 / 5)
    # Now columns 3 .. 6 stay in the frame, and all read from column 4 on.
    assert warp_error(clip, uniform_flow(clip, 1, 0), occluded) == 0


def test_pairs_weigh_the_same_whatever_is_visible_and_blind_pairs_do_not_count() -> None:
    clip = np.zeros((4, 4, 4, 3), dtype=np.uint8)
    clip[1:] = 255
    occluded = nothing_occluded(clip)
    occluded[0, 1:] = True
    occluded[2] = True
    assert warp_error(clip, uniform_flow(clip, 0, 0), occluded) == pytest.approx(0.5)


def test_a_rendered_scene_follows_its_own_flow_and_a_frozen_one_does_not() -> None:
    scene = render(random_scene(3, motion="pan", num_objects=2))
    error = warp_error(scene.frames, scene.forward_flow, scene.forward_occlusion)
    frozen = np.repeat(scene.frames[:1], len(scene.frames), axis=0)
    assert error < 0.3 * warp_error(frozen, scene.forward_flow, scene.forward_occlusion)


def test_without_a_pair_or_a_visible_pixel_there_is_no_figure() -> None:
    clip = noise_clip(num_frames=1)
    assert math.isnan(warp_error(clip, uniform_flow(clip, 0, 0), nothing_occluded(clip)))
    clip = noise_clip(num_frames=2)
    assert math.isnan(warp_error(clip, uniform_flow(clip, 0, 0), ~nothing_occluded(clip)))
    assert math.isnan(warp_error(clip, uniform_flow(clip, 40, 0), nothing_occluded(clip)))


def test_flow_and_occlusion_of_another_form_are_refused() -> None:
    clip = noise_clip()
    flow, occluded = uniform_flow(clip, 0, 0), nothing_occluded(clip)
    with pytest.raises(ValueError, match=r"`forward_flow` has to be of shape \(2, 2, 24, 32\)"):
        warp_error(clip, flow.transpose(0, 2, 3, 1), occluded)
    with pytest.raises(ValueError, match="`occluded` has to be bool"):
        warp_error(clip, flow, occluded[:, None])
