import math

import numpy as np
import pytest

from diffusers_groundavideo.evaluation import edit_leakage, leaked_instances
from diffusers_groundavideo.spriteworld.judge import SpriteJudge
from evaluation.clips import left_part, noise_clip
from evaluation.sprites import edited_scene


def test_only_changes_outside_of_the_opened_region_leak() -> None:
    source = np.full((2, 8, 8, 3), 100, dtype=np.uint8)
    opened = left_part(source, 4)
    edited = source.copy()
    edited[:, :, :4] = 255
    assert edit_leakage(source, edited, opened) == 0
    # Darker and brighter by 10 in half of what is closed, in one of three channels.
    edited[0, :, 4:, 0] -= 10
    edited[1, :4, 4:, 0] += 10
    assert edit_leakage(source, edited, opened) == pytest.approx(0.75 * 10 / 3 / 255)


def test_with_everything_opened_nothing_can_leak() -> None:
    clip = noise_clip()
    assert math.isnan(edit_leakage(clip, clip, left_part(clip, 32)))


def test_swapped_edits_leak_everywhere_and_right_ones_nowhere(judge: SpriteJudge) -> None:
    edited = edited_scene(["tree", "bus", "cat"])
    assert leaked_instances(edited.frames, edited.boxes, ["tree", "bus", "cat"], judge) == 0
    assert leaked_instances(edited.frames, edited.boxes, ["bus", "tree", "cat"], judge) == pytest.approx(2 / 3)


def test_a_failed_edit_is_no_leak(judge: SpriteJudge) -> None:
    edited = edited_scene(["dog", None])
    assert leaked_instances(edited.frames, edited.boxes, ["tree", "bus"], judge) == 0


def test_into_a_place_that_should_be_empty_something_can_leak_but_emptiness_leaks_nowhere(judge: SpriteJudge) -> None:
    # Only the second box counts: for the first, no other sprite is wanted.
    edited = edited_scene(["tree", "tree"])
    assert leaked_instances(edited.frames, edited.boxes, ["tree", None], judge) == 1
    edited = edited_scene([None, None])
    assert leaked_instances(edited.frames, edited.boxes, ["tree", None], judge) == 0


def test_where_nothing_can_leak_there_is_no_figure(judge: SpriteJudge) -> None:
    edited = edited_scene(["tree", "tree"])
    assert math.isnan(leaked_instances(edited.frames, edited.boxes, ["tree", "tree"], judge))
    assert math.isnan(leaked_instances(edited.frames, edited.boxes[:, :1], ["bus"], judge))
    nowhere = np.full_like(edited.boxes, np.nan)
    assert math.isnan(leaked_instances(edited.frames, nowhere, ["tree", "bus"], judge))
