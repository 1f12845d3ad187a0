from collections import Counter
from functools import cache

import numpy as np
import pytest

from diffusers_groundavideo.evaluation.edit_accuracy import edit_accuracy
from diffusers_groundavideo.evaluation.suite import KINDS, BenchmarkClip, benchmark_clip, clip_indices, clip_kind
from diffusers_groundavideo.spriteworld import SPRITE_NAMES
from diffusers_groundavideo.spriteworld.judge import SpriteJudge


@cache
def clip_of(kind: str) -> BenchmarkClip:
    return benchmark_clip(5, KINDS.index(kind))


def speed(kind: str) -> float:
    """Pixels a frame, the fastest."""
    return float(np.linalg.norm(clip_of(kind).source.forward_flow, axis=1).max())


@pytest.mark.parametrize("count", [1, 6, 12, 17, 30])
def test_any_prefix_is_balanced_over_kinds(count):
    counts = Counter(clip_kind(index) for index in clip_indices(count))
    assert max(counts.values()) - min(counts[kind] for kind in KINDS) <= 1


def test_only_some_kinds_are_the_same_clips_as_in_the_whole_suite():
    indices = clip_indices(5, ["fast", "crossing"])
    assert indices == [index for index in range(40) if clip_kind(index) in ("fast", "crossing")][:5]


def test_backgrounds_are_balanced_and_every_kind_meets_several():
    backgrounds = [benchmark_clip(5, index, num_frames=2).scene.background for index in range(24)]
    assert set(Counter(backgrounds).values()) == {4}
    assert all(first != second for first, second in zip(backgrounds, backgrounds[12:]))


def test_a_clip_is_the_same_every_time_and_another_one_with_another_seed():
    first, again, other = clip_of(KINDS[3]), benchmark_clip(5, 3), benchmark_clip(6, 3)
    assert np.array_equal(first.source.frames, again.source.frames)
    assert np.array_equal(first.perfect.frames, again.perfect.frames)
    assert first.prompt == again.prompt
    assert not np.array_equal(first.source.frames, other.source.frames)


@pytest.mark.parametrize(
    ("kind", "changed", "kept"),
    [
        ("one-edit", 1, 0),
        ("two-edits", 2, 0),
        ("three-edits", 3, 0),
        ("addition", 1, 1),
        ("kept-object", 2, 1),
        ("background-change", 0, 2),
        ("background-swap", 2, 0),
        ("crossing", 2, 0),
        ("leaving", 2, 0),
        ("camera-pan", 2, 0),
        ("fast", 1, 0),
        ("slow", 1, 0),
    ],
)
def test_each_kind_changes_and_keeps_so_many_objects(kind, changed, kept):
    clip = clip_of(kind)
    assert clip.kind == kind
    assert (len(clip.changed), len(clip.kept)) == (changed, kept)
    assert clip.changes_background == kind.startswith("background")
    assert set(clip.target_names) <= set(SPRITE_NAMES)


def test_an_addition_has_no_source_phrase_and_its_place_is_empty_before():
    clip = clip_of("addition")
    (added,) = clip.changed
    assert clip.grounding.objects[added].role == "new"
    assert not clip.source.full_masks[:, added].any()
    assert clip.perfect.full_masks[:, added].any()


def test_kept_objects_are_not_open():
    clip = clip_of("background-change")
    opened = clip.opened_region(4)
    kept = clip.source.visible_masks.any(axis=1)
    assert not (opened & kept).any()
    assert opened.mean() > 0.5


def test_a_background_swap_opens_everything():
    assert clip_of("background-swap").opened_region(4).all()


def test_the_fast_clip_is_much_faster_than_the_slow_one():
    assert speed("fast") > 4 * speed("slow") > 0


def test_objects_cross_leave_and_the_camera_pans():
    first, second = (item.slots[:, 0] for item in clip_of("crossing").scene.objects)
    assert (first - second)[0] * (first - second)[-1] < 0
    assert np.isnan(clip_of("leaving").source.boxes[-1, 0]).all()
    assert not np.isnan(clip_of("leaving").source.boxes[0, 0]).any()
    camera = clip_of("camera-pan").scene.camera
    assert not np.array_equal(camera[0], camera[-1])


def test_the_background_region_is_what_no_perfect_edit_touches():
    clip = clip_of("two-edits")
    region = clip.background_region
    assert region.mean() > 0.3
    assert np.array_equal(clip.source.frames[region], clip.perfect.frames[region])
    assert not (region & clip.perfect.full_masks.any(axis=1)).any()
    assert not clip_of("background-change").background_region.any()


def test_the_judge_knows_every_object_in_its_judged_box():
    judge = SpriteJudge.from_pretrained()
    accuracies = []
    for kind in KINDS:
        clip = clip_of(kind)
        accuracies.append(edit_accuracy(clip.perfect.frames, clip.judged_boxes, clip.target_names, judge))
    assert np.mean(accuracies) > 0.97


def test_a_box_is_not_judged_once_its_object_has_mostly_left():
    clip = clip_of("leaving")
    present, judged = (~np.isnan(boxes[:, 0, 0]) for boxes in (clip.perfect.boxes, clip.judged_boxes))
    assert judged.sum() < present.sum()
    assert not (judged & ~present).any()


@pytest.mark.parametrize("num_frames", [2, 16])
def test_length_changes_the_speed_and_not_the_way(num_frames):
    clip, usual = benchmark_clip(5, 0, num_frames), clip_of(KINDS[0])
    assert len(clip.source.frames) == num_frames
    assert clip.prompt == usual.prompt
    for item, other in zip(clip.scene.objects, usual.scene.objects):
        np.testing.assert_allclose(item.slots[[0, -1]], other.slots[[0, -1]])


@pytest.mark.parametrize("arguments", [(-1, 0), (0, -1), (0, 0, 1)])
def test_bad_arguments_are_refused(arguments):
    with pytest.raises(ValueError, match="has to be at least|have to be at least"):
        benchmark_clip(*arguments)


def test_an_unknown_kind_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="called flying; the kinds are two-edits"):
        clip_indices(3, ["flying"])
    with pytest.raises(ValueError, match="at least 1, but is 0"):
        clip_indices(0)
