"""Tracks from made-up detections: misses, false alarms, jitter, swaps, two of a kind, leaving and coming back."""

import time

import numpy as np
import pytest

from diffusers_groundavideo.annotators import Detection, Track, grounding_from_tracks, track_detections
from diffusers_groundavideo.annotators.objects import FrameDetections
from diffusers_groundavideo.annotators.tracking import box_iou, select_track
from diffusers_groundavideo.spriteworld import clipped_boxes, random_scene


def moving_boxes(
    num_frames: int, start: tuple[float, float], end: tuple[float, float], side: float = 0.2
) -> np.ndarray:
    """(F, 4) xyxy of a square whose centre goes from `start` to `end` at one speed."""
    centres = np.linspace(start, end, num_frames)
    return np.concatenate([centres - side / 2, centres + side / 2], axis=1)


def detections_of(*objects: np.ndarray, phrase: str = "dog", score: float = 0.6) -> list[FrameDetections]:
    """What a perfect detector finds of objects (F, 4) of one phrase; NaN where one is not seen."""
    return [
        {phrase: [Detection(tuple(box), score) for box in boxes if not np.isnan(box).any()]} for boxes in zip(*objects)
    ]


def track_boxes(track: Track) -> np.ndarray:
    """(F, 4), NaN where there is none."""
    return np.array([box or (np.nan,) * 4 for box in track.boxes])


def test_a_perfect_detector_leaves_nothing_to_do() -> None:
    boxes = moving_boxes(12, (0.3, 0.3), (0.6, 0.5))
    (track,) = track_detections(detections_of(boxes))
    np.testing.assert_allclose(track_boxes(track), boxes, atol=1e-9)
    assert track.phrase == "dog"
    assert track.scores == [0.6] * 12
    assert track.score == pytest.approx(0.6)
    assert track.num_detections == 12


@pytest.mark.parametrize("num_frames", [1, 2, 3, 300])
def test_clips_of_any_length(num_frames: int) -> None:
    boxes = moving_boxes(num_frames, (0.3, 0.3), (0.38, 0.34))
    (track,) = track_detections(detections_of(boxes))
    np.testing.assert_allclose(track_boxes(track), boxes, atol=1e-9)


def test_what_moves_by_its_own_size_a_frame_is_followed() -> None:
    boxes = moving_boxes(6, (0.1, 0.5), (0.9, 0.6), side=0.15)
    (track,) = track_detections(detections_of(boxes))
    np.testing.assert_allclose(track_boxes(track), boxes, atol=1e-9)


def test_uniform_acceleration_and_growth_are_not_smoothed_away() -> None:
    progress = np.linspace(0, 1, 16)[:, None]
    boxes = np.array([0.1, 0.2, 0.3, 0.4]) + progress**2 * np.array([0.3, 0.1, 0.5, 0.3])
    (track,) = track_detections(detections_of(boxes))
    np.testing.assert_allclose(track_boxes(track), boxes, atol=1e-9)


def test_misses_are_filled_in_up_to_a_limit() -> None:
    boxes = moving_boxes(16, (0.2, 0.3), (0.8, 0.5))
    seen = boxes.copy()
    seen[4:7] = np.nan
    (track,) = track_detections(detections_of(seen), max_gap=3)
    np.testing.assert_allclose(track_boxes(track), boxes, atol=1e-9)
    assert track.scores[4:7] == [None] * 3
    assert track.num_detections == 13
    (track,) = track_detections(detections_of(seen), max_gap=2)
    assert [box is None for box in track.boxes] == [False] * 4 + [True] * 3 + [False] * 9


