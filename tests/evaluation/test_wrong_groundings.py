import numpy as np
import pytest
import torch

from diffusers_groundavideo.evaluation.suite import KINDS, benchmark_clip
from diffusers_groundavideo.evaluation.wrong_groundings import (
    DISTURBANCES,
    confidences,
    dropped,
    jittered,
    masked,
    scaled,
    shifted,
    smoothed,
    swapped,
    wrong_phrase,
)


@pytest.fixture(scope="module")
def clip():
    return benchmark_clip(5, 0)


@pytest.fixture()
def rng():
    return np.random.default_rng(0)


def boxes_of(grounding, num_frames=8):
    boxes, present = grounding.frame_boxes(num_frames)
    return torch.where(present[..., None], boxes, torch.nan).numpy()


def test_shifted_boxes_are_so_far_from_where_they_were_unless_the_frame_ends(clip, rng):
    moved = boxes_of(shifted(clip, rng, 0.1)) - boxes_of(clip.grounding)
    distances = np.linalg.norm(moved[..., :2], axis=-1)
    assert distances.max() == pytest.approx(0.1, abs=1e-5)
    assert np.median(distances) > 0.05


@pytest.mark.parametrize("factor", [0.7, 1.2])
def test_scaled_boxes_are_so_many_times_as_wide(clip, rng, factor):
    before, after = boxes_of(clip.grounding), boxes_of(scaled(clip, rng, factor))
    widths = [boxes[..., 2] - boxes[..., 0] for boxes in (before, after)]
    inside = (after > 0).all(-1) & (after < 1).all(-1)
    np.testing.assert_allclose((widths[1] / widths[0])[inside], factor, rtol=1e-4)
    assert inside.any()


def test_dropping_never_takes_the_first_or_last_box(clip, rng):
    gone = np.isnan(boxes_of(dropped(clip, rng, 1.0)))[..., 0]
    assert not gone[[0, -1]].any()
    assert gone[1:-1].all()


def test_jitter_has_the_deviation_that_was_asked_for(clip):
    moved = [
        boxes_of(jittered(clip, np.random.default_rng(seed), 0.02)) - boxes_of(clip.grounding) for seed in range(20)
    ]
    assert np.std(moved) == pytest.approx(0.02, rel=0.15)


def test_swapped_objects_have_each_others_boxes(clip, rng):
    before, after = boxes_of(clip.grounding), boxes_of(swapped(clip, rng))
    np.testing.assert_array_equal(after, before[:, ::-1])


def test_nothing_is_swapped_with_a_single_edit(rng):
    assert swapped(benchmark_clip(5, KINDS.index("one-edit")), rng) is None


def test_a_wrong_phrase_is_none_of_the_clip_and_targets_stay(clip, rng):
    wrong = wrong_phrase(clip, rng)
    assert wrong is not None
    assert wrong.phrases("target") == clip.grounding.phrases("target")
    names = {item.name for scene in (clip.scene, clip.target) for item in scene.objects}
    assert not names & set(wrong.phrases("source"))
    assert len(set(wrong.phrases("source"))) == 2


def test_nothing_is_taken_for_something_else_where_nothing_was(rng):
    assert wrong_phrase(benchmark_clip(5, KINDS.index("addition")), rng) is None


def test_smoothing_brings_jittered_boxes_nearer_to_the_exact_ones(clip, rng):
    exact, wrong = clip.grounding, jittered(clip, rng, 0.04)
    before, after = (np.abs(boxes_of(one) - boxes_of(exact)).mean() for one in (wrong, smoothed(wrong, 8)))
    assert after < 0.9 * before


def test_smoothing_fills_in_what_was_dropped(clip, rng):
    wrong = smoothed(dropped(clip, rng, 0.5), 8)
    np.testing.assert_allclose(boxes_of(wrong), boxes_of(clip.grounding), atol=0.02)


def test_masks_open_what_the_source_shows_whatever_the_boxes_say(clip, rng):
    wrong = masked(clip, rng, lambda clip, rng: shifted(clip, rng, 0.15))
    assert wrong is not None
    opened = wrong.edit_mask(8, 64, 64)[:, 0].numpy() == 0
    np.testing.assert_array_equal(opened, clip.source.full_masks[:, clip.changed].any(axis=1))
    np.testing.assert_array_equal(boxes_of(wrong), boxes_of(shifted(clip, np.random.default_rng(0), 0.15)))


def test_what_is_new_has_no_mask(rng):
    assert masked(benchmark_clip(5, KINDS.index("addition")), rng) is None


def test_confidence_is_the_overlap_with_the_exact_box(clip, rng):
    np.testing.assert_allclose(confidences(clip, clip.grounding), 1)
    grown = confidences(clip, scaled(clip, rng, 1.2))
    inside = (boxes_of(scaled(clip, rng, 1.2)) % 1 > 0).all(-1)
    np.testing.assert_allclose(grown[inside], 1 / 1.2**2, rtol=1e-4)
    assert inside.any()


def test_a_box_that_is_not_there_is_not_doubted(clip, rng):
    wrong = dropped(clip, rng, 1.0)
    np.testing.assert_allclose(confidences(clip, wrong), 1)


@pytest.mark.parametrize("kind", ["leaving", "kept-object", "background-swap"])
def test_disturbed_groundings_are_valid_and_leave_the_background_alone(kind):
    clip = benchmark_clip(7, KINDS.index(kind))
    for disturb in DISTURBANCES.values():
        wrong = disturb(clip, np.random.default_rng(0))
        assert wrong is not None
        assert boxes_of(wrong).shape == boxes_of(clip.grounding).shape
        if clip.changes_background:
            np.testing.assert_array_equal(boxes_of(wrong)[:, -1], np.tile([0, 0, 1, 1], (8, 1)))
