import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy

from diffusers_groundavideo import GroundedObject, VideoGrounding
from diffusers_groundavideo.grounding import Box, position_net_inputs


LEFT, RIGHT = (0.0, 0.0, 0.5, 0.5), (0.5, 0.5, 1.0, 1.0)
# Corners at thirds of a millionth too, where rounding goes wrong.
COORDINATES = (
    st.floats(0, 1) | st.integers(0, 64).map(lambda i: i / 64) | st.integers(0, 3_000_000).map(lambda i: i / 3e6)
)
BOXES = st.tuples(*[st.tuples(COORDINATES, COORDINATES).filter(lambda ends: ends[0] < ends[1])] * 2).map(
    lambda spans: (spans[0][0], spans[1][0], spans[0][1], spans[1][1])
)
# A busy machine may take its time.
relaxed = settings(deadline=None, max_examples=50)


def grounded(role: str = "changed", name: str = "rabbit", **place: Any) -> GroundedObject:
    phrases = {"changed": (name, "squirrel"), "kept": (name, name), "new": (None, name), "removed": (name, None)}
    return GroundedObject(*phrases[role], **place)


def opened(objects: list[GroundedObject], size: int = 8, num_frames: int = 1, **arguments: Any) -> np.ndarray:
    """Where the edit mask is 0: (F, size, size), boolean."""
    mask = VideoGrounding(objects).edit_mask(num_frames, size, size, **arguments)
    assert mask.shape == (num_frames, 1, size, size) and mask.dtype == torch.float32
    assert set(mask.unique().tolist()) <= {0.0, 1.0}
    return (mask[:, 0] == 0).numpy()


def cells(rows: slice, columns: slice, size: int = 8) -> np.ndarray:
    """One frame, (1, size, size), boolean: these rows and columns."""
    region = np.zeros((1, size, size), dtype=bool)
    region[:, rows, columns] = True
    return region


@pytest.mark.parametrize(
    ("place", "expected"),
    [
        ({"boxes": [LEFT, None, RIGHT]}, [LEFT, None, RIGHT]),
        ({"boxes": np.array([LEFT, LEFT, RIGHT])}, [LEFT, LEFT, RIGHT]),
        ({"box": [0, 0, 0.5, 0.5]}, [LEFT] * 3),
        ({"keyframes": {0: LEFT, 2: RIGHT}}, [LEFT, (0.25, 0.25, 0.75, 0.75), RIGHT]),
        ({"keyframes": {1: LEFT}}, [LEFT] * 3),
        ({"keyframes": {1: LEFT, 2: RIGHT}}, [LEFT, LEFT, RIGHT]),
        ({"keyframes": {2: RIGHT, 0: LEFT}}, [LEFT, (0.25, 0.25, 0.75, 0.75), RIGHT]),
        ({"keyframes": {0: LEFT, 1: None}}, [LEFT, None, None]),
        ({"keyframes": {0: None, 2: LEFT}}, [None, None, LEFT]),
        ({"keyframes": {1: None, 2: LEFT}}, [None, None, LEFT]),
        ({"keyframes": {0: LEFT, 2: None}}, [LEFT, LEFT, None]),
    ],
)
def test_place_in_every_frame(place: dict[str, Any], expected: list[Box | None]) -> None:
    assert grounded(**place).frame_boxes(3) == expected


def test_keyframes_are_interpolated_corner_by_corner() -> None:
    boxes = grounded(keyframes={0: (0.0, 0.1, 0.2, 0.4), 4: (0.4, 0.1, 1.0, 0.8)}).frame_boxes(5)
    np.testing.assert_allclose(boxes[1], (0.1, 0.1, 0.4, 0.5), atol=1e-12)  # type: ignore[arg-type]
    np.testing.assert_allclose(boxes[3], (0.3, 0.1, 0.8, 0.7), atol=1e-12)  # type: ignore[arg-type]


@relaxed
@given(BOXES, BOXES, st.integers(1, 9))
def test_an_interpolated_box_lies_between_its_keyframes(start: Box, end: Box, last: int) -> None:
    boxes = np.array(grounded(keyframes={0: start, last: end}).frame_boxes(last + 1))
    assert (boxes >= np.minimum(start, end) - 1e-12).all() and (boxes <= np.maximum(start, end) + 1e-12).all()
    assert tuple(boxes[0]) == start and tuple(boxes[-1]) == end


