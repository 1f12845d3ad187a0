import math

import numpy as np
import pytest

from diffusers_groundavideo.evaluation import edit_accuracy, found_sprites
from diffusers_groundavideo.spriteworld import SPRITE_NAMES, random_scene, render
from diffusers_groundavideo.spriteworld.judge import SpriteJudge
from evaluation.clips import noise_clip
from evaluation.sprites import edited_scene


def test_each_wrong_object_costs_its_share(judge: SpriteJudge) -> None:
    edited = edited_scene(["tree", "bus", "cat"])
    assert edit_accuracy(edited.frames, edited.boxes, ["tree", "bus", "cat"], judge) == 1
    assert edit_accuracy(edited.frames, edited.boxes, ["tree", "bus", "dog"], judge) == pytest.approx(2 / 3)
    assert edit_accuracy(edited.frames, edited.boxes, ["bus", "tree", "dog"], judge) == 0


def test_each_wrong_frame_costs_its_share(judge: SpriteJudge) -> None:
    right, wrong = edited_scene(["tree", "bus"]), edited_scene(["tree", "car"])
    frames = np.concatenate([right.frames[:6], wrong.frames[6:]])
    assert edit_accuracy(frames, right.boxes, ["tree", "bus"], judge) == pytest.approx(1 - 2 / 16)


def test_what_was_removed_is_right_when_nothing_is_there(judge: SpriteJudge) -> None:
    edited = edited_scene(["tree", None])
    assert edit_accuracy(edited.frames, edited.boxes, ["tree", None], judge) == 1
    assert edit_accuracy(edited.frames, edited.boxes, [None, None], judge) == 0.5


def test_boxes_that_are_not_there_do_not_count(judge: SpriteJudge) -> None:
    edited = edited_scene(["tree", "bus"])
    boxes = edited.boxes.copy()
    boxes[:6, 1] = np.nan
    assert edit_accuracy(edited.frames, boxes, ["cat", "bus"], judge) == pytest.approx(2 / 10)
    assert math.isnan(edit_accuracy(edited.frames, np.full_like(boxes, np.nan), ["cat", "bus"], judge))
    assert math.isnan(edit_accuracy(edited.frames, boxes[:, :0], [], judge))


def test_a_single_frame_is_enough(judge: SpriteJudge) -> None:
    edited = edited_scene(["tree", "bus"])
    assert edit_accuracy(edited.frames[:1], edited.boxes[:1], ["tree", "bus"], judge) == 1


def test_the_judge_reads_rendered_scenes(judge: SpriteJudge) -> None:
    shares = []
    for seed in range(9_000_000, 9_000_010):
        scene = random_scene(seed, motion="linear")
        rendered = render(scene)
        wanted = [item.name for item in scene.objects]
        shares.append(edit_accuracy(rendered.frames, rendered.boxes, wanted, judge))
    assert np.mean(shares) > 0.97


def test_found_sprites_name_each_box_and_none_where_there_is_no_box(judge: SpriteJudge) -> None:
    edited = edited_scene(["tree", None])
    boxes = edited.boxes.copy()
    boxes[3, 0] = np.nan
    found = found_sprites(edited.frames, boxes, judge)
    assert [names[0] for names in found] == ["tree"] * 3 + [None] + ["tree"] * 4
    assert [names[1] for names in found] == ["nothing"] * 8


def test_noise_is_no_sprite_in_particular(judge: SpriteJudge) -> None:
    frames = noise_clip(0, 4, 64, 64)
    boxes = np.full((4, 1, 4), [0, 0, 1, 1], dtype=np.float32)
    shares = [edit_accuracy(frames, boxes, [name], judge) for name in SPRITE_NAMES]
    assert sum(shares) <= 1


def test_what_cannot_be_wanted_is_refused(judge: SpriteJudge) -> None:
    edited = edited_scene(["tree", "bus"])
    with pytest.raises(ValueError, match="a dragon"):
        edit_accuracy(edited.frames, edited.boxes, ["tree", "a dragon"], judge)
    with pytest.raises(ValueError, match="one object for each of 3"):
        edit_accuracy(edited.frames, edited.boxes, ["tree", "bus", "cat"], judge)
    with pytest.raises(ValueError, match="is the string 'tree'"):
        edit_accuracy(edited.frames, edited.boxes, "tree", judge)
