import math

import numpy as np
import pytest

from diffusers_groundavideo.evaluation import static_flicker, static_region
from diffusers_groundavideo.spriteworld import random_scene, render
from evaluation.clips import left_part, noise_clip


def test_alternating_brightness_flickers_by_its_step() -> None:
    clip = np.full((4, 8, 8, 3), 100, dtype=np.uint8)
    everywhere = np.ones(clip.shape[:3], dtype=bool)
    assert static_flicker(clip, everywhere) == 0
    clip[1::2] += 17
    assert static_flicker(clip, everywhere) == pytest.approx(17 / 255)


def test_a_known_noise_level_is_found() -> None:
    sigma = 6.0
    clip = np.rint(np.random.default_rng(0).normal(128, sigma, (4, 64, 64, 3))).astype(np.uint8)
    # The mean absolute difference of two normal variables.
    expected = 2 * sigma / math.sqrt(math.pi) / 255
    assert static_flicker(clip, np.ones(clip.shape[:3], dtype=bool)) == pytest.approx(expected, rel=0.03)


def test_only_what_is_static_in_both_frames_counts() -> None:
    clip = np.zeros((3, 8, 8, 3), dtype=np.uint8)
    clip[1:, :, 4:] = 255
    assert static_flicker(clip, left_part(clip, 4)) == 0
    static = left_part(clip, 8)
    static[0, :, 4:] = False
    # From frame 1 to 2 nothing changes; from 0 to 1, only what was not static.
    assert static_flicker(clip, static) == 0


def test_the_static_region_is_what_never_moves_nor_is_covered() -> None:
    flow = np.zeros((2, 2, 4, 4), dtype=np.float32)
    occluded = np.zeros((2, 4, 4), dtype=bool)
    flow[0, 1, 0] = -2
    flow[0, 0, 1] = 0.4
    occluded[1, 3] = True
    static = static_region(flow, occluded)
    assert static.shape == (3, 4, 4)
    np.testing.assert_array_equal(static[:, :, 0], [[False, True, True, False]] * 3)
    assert not static_region(flow, occluded, max_motion=0.3)[0, 1].any()


def test_the_static_background_of_a_rendered_scene_does_not_flicker() -> None:
    scene = render(random_scene(5, motion="linear", num_objects=2))
    static = static_region(scene.forward_flow, scene.forward_occlusion)
    assert 0.2 < static.mean() < 0.9
    # Soft edges of sprites are pixels of the background that change a little.
    assert static_flicker(scene.frames, static) < 1 / 255
    assert static_flicker(scene.frames, np.ones_like(static)) > 5 / 255


def test_without_a_pair_or_a_static_pixel_there_is_no_figure() -> None:
    clip = noise_clip(num_frames=1)
    assert math.isnan(static_flicker(clip, left_part(clip, 32)))
    clip = noise_clip()
    assert math.isnan(static_flicker(clip, left_part(clip, 0)))


def test_regions_and_flow_of_another_form_are_refused() -> None:
    clip = noise_clip()
    with pytest.raises(ValueError, match="`static_region` has to be bool"):
        static_flicker(clip, left_part(clip, 4)[1:])
    with pytest.raises(ValueError, match="`forward_flow` has to be of shape"):
        static_region(np.zeros((2, 4, 4, 2)), np.zeros((2, 4, 4), dtype=bool))
    with pytest.raises(ValueError, match="`occluded` has to be bool"):
        static_region(np.zeros((2, 2, 4, 4)), np.zeros((3, 4, 4), dtype=bool))