def test_the_box_of_a_mask_is_its_extent() -> None:
    masks = np.zeros((3, 10, 20), dtype=bool)
    masks[0, 2:5, 4:6] = True
    masks[2, 9, 19] = True
    assert grounded(masks=masks).frame_boxes(3) == [(0.2, 0.2, 0.3, 0.5), None, (0.95, 0.9, 1.0, 1.0)]


def test_boxes_ground_and_masks_open() -> None:
    masks = np.zeros((1, 8, 8), dtype=bool)
    masks[0, :2, :2] = True
    both = grounded(masks=masks, box=RIGHT)
    assert both.frame_boxes(1) == [RIGHT]
    np.testing.assert_array_equal(opened([both]), masks)


@pytest.mark.parametrize(
    ("source", "target", "role"),
    [
        ("cat", "dog", "changed"),
        ("cat", "cat", "kept"),
        ("cat", " cat ", "kept"),
        ("cat", None, "removed"),
        (None, "cat", "new"),
    ],
)
def test_role(source: str | None, target: str | None, role: str) -> None:
    one = GroundedObject(source, target, box=LEFT)
    assert one.role == role
    assert one.name == "cat"
    assert VideoGrounding([one]).phrases("source") == [source]
    assert VideoGrounding([one]).phrases("target") == [target]


def test_boxes_of_all_objects() -> None:
    grounding = VideoGrounding([grounded(boxes=[LEFT, None]), grounded(box=RIGHT), grounded(keyframes={1: LEFT})])
    boxes, present = grounding.frame_boxes(2)
    assert boxes.dtype == torch.float32
    assert present.tolist() == [[True, True, True], [False, True, True]]
    assert boxes.tolist() == [[list(LEFT), list(RIGHT), list(LEFT)], [[0.0] * 4, list(RIGHT), list(LEFT)]]


@pytest.mark.parametrize(
    ("phrases", "place", "message"),
    [
        ((None, None), {"box": LEFT}, "`source_phrase`, a `target_phrase` or both; both are None"),
        (("", "cat"), {"box": LEFT}, "`source_phrase` has to be a non-empty string or None, but is ''"),
        (("cat", "  "), {"box": LEFT}, "`target_phrase` has to be a non-empty string or None, but is '  '"),
        (("cat", 3), {"box": LEFT}, "`target_phrase` .* but is 3"),
        (("cat", "dog"), {}, "exactly one of `boxes`, `box` and `keyframes`, or `masks` alone, but has none"),
        (("cat", "dog"), {"box": LEFT, "boxes": [LEFT]}, r"but has \['boxes', 'box'\]"),
        (("cat", "dog"), {"box": (0, 0, 1)}, r"`box` of 'cat' has to be 4 numbers .* but is \(0, 0, 1\)"),
        (("cat", "dog"), {"box": (0, 0, 1, 1.001)}, "`box` of 'cat' .* but is .*1.001"),
        (("cat", "dog"), {"box": (-0.1, 0, 1, 1)}, "`box` of 'cat' .* but is .*-0.1"),
        (("cat", "dog"), {"box": (0.5, 0, 0.2, 1)}, "`box` of 'cat'"),
        (("cat", "dog"), {"box": (0.5, 0, 0.5, 1)}, "`box` of 'cat'"),
        (("cat", "dog"), {"box": (0, math.nan, 1, 1)}, "`box` of 'cat' .* nan"),
        (("cat", "dog"), {"box": (0, 0, 1, math.inf)}, "`box` of 'cat' .* inf"),
        (("cat", "dog"), {"box": "abcd"}, "`box` of 'cat' .* 'abcd'"),
        (("cat", "dog"), {"box": 0.5}, "`box` of 'cat' .* 0.5"),
        (("cat", "dog"), {"boxes": [LEFT, (0, 0, 2, 2)]}, r"`boxes\[1\]` of 'cat' .* \(0, 0, 2, 2\)"),
        (("cat", "dog"), {"boxes": "left"}, "`boxes` of 'cat' has to be a list with one box a frame, not 'left'"),
        (("cat", "dog"), {"boxes": {0: LEFT}}, "`boxes` of 'cat' has to be a list"),
        (("cat", "dog"), {"keyframes": {0: (1, 1, 0, 0)}}, r"`keyframes\[0\]` of 'cat'"),
        (("cat", "dog"), {"keyframes": {-1: LEFT}}, "`keyframes` of 'cat' has to map frame indices >= 0"),
        (("cat", "dog"), {"keyframes": {"0": LEFT}}, "`keyframes` of 'cat'"),
        (("cat", "dog"), {"keyframes": {True: LEFT}}, "`keyframes` of 'cat'"),
        (("cat", "dog"), {"keyframes": {}}, "`keyframes` of 'cat' .* but is {}"),
        (("cat", "dog"), {"keyframes": {0: None}}, "`keyframes` of 'cat' .* None"),
        (("cat", "dog"), {"keyframes": [LEFT]}, "`keyframes` of 'cat'"),
        (("cat", "dog"), {"masks": np.ones((2, 4, 4))}, r"`masks` of 'cat' .* float64 of shape \(2, 4, 4\)"),
        (("cat", "dog"), {"masks": np.ones((4, 4), bool)}, r"`masks` of 'cat' .* bool of shape \(4, 4\)"),
        (("cat", "dog"), {"masks": np.ones((0, 4, 4), bool)}, r"`masks` of 'cat' .* shape \(0, 4, 4\)"),
    ],
)
def test_an_object_that_cannot_be(phrases: tuple, place: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GroundedObject(*phrases, **place)


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ({"boxes": [LEFT] * 2}, "'rabbit' has 2 boxes, but the clip has 3 frames"),
        ({"boxes": []}, "'rabbit' has 0 boxes, but the clip has 3 frames"),
        ({"masks": np.ones((4, 8, 8), bool)}, "'rabbit' has 4 masks, but the clip has 3 frames"),
        ({"masks": np.ones((2, 8, 8), bool), "box": LEFT}, "'rabbit' has 2 masks, but the clip has 3 frames"),
        ({"keyframes": {3: LEFT}}, "'rabbit' has a keyframe at frame 3, but the clip has 3 frames"),
    ],
)
def test_a_place_for_another_number_of_frames(place: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"`grounding`: {message}"):
        VideoGrounding([grounded(**place)]).frame_boxes(3)


