"""From boxes in each frame to one track for each object through the clip.

Boxes are `(x0, y0, x1, y1)`, normalised to [0, 1] by the width and height of the frame, origin at the top left.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

import numpy as np

from ..extras import import_from_extra
from ..grounding import Box, GroundedObject, VideoGrounding
from .objects import Detection, FrameDetections


# A detection that overlaps by less with where the object was, or was bound for, is of another object. What was seen
# only once has to be met more closely: false alarms come singly.
MIN_IOU = 0.1
MIN_IOU_OF_SECOND = 0.25
# Before it is known where an object is bound for, a fast one has no overlap with itself: what was seen once is
# compared once more, in boxes enlarged by this share of their size on each side.
FAST_MARGIN = 0.5
# How much the score weighs beside the overlap in choosing which of several boxes goes on with a track.
SCORE_WEIGHT = 0.25
# The degree of the curve that smoothing fits: the second follows an object that speeds up or grows.
SMOOTHING_DEGREE = 2
# Share of its last seen width and height below which an object is taken to have left the frame.
MIN_SHARE_LEFT = 0.3
# Smoothing leaves no box thinner than this, in units of the frame.
_MIN_EXTENT = 1e-4

Position = Literal["left", "right", "top", "bottom", "largest", "smallest"]
POSITIONS: tuple[str, ...] = get_args(Position)


@dataclass(frozen=True, eq=False)
class Track:
    """One object through a clip of F frames.

    Args:
        phrase (`str`): What it is.
        boxes (sequence of F boxes or `None`): Normalised xyxy; `None` where the object is out of the frame.
        scores (sequence of F floats or `None`): Of the detections; `None` where there was none, although there may be
            a box that was filled in.
    """

    phrase: str
    boxes: Sequence[Box | None]
    scores: Sequence[float | None]

    @property
    def score(self) -> float:
        """The mean score of the detections that the track is made of."""
        return float(np.mean([score for score in self.scores if score is not None]))

    @property
    def num_detections(self) -> int:
        """In how many frames the object was detected, rather than filled in."""
        return sum(score is not None for score in self.scores)


@dataclass(eq=False)
class _Tracklet:
    """The detections of one object, without a long gap."""

    frames: list[int] = field(default_factory=list)
    detections: list[Detection] = field(default_factory=list)

    def add(self, frame: int, detection: Detection) -> None:
        self.frames.append(frame)
        self.detections.append(detection)

    def expected_boxes(self, frame: int) -> np.ndarray:
        """Where the object may be: where it was, and where it is if it went on as it moved. (2, 4) xyxy."""
        last = np.array(self.detections[-1].box)
        if len(self.frames) == 1:
            return np.stack([last, last])
        velocity = (last - np.array(self.detections[-2].box)) / (self.frames[-1] - self.frames[-2])
        return np.stack([last, last + velocity * (frame - self.frames[-1])])


def track_detections(
    detections: Sequence[FrameDetections], max_gap: int = 5, min_detections: int | None = None, smoothing: int = 5
) -> list[Track]:
    """Follows every object of every phrase through the clip.

    From frame to frame the detections of a phrase are assigned all at once to the objects that they overlap most with,
    where these were or were bound for; until it is known how it moves, an object may move by about its own size a
    frame. Up to `max_gap` frames in which an object is missed are filled in; at the start and the end of the clip as
    long as, going on as it moves, it has not left the frame. An object that is gone for longer and comes back has one
    track, without a box in between: objects are not told apart by their looks, so one that appears after another of
    its phrase is gone counts as the same. The time taken is linear in the number of frames.

    Args:
        detections: For each of F frames the detections of each phrase, as an [`ObjectDetector`] gives them.
        max_gap: Frames in a row in which a detector may miss an object that is there.
        min_detections: What is detected in fewer frames is a false alarm; by default 2, in a clip of one frame 1.
        smoothing: Frames, an odd number, over which the detector's jitter is evened out; 1: no smoothing. Uniformly
            accelerated motion is left as it is.

    Returns:
        The tracks of each phrase in the order of the phrases; of one phrase the one with the largest sum of scores
        first. A phrase that is not found has none.

    Raises:
        `ValueError`: If there is no frame, `smoothing` is even or below 1, or another number is below its least value.
    """
    if not detections:
        raise ValueError("`detections` has to be of at least one frame, but is empty.")
    if min_detections is None:
        min_detections = min(2, len(detections))
    if smoothing < 1 or smoothing % 2 == 0 or max_gap < 0 or min_detections < 1:
        raise ValueError(
            "`smoothing` has to be odd and at least 1, `max_gap` at least 0 and `min_detections` at least 1, but they "
            f"are {smoothing}, {max_gap} and {min_detections}."
        )
    tracks: list[Track] = []
    for phrase in detections[0]:
        tracklets = _tracklets([frame[phrase] for frame in detections], max_gap)
        chains = _chains([one for one in tracklets if len(one.frames) >= min_detections])
        of_phrase = [_as_track(phrase, chain, len(detections), max_gap, smoothing) for chain in chains]
        tracks += sorted(of_phrase, key=lambda track: -track.score * track.num_detections)
    return tracks


def _tracklets(detections: Sequence[Sequence[Detection]], max_gap: int) -> list[_Tracklet]:
    ended: list[_Tracklet] = []
    running: list[_Tracklet] = []
    for frame, candidates in enumerate(detections):
        ended += [one for one in running if frame - one.frames[-1] > max_gap + 1]
        running = [one for one in running if frame - one.frames[-1] <= max_gap + 1]
        waiting = _assign(running, list(candidates), frame)
        just_seen = [one for one in running if one.frames == [frame - 1]]
        new = _assign(just_seen, waiting, frame, margin=FAST_MARGIN)
        running += [_Tracklet([frame], [detection]) for detection in new]
    return ended + running


def _assign(
    tracklets: Sequence[_Tracklet], candidates: list[Detection], frame: int, margin: float = 0.0
) -> list[Detection]:
    """Adds detections to the tracklets that they overlap most with in sum; those that fit none are left.

    Boxes are enlarged by `margin` times their width and height on each side.
    """
    if not tracklets or not candidates:
        return candidates
    boxes = _enlarged(np.array([candidate.box for candidate in candidates]), margin)
    scores = np.array([candidate.score for candidate in candidates])
    expected = _enlarged(np.stack([one.expected_boxes(frame) for one in tracklets]), margin)
    overlap = box_iou(expected[:, :, None], boxes).max(axis=1)
    least = np.array([MIN_IOU_OF_SECOND if len(one.frames) == 1 else MIN_IOU for one in tracklets])
    possible = overlap >= least[:, None]
    gain = np.where(possible, overlap + SCORE_WEIGHT * scores, 0.0)
    rows, columns = import_from_extra("scipy.optimize", "annotators").linear_sum_assignment(gain, maximize=True)
    left = dict(enumerate(candidates))
    for row, column in zip(rows.tolist(), columns.tolist()):
        if possible[row, column]:
            tracklets[row].add(frame, left.pop(column))
    return list(left.values())


def _enlarged(boxes: np.ndarray, margin: float) -> np.ndarray:
    size = boxes[..., 2:] - boxes[..., :2]
    return np.concatenate([boxes[..., :2] - margin * size, boxes[..., 2:] + margin * size], axis=-1)


def box_iou(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Intersection over union of boxes (..., 4) xyxy that broadcast: (...), in [0, 1]."""
    low = np.maximum(first[..., :2], second[..., :2])
    high = np.minimum(first[..., 2:], second[..., 2:])
    intersection = np.clip(high - low, 0, None).prod(axis=-1)
    union = (first[..., 2:] - first[..., :2]).prod(axis=-1) + (second[..., 2:] - second[..., :2]).prod(axis=-1)
    return intersection / np.maximum(union - intersection, 1e-12)