def test_misses_at_the_ends_are_filled_in_while_the_object_is_in_the_frame() -> None:
    boxes = moving_boxes(12, (0.3, 0.3), (0.6, 0.5))
    seen = boxes.copy()
    seen[:2] = seen[-3:] = np.nan
    (track,) = track_detections(detections_of(seen))
    np.testing.assert_allclose(track_boxes(track), boxes, atol=1e-9)
    # This one comes in from the left: before it is seen, it is outside.
    entering = moving_boxes(12, (-0.3, 0.5), (0.5, 0.5)).clip(0, 1)
    entering[entering[:, 2] - entering[:, 0] < 0.05] = np.nan
    first = int(np.flatnonzero(~np.isnan(entering[:, 0]))[0])
    (track,) = track_detections(detections_of(entering))
    assert all(box is None for box in track.boxes[: first - 1])
    assert all(box is not None for box in track.boxes[first:])


def test_false_alarms_make_no_track() -> None:
    boxes = moving_boxes(20, (0.3, 0.7), (0.6, 0.7))
    detections = detections_of(boxes)
    for number, frame in enumerate((3, 8, 15)):
        low = 0.05 + 0.25 * number
        detections[frame] = {"dog": [Detection((low, 0.05, low + 0.2, 0.2), 0.9), *detections[frame]["dog"]]}
    (track,) = track_detections(detections)
    np.testing.assert_allclose(track_boxes(track), boxes, atol=1e-9)


def test_the_better_of_two_boxes_in_place_goes_on() -> None:
    boxes = moving_boxes(10, (0.3, 0.5), (0.4, 0.5))
    shifted = boxes + 0.005
    both = [{"dog": [Detection(tuple(off), 0.3), Detection(tuple(box), 0.8)]} for box, off in zip(boxes, shifted)]
    track = track_detections(both)[0]
    np.testing.assert_allclose(track_boxes(track), boxes, atol=1e-9)


def test_jitter_is_evened_out() -> None:
    rng = np.random.default_rng(0)
    boxes = moving_boxes(40, (0.3, 0.3), (0.6, 0.6))
    noisy = boxes + rng.normal(0, 0.01, boxes.shape)
    (track,) = track_detections(detections_of(noisy))
    (raw,) = track_detections(detections_of(noisy), smoothing=1)
    np.testing.assert_allclose(track_boxes(raw), noisy, atol=1e-9)
    error, raw_error = (np.abs(track_boxes(one) - boxes).mean() for one in (track, raw))
    print(f"jitter: {raw_error:.4f} becomes {error:.4f}")
    assert error < 0.8 * raw_error
    shake, raw_shake = (np.abs(np.diff(track_boxes(one), n=2, axis=0)).mean() for one in (track, raw))
    assert shake < 0.6 * raw_shake


def test_two_of_a_kind_in_any_order_are_told_apart() -> None:
    rng = np.random.default_rng(0)
    left = moving_boxes(20, (0.2, 0.3), (0.3, 0.7))
    right = moving_boxes(20, (0.8, 0.7), (0.6, 0.3))
    detections = [
        {"dog": [frame["dog"][index] for index in rng.permutation(2)]} for frame in detections_of(left, right)
    ]
    tracks = track_detections(detections)
    assert len(tracks) == 2
    np.testing.assert_allclose(track_boxes(select_track(tracks, "left")), left, atol=1e-9)
    np.testing.assert_allclose(track_boxes(select_track(tracks, "right")), right, atol=1e-9)


def test_two_of_a_kind_that_cross_keep_their_ways() -> None:
    first = moving_boxes(21, (0.15, 0.42), (0.85, 0.42))
    second = moving_boxes(21, (0.85, 0.5), (0.15, 0.5))
    tracks = track_detections(detections_of(first, second))
    assert len(tracks) == 2
    starts_left = next(track for track in tracks if track.boxes[0] is not None and track.boxes[0][0] < 0.5)
    np.testing.assert_allclose(track_boxes(starts_left), first, atol=1e-9)