def test_a_grounding_has_1_to_30_objects() -> None:
    with pytest.raises(ValueError, match="`objects` has to hold 1 to 30 objects, but holds 0"):
        VideoGrounding([])
    with pytest.raises(ValueError, match="`objects` has to hold 1 to 30 objects, but holds 31"):
        VideoGrounding([grounded(box=LEFT)] * 31)
    with pytest.raises(ValueError, match="`objects` has to be a list of GroundedObject, but holds dict"):
        VideoGrounding([{"box": LEFT}])  # type: ignore[list-item]
    assert len(VideoGrounding([grounded(box=LEFT)] * 30).objects) == 30


@pytest.mark.parametrize("role", ["changed", "new", "removed"])
def test_what_the_edit_touches_is_opened(role: str) -> None:
    np.testing.assert_array_equal(opened([grounded(role, box=LEFT)]), cells(slice(0, 4), slice(0, 4)))


def test_what_is_out_of_the_frame_opens_nothing_there() -> None:
    region = opened([grounded(boxes=[LEFT, None])], num_frames=2)
    assert region[0].any() and not region[1].any()


def test_a_kept_box_is_not_opened(caplog: pytest.LogCaptureFixture) -> None:
    assert not opened([grounded("kept", box=LEFT)]).any()
    np.testing.assert_array_equal(
        opened([grounded("kept", box=LEFT), grounded(box=RIGHT)]), cells(slice(4, 8), slice(4, 8))
    )
    assert not caplog.records


def test_a_kept_box_inside_an_opened_one_stays_open_with_a_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    objects = [grounded("kept", "table", box=(0.25, 0.25, 0.75, 0.75)), grounded(box=LEFT)]
    for order in (objects, objects[::-1]):
        caplog.clear()
        np.testing.assert_array_equal(opened(order), cells(slice(0, 4), slice(0, 4)))
        (record,) = caplog.records
        assert record.levelname == "WARNING" and "'table'" in record.message and "`masks`" in record.message


@pytest.mark.parametrize("order", [1, -1])
def test_a_kept_mask_is_taken_out(caplog: pytest.LogCaptureFixture, order: int) -> None:
    masks = np.zeros((1, 16, 16), dtype=bool)
    # Pixel (3, 3) of 16 lies in cell (1, 1) of 8: what is kept is rounded outward, too.
    masks[0, 3, 3] = True
    expected = cells(slice(0, 4), slice(0, 4))
    expected[0, 1, 1] = False
    objects = [grounded("kept", masks=masks), grounded(box=LEFT)][::order]
    np.testing.assert_array_equal(opened(objects), expected)
    assert not caplog.records