def _chains(tracklets: Sequence[_Tracklet]) -> list[list[_Tracklet]]:
    """Joins what comes back to what was gone, the nearest first: lists of tracklets that follow each other in time."""
    chains: list[list[_Tracklet]] = []
    starts = sorted({one.frames[0] for one in tracklets})
    of_start: dict[int, list[_Tracklet]] = {start: [] for start in starts}
    for one in tracklets:
        of_start[one.frames[0]].append(one)
    for start in starts:
        gone = [chain for chain in chains if chain[-1].frames[-1] < start]
        new = of_start[start]
        if gone:
            last = np.array([chain[-1].detections[-1].box for chain in gone])
            first = np.array([one.detections[0].box for one in new])
            distance = np.abs(last[:, None] - first).sum(axis=-1)
            rows, columns = import_from_extra("scipy.optimize", "annotators").linear_sum_assignment(distance)
            for row, column in zip(rows, columns):
                gone[row].append(new[column])
            new = [one for index, one in enumerate(new) if index not in columns]
        chains += [[one] for one in new]
    return chains


def _as_track(phrase: str, chain: Sequence[_Tracklet], num_frames: int, max_gap: int, smoothing: int) -> Track:
    boxes: list[Box | None] = [None] * num_frames
    scores: list[float | None] = [None] * num_frames
    for tracklet in chain:
        start, end = tracklet.frames[0], tracklet.frames[-1]
        span = np.arange(start, end + 1)
        seen = np.array([detection.box for detection in tracklet.detections])
        filled = np.stack([np.interp(span, tracklet.frames, corner) for corner in seen.T], axis=-1)
        known = _smoothed(filled, smoothing)
        # Only towards the ends of the clip: what lies between is another tracklet's, or the object was gone.
        missed_before = start if tracklet is chain[0] else 0
        missed_after = num_frames - 1 - end if tracklet is chain[-1] else 0
        before = _extrapolated(known, missed_before if missed_before <= max_gap else 0)
        after = _extrapolated(known[::-1], missed_after if missed_after <= max_gap else 0)
        placed = _inside_frame(np.concatenate([before[::-1], known, after]))
        for frame, (x0, y0, x1, y1) in enumerate(placed.tolist(), start=start - len(before)):
            boxes[frame] = (x0, y0, x1, y1)
        for frame, detection in zip(tracklet.frames, tracklet.detections):
            scores[frame] = detection.score
    return Track(phrase, boxes, scores)


