"""Rendering: what it says about the pictures is what is in the pictures."""

import numpy as np
import pytest
from scipy.ndimage import binary_dilation, map_coordinates

from diffusers_groundavideo.spriteworld import (
    MOTIONS,
    fit_sprite,
    ground_depth,
    random_scene,
    random_targets,
    render,
)


def warped(frame: np.ndarray, flow: np.ndarray) -> np.ndarray:
    """What the flow (2, H, W) reads from a frame (H, W, 3) at each pixel: float64 (H, W, 3)."""
    rows, columns = np.mgrid[: frame.shape[0], : frame.shape[1]]
    at = [rows + flow[1], columns + flow[0]]
    return np.stack([map_coordinates(frame[..., c].astype(float), at, order=3, mode="nearest") for c in range(3)], -1)


def test_rendering_is_deterministic():
    first, again = render(random_scene(11)), render(random_scene(11))
    for key, value in vars(first).items():
        np.testing.assert_array_equal(value, getattr(again, key))


def test_shapes_and_types():
    scene = random_scene(2, num_frames=5, num_objects=3, size=96)
    rendered = render(scene)
    assert rendered.frames.shape == (5, 96, 96, 3) and rendered.frames.dtype == np.uint8
    assert rendered.boxes.shape == (5, 3, 4) and rendered.boxes.dtype == np.float32
    assert rendered.visible_masks.shape == rendered.full_masks.shape == (5, 3, 96, 96)
    assert rendered.depth.shape == (5, 96, 96) and rendered.depth.min() >= 0 and rendered.depth.max() <= 1
    assert rendered.forward_flow.shape == rendered.backward_flow.shape == (4, 2, 96, 96)
    assert rendered.forward_occlusion.shape == rendered.backward_occlusion.shape == (4, 96, 96)


def test_a_single_frame_is_that_frame_of_the_clip_and_has_no_flow():
    scene = random_scene(4)
    clip, frame = render(scene), render(scene.frame(6))
    np.testing.assert_array_equal(frame.frames[0], clip.frames[6])
    np.testing.assert_array_equal(frame.depth[0], clip.depth[6])
    assert frame.forward_flow.shape == (0, 2, 64, 64) and frame.forward_occlusion.shape == (0, 64, 64)


@pytest.mark.parametrize("num_objects", [0, 1, 3])
def test_empty_and_full_scenes_render(num_objects):
    rendered = render(random_scene(8, num_objects=num_objects))
    assert rendered.boxes.shape == (8, num_objects, 4)


@pytest.mark.parametrize("motion", MOTIONS)
@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_flow_carries_one_frame_into_the_other(motion, direction):
    still_errors, flow_errors = [], []
    for seed in range(6):
        rendered = render(random_scene(seed, motion=motion, num_objects=2))
        for index in range(7):
            start, end = (index, index + 1) if direction == "forward" else (index + 1, index)
            flow = getattr(rendered, f"{direction}_flow")[index]
            visible = ~getattr(rendered, f"{direction}_occlusion")[index]
            # Outlines mix the colours of two layers that move apart; they belong to neither.
            seen = rendered.visible_masks[start]
            outline = (
                binary_dilation(seen, np.ones((1, 3, 3)), 2) & binary_dilation(~seen, np.ones((1, 3, 3)), 2)
            ).any(0)
            compared = visible & ~outline
            error = np.abs(warped(rendered.frames[end], flow) - rendered.frames[start]).mean(-1)
            still = np.abs(rendered.frames[end].astype(float) - rendered.frames[start]).mean(-1)
            flow_errors.append(error[compared].mean())
            still_errors.append(still[compared].mean())
            assert np.percentile(error[compared], 95) < 12
    assert np.mean(flow_errors) < 1.0
    assert np.mean(flow_errors) < 0.35 * np.mean(still_errors) + 0.25


def test_forward_and_backward_flow_undo_each_other():
    for seed in range(8):
        rendered = render(random_scene(seed))
        rows, columns = np.mgrid[:64, :64]
        for index in range(7):
            forward, backward = rendered.forward_flow[index], rendered.backward_flow[index]
            visible = ~rendered.forward_occlusion[index]
            target_x = np.rint(columns + forward[0]).astype(int)[visible]
            target_y = np.rint(rows + forward[1]).astype(int)[visible]
            # Flow is affine in position, so rounding the position costs at most half a pixel times the zoom.
            residual = forward[:, visible] + backward[:, target_y, target_x]
            assert np.abs(residual).max() < 0.1