def test_open_all_boxes_opens_kept_ones_too(caplog: pytest.LogCaptureFixture) -> None:
    objects = [grounded("kept", box=LEFT), grounded("kept", masks=np.ones((1, 4, 4), bool), box=RIGHT)]
    expected = cells(slice(0, 4), slice(0, 4)) | cells(slice(4, 8), slice(4, 8))
    np.testing.assert_array_equal(opened(objects, open_all_boxes=True), expected)
    assert not caplog.records


def test_corners_are_rounded_outward_and_cut_off_only_as_published() -> None:
    box = (0.3, 0.51, 0.7, 0.6)
    np.testing.assert_array_equal(opened([grounded(box=box)]), cells(slice(4, 5), slice(2, 6)))
    assert not opened([grounded(box=box)], open_all_boxes=True).any()
    wide = (0.3, 0.3, 0.7, 0.7)
    np.testing.assert_array_equal(opened([grounded(box=wide)], open_all_boxes=True), cells(slice(2, 5), slice(2, 5)))


def test_corners_on_the_grid_open_no_cell_beside_them() -> None:
    # In floating point 0.3 * 10 and 0.7 * 10 lie beside 3 and 7.
    for low, high in itertools.combinations(range(11), 2):
        region = opened([grounded(box=(low / 10, 0, high / 10, 1))], size=10)
        np.testing.assert_array_equal(region, cells(slice(None), slice(low, high), size=10))
    assert opened([grounded(box=(0.1 + 0.2, 0, 0.1 * 7, 1))], size=10).sum() == 40


@relaxed
@given(BOXES, st.integers(1, 20), st.integers(1, 20), st.integers(1, 4))
def test_every_pixel_of_a_box_lies_in_an_opened_cell(box: Box, height: int, width: int, pixels_a_cell: int) -> None:
    region = grounded(box=box).region(1, height, width)[0]
    assert region.any()
    pixels = region.repeat_interleave(pixels_a_cell, 0).repeat_interleave(pixels_a_cell, 1)
    columns = (torch.arange(width * pixels_a_cell, dtype=torch.float64) + 0.5) / (width * pixels_a_cell)
    rows = (torch.arange(height * pixels_a_cell, dtype=torch.float64) + 0.5) / (height * pixels_a_cell)
    inside = ((rows > box[1]) & (rows < box[3]))[:, None] & ((columns > box[0]) & (columns < box[2]))[None]
    # A pixel that the box covers by less than the tolerance of a corner may be left out; its centre is never there.
    assert pixels[inside].all()


@relaxed
@given(BOXES, st.integers(1, 20), st.integers(1, 20))
def test_a_box_opens_no_cell_that_it_does_not_reach(box: Box, height: int, width: int) -> None:
    rows, columns = np.nonzero(grounded(box=box).region(1, height, width)[0].numpy())
    assert (columns / width <= box[2]).all() and ((columns + 1) / width >= box[0]).all()
    assert (rows / height <= box[3]).all() and ((rows + 1) / height >= box[1]).all()


@pytest.mark.parametrize("x0", [0.5, 0.5 - 1e-9, 1 - 1e-9, 0.0])
def test_a_box_thinner_than_the_rounding_does_not_vanish(x0: float) -> None:
    assert opened([grounded(box=(x0, 0.0, min(x0 + 2e-9, 1.0), 1.0))]).sum() == 8


@relaxed
@given(
    st_numpy.arrays(np.bool_, st.tuples(st.just(2), st.integers(1, 12), st.integers(1, 12))),
    st.integers(1, 14),
    st.integers(1, 14),
)
def test_every_pixel_of_a_mask_lies_in_an_opened_cell(masks: np.ndarray, height: int, width: int) -> None:
    region = grounded(masks=masks).region(2, height, width).numpy()
    assert region.shape == (2, height, width)
    for frame in range(2):
        assert region[frame].any() == masks[frame].any()
        for row, column in np.argwhere(masks[frame]):
            (row0, row1), (column0, column1) = (
                (math.floor(i * new / old), math.ceil((i + 1) * new / old))
                for i, new, old in ((row, height, masks.shape[1]), (column, width, masks.shape[2]))
            )
            assert region[frame, row0:row1, column0:column1].all()