def _extrapolated(boxes: np.ndarray, steps: int) -> np.ndarray:
    """At most `steps` boxes (S, 4) that come before boxes (F, 4), the nearest first; none in which little is left."""
    near = boxes[:3]
    velocity = (near[0] - near[-1]) / max(1, len(near) - 1)
    outside = near[0] + velocity * np.arange(1, steps + 1)[:, None]
    # A box that is cut by the border shrinks on its way out.
    seen = np.clip(outside, 0, 1)
    left = ((seen[:, 2:] - seen[:, :2]) >= MIN_SHARE_LEFT * (near[0, 2:] - near[0, :2])).all(axis=1)
    return seen[np.logical_and.accumulate(left)]


def _smoothed(boxes: np.ndarray, window: int) -> np.ndarray:
    """Boxes (F, 4) of neighbouring frames, each corner fitted by a parabola over `window` frames."""
    # As many frames as there are, if there are fewer; odd.
    window = min(window, (len(boxes) - 1) // 2 * 2 + 1)
    if window <= SMOOTHING_DEGREE + 1:
        return boxes
    return import_from_extra("scipy.signal", "annotators").savgol_filter(boxes, window, SMOOTHING_DEGREE, axis=0)


def _inside_frame(boxes: np.ndarray) -> np.ndarray:
    """Boxes (F, 4) clipped to [0, 1], none of them empty."""
    low = np.clip(boxes[:, :2], 0, 1 - _MIN_EXTENT)
    return np.concatenate([low, np.clip(boxes[:, 2:], low + _MIN_EXTENT, 1)], axis=-1)


def select_track(tracks: Sequence[Track], which: Position | int) -> Track:
    """One of several tracks.

    Args:
        tracks: Of one phrase, say; at least one.
        which: `"left"`, `"right"`, `"top"`, `"bottom"` (by the centre of the box, the mean over the frames in which
            all of them are seen, or over each one's own frames if there is none), `"largest"`, `"smallest"` (by area,
            likewise); or the index of one, from 0.

    Raises:
        `ValueError`: If there is no such position or index.
    """
    if isinstance(which, int):
        if not 0 <= which < len(tracks):
            raise ValueError(f"`which` is {which}, but there are {len(tracks)} tracks, counted from 0.")
        return tracks[which]
    if which not in POSITIONS:
        raise ValueError(f"`which` has to be an index or one of {', '.join(POSITIONS)}, but is {which!r}.")
    shared = [frame for frame in zip(*(track.boxes for track in tracks)) if all(box is not None for box in frame)]
    places = list(zip(*shared)) if shared else [[box for box in track.boxes if box is not None] for track in tracks]

    def measure(index: int) -> float:
        x0, y0, x1, y1 = np.mean([box for box in places[index] if box is not None], axis=0)
        area = (x1 - x0) * (y1 - y0)
        by_position = {"left": x0 + x1, "right": -x0 - x1, "top": y0 + y1, "bottom": -y0 - y1}
        return float({**by_position, "smallest": area, "largest": -area}[which])

    return tracks[min(range(len(tracks)), key=measure)]


def grounding_from_tracks(
    tracks: Sequence[Track],
    targets: Sequence[str | None] | Mapping[str, str | None] | None = None,
    masks: Sequence[np.ndarray | None] | None = None,
) -> VideoGrounding:
    """The grounding of an edit of objects that were tracked.

    Args:
        tracks: The objects.
        targets: What each of them becomes (`None`: it is removed): one a track, or by phrase, where phrases that are
            not named stay what they are; by default all stay.
        masks: One boolean array (F, H, W) a track, or `None` for it, as [`BoxToMask`] makes them.

    Returns:
        [`VideoGrounding`] with an object for each track, in their order.

    Raises:
        `ValueError`: If there is no track or more than GLIGEN takes, or not one target or mask a track.
    """
    if targets is None or isinstance(targets, Mapping):
        by_phrase: Mapping[str, str | None] = targets or {}
        targets = [by_phrase.get(track.phrase, track.phrase) for track in tracks]
    masks = [None] * len(tracks) if masks is None else masks
    if len(targets) != len(tracks) or len(masks) != len(tracks):
        raise ValueError(
            f"`targets` and `masks` have to be one a track, but there are {len(targets)} and {len(masks)} for "
            f"{len(tracks)} tracks."
        )
    return VideoGrounding(
        [
            GroundedObject(track.phrase, target, boxes=track.boxes, masks=mask)
            for track, target, mask in zip(tracks, targets, masks)
        ]
    )
