import math

import numpy as np
import pytest

from diffusers_groundavideo.evaluation import omission_rate
from diffusers_groundavideo.spriteworld.judge import SpriteJudge
from evaluation.sprites import edited_scene


def test_a_change_that_shows_in_one_frame_is_not_omitted(judge: SpriteJudge) -> None:
    right, wrong = edited_scene(["tree", "bus"]), edited_scene(["tree", "car"])
    frames = np.concatenate([wrong.frames[:7], right.frames[7:]])
    assert omission_rate(frames, right.boxes, ["tree", "bus"], judge) == 0
    assert omission_rate(wrong.frames, wrong.boxes, ["tree", "bus"], judge) == 0.5
    assert omission_rate(wrong.frames, wrong.boxes, ["cat", "bus"], judge) == 1


def test_a_removal_shows_as_nothing(judge: SpriteJudge) -> None:
    edited = edited_scene(["tree", None, "cat"])
    assert omission_rate(edited.frames, edited.boxes, [None, None, "cat"], judge) == pytest.approx(1 / 3)


def test_objects_that_are_in_no_frame_do_not_count(judge: SpriteJudge) -> None:
    edited = edited_scene(["tree", "bus"])
    boxes = edited.boxes.copy()
    boxes[:, 1] = np.nan
    assert omission_rate(edited.frames, boxes, ["tree", "cat"], judge) == 0
    assert math.isnan(omission_rate(edited.frames, np.full_like(boxes, np.nan), ["tree", "cat"], judge))