def test_occlusion_is_where_something_is_in_the_way():
    scene = random_scene(0, motion="crossing", num_objects=2)
    rendered = render(scene)
    assert rendered.forward_occlusion.any()
    # Nothing moves faster than 6 pixels a frame here, so what is hidden is near an outline or the frame's edge.
    for index in range(7):
        seen = np.concatenate([rendered.visible_masks[index], rendered.visible_masks[index + 1]])
        outline = (binary_dilation(seen, np.ones((1, 3, 3)), 7) & binary_dilation(~seen, np.ones((1, 3, 3)), 7)).any(0)
        outline[:7] = outline[-7:] = outline[:, :7] = outline[:, -7:] = True
        assert not (rendered.forward_occlusion[index] & ~outline).any()


def test_boxes_are_the_extents_of_the_masks():
    compared = 0
    for seed in range(30):
        rendered = render(random_scene(seed))
        for frame, index in np.ndindex(rendered.boxes.shape[:2]):
            box, mask = rendered.boxes[frame, index] * 64, rendered.full_masks[frame, index]
            if np.isnan(box[0]):
                assert mask.mean() < 0.1
                continue
            rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
            extent = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
            assert (extent[:2] >= box[:2] - 1).all() and (extent[2:] <= box[2:] + 1).all()
            if box.min() > 0 and box.max() < 64:
                # Thin tips (a whisker, a tail) can fall below half coverage.
                assert np.abs(extent - box).max() < 2.5
                compared += 1
    assert compared > 200


def test_the_nearer_object_hides_the_farther_one():
    hidden = 0
    for seed in range(20):
        scene = random_scene(seed, motion="crossing", num_objects=2)
        rendered = render(scene)
        near = int(np.argmax([item.depth for item in scene.objects]))
        np.testing.assert_array_equal(rendered.visible_masks[:, near], rendered.full_masks[:, near])
        assert not (rendered.visible_masks[:, 0] & rendered.visible_masks[:, 1]).any()
        overlap = rendered.full_masks[:, 0] & rendered.full_masks[:, 1]
        assert not (rendered.visible_masks[:, 1 - near] & overlap).any()
        assert (rendered.depth[overlap] == np.float32(scene.objects[near].depth)).all()
        hidden += overlap.any()
    assert hidden >= 10


def test_depth_can_be_inferred_from_where_things_stand():
    for seed in range(10):
        scene = random_scene(seed, motion="linear")
        rendered = render(scene)
        background = ~rendered.visible_masks.any(1)
        ground = np.broadcast_to(ground_depth((np.arange(64) + 0.5) / 64)[None, :, None], background.shape)
        np.testing.assert_allclose(rendered.depth[background], ground[background], atol=1e-6)
        for item in scene.objects:
            assert item.depth > ground_depth(item.slots[:, 3].mean())


@pytest.mark.parametrize("seed", range(12))
def test_a_perfect_edit_leaves_the_rest_bit_identical(seed):
    scene = random_scene(seed)
    target = random_targets(scene, seed)
    before, after = render(scene), render(target)
    touched = np.zeros(before.frames.shape[:3], dtype=bool)
    for old, new in zip(scene.objects, target.objects):
        if old.name == new.name:
            continue
        for frame in range(scene.num_frames):
            for name in (old.name, new.name):
                assert name is not None
                x0, y0, x1, y1 = (scene.size * value for value in fit_sprite(name, old.slots[frame]))
                rows = slice(max(0, int(np.floor(y0)) - 1), max(0, int(np.ceil(y1)) + 1))
                touched[frame, rows, max(0, int(np.floor(x0)) - 1) : max(0, int(np.ceil(x1)) + 1)] = True
    np.testing.assert_array_equal(before.frames[~touched], after.frames[~touched])
    np.testing.assert_array_equal(before.boxes, after.boxes)
    assert (before.frames != after.frames).any()


def test_a_new_background_leaves_the_sprites():
    scene = random_scene(9, num_objects=2, background="grass")
    before, after = render(scene), render(scene.with_targets([item.name for item in scene.objects], "snow"))
    np.testing.assert_array_equal(before.visible_masks, after.visible_masks)
    background = ~before.full_masks.any(1)
    # Grass is green, snow is bright: means, in 8-bit levels.
    assert before.frames[background].mean() < 130 and after.frames[background].mean() > 200
    inside = ~binary_dilation(~before.visible_masks.any(1), np.ones((1, 5, 5)))
    np.testing.assert_array_equal(before.frames[inside], after.frames[inside])


def test_the_perfect_edit_of_a_removal_is_the_background():
    scene = random_scene(13, num_objects=1)
    removed = render(scene.with_targets([None]))
    assert not removed.full_masks.any()
    np.testing.assert_array_equal(removed.boxes, render(scene).boxes)