def test_the_inversion_mask_opens_all_boxes_whatever_becomes_of_them() -> None:
    expected = 1 - (cells(slice(0, 4), slice(0, 4)) | cells(slice(4, 8), slice(4, 8))).astype(np.float32)
    for first, second in itertools.product(("changed", "kept", "new", "removed"), repeat=2):
        grounding = VideoGrounding([grounded(first, box=LEFT), grounded(second, box=RIGHT)])
        np.testing.assert_array_equal(grounding.inversion_mask(1, 8, 8)[:, 0], expected)


def test_the_inversion_mask_opens_the_box_of_a_mask() -> None:
    masks = np.zeros((1, 8, 8), dtype=bool)
    masks[0, 0, 0] = masks[0, 3, 3] = True
    mask = VideoGrounding([grounded("kept", masks=masks)]).inversion_mask(1, 8, 8)
    np.testing.assert_array_equal(mask[:, 0] == 0, cells(slice(0, 4), slice(0, 4)))


def same_objects(first: VideoGrounding, second: VideoGrounding) -> bool:
    fields = ("source_phrase", "target_phrase", "boxes", "box", "keyframes")
    return len(first.objects) == len(second.objects) and all(
        all(getattr(a, name) == getattr(b, name) for name in fields) and np.array_equal(a.masks, b.masks)  # type: ignore[arg-type]
        for a, b in zip(first.objects, second.objects)
    )


def test_a_file_keeps_everything(tmp_path: Path) -> None:
    masks = np.zeros((2, 6, 5), dtype=bool)
    masks[1, 2:4, 1:] = True
    grounding = VideoGrounding(
        [
            grounded("changed", "ünicode 兎", boxes=[LEFT, None]),
            grounded("kept", box=RIGHT, masks=masks),
            grounded("new", keyframes={0: LEFT, 1: None, 10: RIGHT}),
            grounded("removed", masks=masks),
        ]
    )
    grounding.to_json(tmp_path / "edit.json")
    assert same_objects(VideoGrounding.from_json(tmp_path / "edit.json"), grounding)
    assert same_objects(VideoGrounding.from_dict(grounding.to_dict()), grounding)


PHRASES = st.none() | st.text(min_size=1).filter(lambda text: text.strip())
MASKS = st_numpy.arrays(np.bool_, st_numpy.array_shapes(min_dims=3, max_dims=3, max_side=9))
PLACES = (
    st.fixed_dictionaries({"box": BOXES})
    | st.fixed_dictionaries({"boxes": st.lists(st.none() | BOXES, min_size=1)})
    | st.fixed_dictionaries(
        {"keyframes": st.dictionaries(st.integers(0, 99), BOXES, min_size=1)}, optional={"masks": MASKS}
    )
    | st.fixed_dictionaries({"masks": MASKS})
)


@relaxed
@given(
    st.lists(
        st.tuples(PHRASES, PHRASES, PLACES).filter(lambda fields: not fields[0] is fields[1] is None),
        min_size=1,
        max_size=4,
    )
)
def test_json_keeps_everything(objects: list[tuple[str | None, str | None, dict[str, Any]]]) -> None:
    grounding = VideoGrounding([GroundedObject(source, target, **place) for source, target, place in objects])
    written = json.dumps(grounding.to_dict(), allow_nan=False)
    assert same_objects(VideoGrounding.from_dict(json.loads(written)), grounding)


def test_masks_are_run_lengths_column_by_column_zeros_first() -> None:
    masks = np.array([[[0, 1], [0, 1], [1, 1]], [[1, 1], [0, 0], [0, 0]], [[0, 0]] * 3, [[1, 1]] * 3], dtype=bool)
    grounding = VideoGrounding([grounded(masks=masks)])
    assert grounding.to_dict()["objects"][0]["masks"] == [
        {"size": [3, 2], "counts": [2, 4]},
        {"size": [3, 2], "counts": [0, 1, 2, 1, 2]},
        {"size": [3, 2], "counts": [6]},
        {"size": [3, 2], "counts": [0, 6]},
    ]


def test_a_mask_of_none_is_empty() -> None:
    data = {
        "objects": [{"source_phrase": "a", "target_phrase": None, "masks": [None, {"size": [2, 2], "counts": [0, 4]}]}]
    }
    assert VideoGrounding.from_dict(data).objects[0].frame_boxes(2) == [None, (0.0, 0.0, 1.0, 1.0)]