def test_phrases_do_not_mix() -> None:
    boxes = moving_boxes(8, (0.3, 0.3), (0.6, 0.5))
    detections = [
        {**dog, **cat, "sky": []}
        for dog, cat in zip(detections_of(boxes), detections_of(boxes, phrase="cat", score=0.4))
    ]
    tracks = track_detections(detections)
    assert [track.phrase for track in tracks] == ["dog", "cat"]
    assert [track.score for track in tracks] == [pytest.approx(0.6), pytest.approx(0.4)]


def test_what_leaves_and_comes_back_is_one_track() -> None:
    boxes = moving_boxes(30, (0.6, 0.5), (0.9, 0.5))
    boxes[10:22] = np.nan
    boxes[22:] = moving_boxes(8, (0.15, 0.5), (0.3, 0.5))
    (track,) = track_detections(detections_of(boxes))
    assert [box is None for box in track.boxes] == np.isnan(boxes[:, 0]).tolist()
    np.testing.assert_allclose(track_boxes(track), boxes, atol=1e-9)


def test_what_comes_back_elsewhere_soon_leaves_the_boxes_from_before_it_was_gone() -> None:
    boxes = moving_boxes(8, (0.2, 0.3), (0.25, 0.3))
    boxes[3] = np.nan
    boxes[4:] = moving_boxes(4, (0.8, 0.7), (0.75, 0.7))
    (track,) = track_detections(detections_of(boxes))
    np.testing.assert_allclose(track_boxes(track), boxes, atol=1e-9)


def test_the_one_that_stays_is_not_taken_for_the_one_that_comes_back() -> None:
    stays = moving_boxes(30, (0.2, 0.2), (0.3, 0.2))
    leaves = moving_boxes(30, (0.7, 0.8), (0.9, 0.8))
    leaves[8:20] = np.nan
    tracks = track_detections(detections_of(stays, leaves))
    assert len(tracks) == 2
    # The surest first: it was seen more often.
    np.testing.assert_allclose(track_boxes(tracks[0]), stays, atol=1e-9)
    np.testing.assert_allclose(track_boxes(tracks[1]), leaves, atol=1e-9)


@pytest.mark.parametrize("motion", ["linear", "accelerating", "crossing", "leaving", "entering", "zoom"])
def test_sprite_scenes_seen_by_a_poor_detector(motion: str) -> None:
    """Two of a kind, one box in ten missed, a pixel of jitter in 64, a false alarm in every tenth frame."""
    covered, present = 0, 0
    for seed in range(30):
        rng = np.random.default_rng(seed)
        scene = random_scene(seed, num_objects=2, motion=motion)
        exact = clipped_boxes(np.stack([item.slots for item in scene.objects], axis=1))
        detections = []
        for boxes in exact:
            found = [
                Detection(tuple(np.clip(box + rng.normal(0, 1 / 64, 4), 0, 1)), rng.uniform(0.4, 0.9))
                for box in boxes[rng.permutation(2)]
                if not np.isnan(box).any() and rng.random() > 0.1
            ]
            if rng.random() < 0.1:
                low = rng.uniform(0, 0.6, 2)
                found.append(Detection((*low, *(low + 0.3)), rng.uniform(0.3, 0.5)))
            detections.append({"dog": found})
        boxes_of_tracks = np.stack([track_boxes(track) for track in track_detections(detections)], axis=1)
        overlap = np.nan_to_num(box_iou(boxes_of_tracks[:, :, None], exact[:, None])) >= 0.5
        # The best of the tracks for each object, all frames long: a swap would cost the rest of the clip.
        covered += int(overlap.sum(axis=0).max(axis=0).sum())
        present += int((~np.isnan(exact[..., 0])).sum())
    print(f"{motion}: {covered / present:.1%} of {present} boxes")
    assert covered / present > 0.95


