"""Scenes: seeded, inside their limits, and edited without touching anything else."""

import numpy as np
import pytest

from diffusers_groundavideo.spriteworld import (
    BACKGROUND_NAMES,
    MOTIONS,
    SPRITE_NAMES,
    clipped_boxes,
    fit_sprite,
    grounding_dict,
    load_sprite,
    random_caption,
    random_scene,
    random_targets,
    sprite_aspect,
)


def test_the_same_seed_gives_the_same_scene_and_another_seed_another():
    first, again, other = random_scene(5), random_scene(5), random_scene(6)
    assert first.background == again.background
    assert [item.name for item in first.objects] == [item.name for item in again.objects]
    for a, b in zip(first.objects, again.objects):
        np.testing.assert_array_equal(a.slots, b.slots)
    assert first.texture_seed == again.texture_seed != other.texture_seed


@pytest.mark.parametrize("motion", MOTIONS)
def test_motion_is_smooth_and_of_its_kind(motion):
    for seed in range(10):
        scene = random_scene(seed, motion=motion, num_objects=2)
        slots = np.stack([item.slots for item in scene.objects])
        centres = (slots[..., :2] + slots[..., 2:]) / 2
        speed = np.diff(centres, axis=1)
        # No jumps: the speed changes by less than a pixel from frame to frame.
        assert np.abs(np.diff(speed, axis=1)).max() < 1 / 64
        boxes = clipped_boxes(slots)
        if motion == "leaving":
            assert not np.isnan(boxes[0, 0]).any() and np.isnan(boxes[0, -1]).all()
        elif motion == "entering":
            assert np.isnan(boxes[0, 0]).all() and not np.isnan(boxes[0, -1]).any()
        elif motion == "crossing":
            assert (centres[0, 0, 0] < centres[1, 0, 0]) and (centres[0, -1, 0] > centres[1, -1, 0])
        elif motion == "zoom":
            area = (slots[0, :, 2] - slots[0, :, 0]) * (slots[0, :, 3] - slots[0, :, 1])
            assert (np.diff(area) > 0).all() and area[-1] > 1.25 * area[0]
        elif motion == "pan":
            assert np.ptp(scene.camera[:, 0]) > 0
            np.testing.assert_allclose(speed[0], speed[1], atol=1e-9)
        elif motion == "accelerating":
            distance = np.linalg.norm(speed, axis=-1)
            assert (np.diff(distance, axis=1) > 0).all()
        if motion not in ("leaving", "entering", "pan", "zoom"):
            assert slots.min() >= 0 and slots.max() <= 1


def test_scenes_that_need_not_cross_hardly_overlap():
    crowded = 0
    for seed in range(60):
        scene = random_scene(seed, motion="linear", num_objects=3, num_frames=1)
        slots = np.stack([item.slots[0] for item in scene.objects])
        low, high = (
            np.maximum(slots[:, None, :2], slots[None, :, :2]),
            np.minimum(slots[:, None, 2:], slots[None, :, 2:]),
        )
        overlap = np.clip(high - low, 0, None).prod(-1)
        share = overlap / np.minimum.outer(np.diag(overlap), np.diag(overlap))
        crowded += (share - np.eye(3)).max() > 0.35
    assert crowded <= 6


def test_targets_keep_everything_but_names_and_background():
    scene = random_scene(1, num_objects=3)
    target = scene.with_targets(["squirrel", None, "orange"], background="snow")
    assert [item.name for item in target.objects] == ["squirrel", None, "orange"]
    assert target.background == "snow" and target.texture_seed == scene.texture_seed
    for before, after in zip(scene.objects, target.objects):
        assert after.slots is before.slots and after.depth == before.depth
    with pytest.raises(ValueError, match="3 objects, but 1"):
        scene.with_targets(["squirrel"])


def test_random_targets_are_new_and_as_many_as_asked_for():
    for seed in range(20):
        scene = random_scene(seed, num_objects=3)
        before = [item.name for item in scene.objects]
        after = [item.name for item in random_targets(scene, seed, num_edits=2).objects]
        changed = [new for old, new in zip(before, after) if old != new]
        assert len(changed) == 2 and not set(changed) & set(before) and len(set(after)) == 3


@pytest.mark.parametrize("name", SPRITE_NAMES)
def test_a_sprite_fits_into_any_slot_without_distortion(name):
    for slot in ([0.1, 0.2, 0.5, 0.4], [0.1, 0.2, 0.3, 0.9], [-0.3, 0.5, 0.1, 0.9]):
        x0, y0, x1, y1 = fit_sprite(name, np.array(slot))
        assert x0 >= slot[0] - 1e-9 and y0 >= slot[1] - 1e-9 and x1 <= slot[2] + 1e-9 and y1 == slot[3]
        assert (x1 - x0) / (y1 - y0) == pytest.approx(sprite_aspect(name))
        assert x1 - x0 == pytest.approx(slot[2] - slot[0]) or y1 - y0 == pytest.approx(slot[3] - slot[1])


@pytest.mark.parametrize("name", SPRITE_NAMES)
def test_sprites_are_cropped_to_what_is_seen(name):
    sprite = load_sprite(name)
    assert max(sprite.size) == 72
    alpha = np.asarray(sprite)[..., 3] >= 64
    assert alpha[0].any() and alpha[-1].any() and alpha[:, 0].any() and alpha[:, -1].any()


def test_unknown_names_are_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="unicorn.*dog, cat"):
        load_sprite("unicorn")
    with pytest.raises(ValueError, match="teleport.*linear"):
        random_scene(0, motion="teleport")


def test_captions_name_everything_in_the_scene():
    for seed in range(40):
        scene = random_scene(seed)
        caption = random_caption(scene, np.random.default_rng(seed))
        assert all(str(item.name) in caption for item in scene.objects) and scene.background in caption
        assert " a apple" not in f" {caption}" and " a orange" not in f" {caption}"


def test_grounding_of_an_edit():
    scene = random_scene(3, motion="leaving", num_objects=2, background="grass")
    names = [item.name for item in scene.objects]
    edit = grounding_dict(scene, scene.with_targets(["squirrel", None], background="snow"))
    first, second, place = edit["objects"]
    assert (first["source_phrase"], first["target_phrase"]) == (names[0], "squirrel")
    assert (second["source_phrase"], second["target_phrase"]) == (names[1], None)
    assert (place["source_phrase"], place["target_phrase"]) == ("grass", "snow")
    assert place["boxes"] == [[0, 0, 1, 1]] * 8
    assert first["boxes"][-1] is None and len(first["boxes"][0]) == 4
    boxes = np.array([box for box in first["boxes"] + second["boxes"] if box is not None])
    assert boxes.min() >= 0 and boxes.max() <= 1 and (boxes[:, 2:] > boxes[:, :2]).all()
    assert "squirrel" in edit["target_prompt"] and "snow" in edit["target_prompt"]
    assert len(grounding_dict(scene, scene)["objects"]) == 2 and len(BACKGROUND_NAMES) == 6