def test_a_file_may_hold_more_than_objects(tmp_path: Path) -> None:
    data = {"prompt": "a cat", "objects": [{"source_phrase": "a", "target_phrase": "b", "keyframes": {"0": LEFT}}]}
    (tmp_path / "edit.json").write_text(json.dumps(data))
    grounding = VideoGrounding.from_json(tmp_path / "edit.json")
    assert grounding.objects[0].keyframes == {0: LEFT}


def an_object(**changes: Any) -> dict[str, Any]:
    return {"objects": [{"source_phrase": "cat", "target_phrase": "dog", **changes}]}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "a list under 'objects', but 'objects' is None"),
        ({"objects": "cat"}, "a list under 'objects', but 'objects' is 'cat'"),
        ({"objects": []}, "`objects` has to hold 1 to 30 objects, but holds 0"),
        ({"objects": ["cat"]}, r"`objects\[0\]` has to be a dict, but is 'cat'"),
        ({"objects": [{"source_phrase": "cat", "box": LEFT}]}, r"lacks the keys \['target_phrase'\]"),
        (an_object(box=LEFT, bbox=LEFT), r"`objects\[0\]` has unknown keys \['bbox'\]"),
        (an_object(box=[0, 0, 0, 0]), r"`objects\[0\]`: `box` of 'cat'"),
        (an_object(box=[0, 0, math.nan, 1]), r"`objects\[0\]`: `box` of 'cat' .* nan"),
        (an_object(keyframes={"first": LEFT}), r"`objects\[0\]`: .*'first'"),
        (an_object(keyframes=[LEFT]), r"`objects\[0\]`: `keyframes` of 'cat'"),
        (an_object(masks=[None]), r"`objects\[0\]`: .*masks"),
        (an_object(masks=[]), r"`objects\[0\]`: .*masks"),
        (an_object(masks=[{"size": [2, 2], "counts": [3]}]), r"`objects\[0\]`: .*size \(2, 2\) sum up to 3"),
        (an_object(masks=[{"size": [2, 2], "counts": [-1, 5]}]), r"`objects\[0\]`: .*run lengths"),
        (an_object(masks=[{"size": [2], "counts": [2]}]), r"`objects\[0\]`:"),
        (an_object(masks=[{"size": [1, 2], "counts": [2]}, {"size": [2, 1], "counts": [2]}]), "of one size"),
        (an_object(masks=[{"counts": [2]}]), r"`objects\[0\]`: .*size"),
        (an_object(masks="mask"), r"`objects\[0\]`:"),
    ],
)
def test_a_dict_of_another_form(data: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        VideoGrounding.from_dict(data)


@pytest.mark.parametrize("content", [None, "", "{", "[1]", "\x00"])
def test_a_file_of_another_form(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "edit.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ValueError, match="objects" if content == "[1]" else "`path`: .*edit.json"):
        VideoGrounding.from_json(path)


@pytest.mark.parametrize("per_frame", [False, True])
def test_inputs_of_the_position_net_are_padded_to_30(per_frame: bool) -> None:
    boxes = torch.tensor([[LEFT, RIGHT], [LEFT, LEFT]])
    present = torch.tensor([[True, False], [True, True]])
    phrases = torch.arange(1.0, 7.0).view(2, 3)
    inputs = position_net_inputs(boxes, present, phrases.expand(2, 2, 3) if per_frame else phrases)
    assert {name: tuple(value.shape) for name, value in inputs.items()} == {
        "boxes": (2, 30, 4),
        "masks": (2, 30),
        "positive_embeddings": (2, 30, 3),
    }
    assert inputs["masks"][:, :2].tolist() == [[1, 0], [1, 1]]
    assert inputs["boxes"][:, :2].tolist() == [[list(LEFT), [0] * 4], [list(LEFT), list(LEFT)]]
    assert inputs["positive_embeddings"][:, :2].tolist() == [[[1, 2, 3], [0, 0, 0]], [[1, 2, 3], [4, 5, 6]]]
    assert not any(value[:, 2:].any() for value in inputs.values())


def test_inputs_of_the_position_net_take_30_objects_and_the_type_of_the_phrases() -> None:
    inputs = position_net_inputs(
        torch.rand(2, 30, 4), torch.ones(2, 30, dtype=torch.bool), torch.rand(30, 3, dtype=torch.bfloat16)
    )
    assert all(value.dtype == torch.bfloat16 for value in inputs.values())
    assert inputs["masks"].shape == (2, 30) and inputs["masks"].all()