def test_time_is_linear_in_the_number_of_frames() -> None:
    def seconds(num_frames: int) -> float:
        objects = [moving_boxes(num_frames, (0.15 * k, 0.2), (0.15 * k, 0.8)) for k in range(1, 6)]
        detections = detections_of(*objects)
        start = time.perf_counter()
        assert len(track_detections(detections)) == 5
        return time.perf_counter() - start

    seconds(10)
    short, long = (min(seconds(num_frames) for _ in range(3)) for num_frames in (100, 800))
    print(f"100 frames: {short:.3f} s, 800 frames: {long:.3f} s")
    # Eight times the frames; a quadratic tracker would take 64 times as long.
    assert long < 20 * short


def test_no_detections_give_no_tracks() -> None:
    assert track_detections([{"dog": []}] * 5) == []


def test_one_detection_is_a_track_only_where_it_may_be() -> None:
    seen = np.full((8, 4), np.nan)
    seen[3] = (0.2, 0.2, 0.4, 0.4)
    assert track_detections(detections_of(seen)) == []
    (track,) = track_detections(detections_of(seen), min_detections=1, max_gap=0)
    assert [box is not None for box in track.boxes] == [False] * 3 + [True] + [False] * 4


@pytest.mark.parametrize(
    ("arguments", "said"), [({"smoothing": 4}, "odd"), ({"max_gap": -1}, "max_gap"), ({"min_detections": 0}, "min_")]
)
def test_numbers_that_mean_nothing_are_refused(arguments: dict[str, int], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        track_detections([{"dog": []}], **arguments)
    with pytest.raises(ValueError, match="at least one frame"):
        track_detections([])


def still(box: tuple[float, float, float, float], num_frames: int = 3) -> Track:
    return Track("dog", [box] * num_frames, [0.5] * num_frames)


def test_one_of_several_is_selected_by_position_or_index() -> None:
    tracks = [still((0.4, 0.4, 0.6, 0.6)), still((0.0, 0.5, 0.1, 0.6)), still((0.7, 0.0, 1.0, 0.3))]
    expected = {"left": 1, "right": 2, "top": 2, "bottom": 1, "largest": 2, "smallest": 1}
    for position, index in expected.items():
        assert select_track(tracks, position) is tracks[index]  # type: ignore[arg-type]
    assert select_track(tracks, 0) is tracks[0]
    for wrong in (3, -1, "behind"):
        with pytest.raises(ValueError, match=str(wrong)):
            select_track(tracks, wrong)  # type: ignore[arg-type]


def test_positions_are_compared_in_the_frames_that_show_all() -> None:
    # By its mean over the clip the first would be on the right: it goes there when the other is gone.
    first = Track("dog", [(0.1, 0.1, 0.2, 0.2), *[(0.8, 0.1, 0.9, 0.2)] * 5], [0.5] * 6)
    second = Track("dog", [(0.5, 0.1, 0.6, 0.2), *[None] * 5], [0.5, *[None] * 5])
    assert select_track([first, second], "left") is first
    apart = Track("dog", [None, (0.3, 0.1, 0.4, 0.2), *[None] * 4], [None, 0.5, *[None] * 4])
    assert select_track([second, apart], "left") is apart


def test_a_grounding_of_tracks() -> None:
    dog, cat = still((0.4, 0.4, 0.6, 0.6)), Track("cat", [None, (0.0, 0.5, 0.1, 0.6), None], [None, 0.5, None])
    assert [grounded.role for grounded in grounding_from_tracks([dog, cat]).objects] == ["kept", "kept"]
    by_phrase = grounding_from_tracks([dog, cat], {"cat": None})
    assert [grounded.role for grounded in by_phrase.objects] == ["kept", "removed"]
    masks = np.zeros((3, 8, 8), dtype=bool)
    in_order = grounding_from_tracks([dog, cat], ["fox", "cat"], [None, masks])
    assert [grounded.role for grounded in in_order.objects] == ["changed", "kept"]
    assert in_order.objects[1].masks is masks
    assert in_order.objects[1].frame_boxes(3) == [None, (0.0, 0.5, 0.1, 0.6), None]
    with pytest.raises(ValueError, match="one a track"):
        grounding_from_tracks([dog, cat], ["fox"])
