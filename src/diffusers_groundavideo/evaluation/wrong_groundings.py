"""Groundings as a detector gets them wrong, to ask what a wrong grounding costs and what helps.

Each disturbance takes a clip of the benchmark and a random generator, and returns the grounding that an edit is given
in place of the exact one, or `None` if the clip offers nothing to disturb. Boxes of the background are left alone.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from ..annotators import Detection, track_detections
from ..annotators.tracking import box_iou
from ..grounding import Box, GroundedObject, VideoGrounding
from ..spriteworld import SPRITE_NAMES, phrase_for
from .suite import BenchmarkClip


Disturbance = Callable[[BenchmarkClip, np.random.Generator], VideoGrounding | None]

# A box that a disturbance pushes out of the frame still has this extent in it, in units of the frame.
MIN_EXTENT = 0.05


def _with_boxes(
    clip: BenchmarkClip, change: Callable[[int, Sequence[Box | None]], Sequence[Box | None]]
) -> VideoGrounding:
    """The grounding with `change(index, boxes)` for the boxes of every sprite; masks of kept ones stay exact."""
    num_frames, objects = clip.scene.num_frames, list(clip.grounding.objects)
    for index in range(len(clip.scene.objects)):
        objects[index] = replace(objects[index], boxes=change(index, objects[index].frame_boxes(num_frames)))
    return VideoGrounding(objects)


def _moved(boxes: Sequence[Box | None], offsets: np.ndarray) -> list[Box | None]:
    """Boxes with `offsets`, (F, 4) or (4,), on their corners, inside the frame."""
    moved: list[Box | None] = []
    for box, offset in zip(boxes, np.broadcast_to(offsets, (len(boxes), 4))):
        if box is None:
            moved.append(None)
            continue
        x0, y0, x1, y1 = np.asarray(box) + offset
        x0, y0 = np.clip((x0, y0), 0, 1 - MIN_EXTENT)
        x1, y1 = np.clip((x1, y1), (x0 + MIN_EXTENT, y0 + MIN_EXTENT), 1)
        moved.append((float(x0), float(y0), float(x1), float(y1)))
    return moved


def shifted(clip: BenchmarkClip, rng: np.random.Generator, distance: float) -> VideoGrounding:
    """All boxes of an object moved by `distance`, in units of the frame, in a direction of its own."""
    angles = rng.uniform(0, 2 * np.pi, size=len(clip.scene.objects))
    offsets = distance * np.tile(np.stack([np.cos(angles), np.sin(angles)], axis=-1), 2)
    return _with_boxes(clip, lambda index, boxes: _moved(boxes, offsets[index]))


def scaled(clip: BenchmarkClip, rng: np.random.Generator, factor: float) -> VideoGrounding:
    """All boxes `factor` times as wide and high, about their centres."""

    def scale(index: int, boxes: Sequence[Box | None]) -> list[Box | None]:
        corners = np.array([box or (0.0,) * 4 for box in boxes])
        growth = (factor - 1) / 2 * (corners[:, 2:] - corners[:, :2])
        return _moved(boxes, np.concatenate([-growth, growth], axis=1))

    return _with_boxes(clip, scale)


def dropped(clip: BenchmarkClip, rng: np.random.Generator, share: float) -> VideoGrounding:
    """Each box missed with probability `share`; never the first and the last of an object."""
    missed = rng.random((len(clip.scene.objects), clip.scene.num_frames)) < share

    def drop(index: int, boxes: Sequence[Box | None]) -> list[Box | None]:
        seen = [frame for frame, box in enumerate(boxes) if box is not None]
        ends = (seen[0], seen[-1])
        return [box if frame in ends or not missed[index, frame] else None for frame, box in enumerate(boxes)]

    return _with_boxes(clip, drop)


def jittered(clip: BenchmarkClip, rng: np.random.Generator, deviation: float) -> VideoGrounding:
    """Every corner of every box moved by itself, normally distributed with `deviation` in units of the frame."""
    noise = rng.normal(0, deviation, size=(len(clip.scene.objects), clip.scene.num_frames, 4))
    return _with_boxes(clip, lambda index, boxes: _moved(boxes, noise[index]))


def swapped(clip: BenchmarkClip, rng: np.random.Generator) -> VideoGrounding | None:
    """The boxes of the first two changed objects taken for each other's."""
    if len(clip.changed) < 2:
        return None
    first, second = clip.changed[:2]
    objects = list(clip.grounding.objects)
    objects[first] = replace(clip.grounding.objects[first], boxes=clip.grounding.objects[second].boxes)
    objects[second] = replace(clip.grounding.objects[second], boxes=clip.grounding.objects[first].boxes)
    return VideoGrounding(objects)


def wrong_phrase(clip: BenchmarkClip, rng: np.random.Generator) -> VideoGrounding | None:
    """Every changed object taken for something else that is nowhere in the clip, before or after the edit."""
    recognised = [index for index in clip.changed if clip.scene.objects[index].name is not None]
    if not recognised:
        return None
    present = {item.name for scene in (clip.scene, clip.target) for item in scene.objects}
    others = rng.permutation([name for name in SPRITE_NAMES if name not in present])
    objects = list(clip.grounding.objects)
    for index, name in zip(recognised, others):
        objects[index] = replace(objects[index], source_phrase=phrase_for(str(name)))
    return VideoGrounding(objects)


def smoothed(grounding: VideoGrounding, num_frames: int) -> VideoGrounding:
    """The grounding with the boxes of every object tracked anew: gaps filled in, jitter evened out."""
    return VideoGrounding([_tracked(grounded, num_frames) for grounded in grounding.objects])


def _tracked(grounded: GroundedObject, num_frames: int) -> GroundedObject:
    boxes = grounded.frame_boxes(num_frames)
    detections = [{grounded.name: [] if box is None else [Detection(box, 1.0)]} for box in boxes]
    tracks = track_detections(detections)
    # What is in one frame only leaves no track.
    return replace(grounded, boxes=tracks[0].boxes) if tracks else grounded


def _then_smoothed(clip: BenchmarkClip, rng: np.random.Generator, disturb: Disturbance) -> VideoGrounding:
    disturbed = disturb(clip, rng)
    assert disturbed is not None
    return smoothed(disturbed, clip.scene.num_frames)


def masked(clip: BenchmarkClip, rng: np.random.Generator, disturb: Disturbance | None = None) -> VideoGrounding | None:
    """The exact masks of what is changed say what is open; the boxes, exact or disturbed, ground the phrases alone.

    What is new has no mask in the source and opens its box. `None` if nothing else is edited.
    """
    grounding = clip.grounding if disturb is None else disturb(clip, rng)
    assert grounding is not None
    objects = list(grounding.objects)
    seen = [index for index in clip.changed if clip.scene.objects[index].name is not None]
    for index in seen:
        objects[index] = replace(objects[index], masks=clip.source.full_masks[:, index])
    return VideoGrounding(objects) if seen else None


def confidences(clip: BenchmarkClip, grounding: VideoGrounding) -> np.ndarray:
    """(F, N) in [0, 1]: how far each box of a disturbed grounding is right, its intersection over union with the exact
    one; 1 where there is no box. More than a detector can know of its boxes."""
    num_frames = clip.scene.num_frames
    (exact, _), (found, there) = (one.frame_boxes(num_frames) for one in (clip.grounding, grounding))
    return np.where(there.numpy(), box_iou(exact.numpy(), found.numpy()), 1.0)


_JITTERED: Disturbance = partial(jittered, deviation=0.04)
_DROPPED: Disturbance = partial(dropped, share=0.3)
_SHIFTED: Disturbance = partial(shifted, distance=0.15)

# By name, as methods and reports call them.
DISTURBANCES: Mapping[str, Disturbance] = {
    "shifted-0.05": partial(shifted, distance=0.05),
    "shifted-0.15": _SHIFTED,
    "shifted-0.15-masks": partial(masked, disturb=_SHIFTED),
    "scaled-0.7": partial(scaled, factor=0.7),
    "scaled-1.4": partial(scaled, factor=1.4),
    "dropped": _DROPPED,
    "dropped-smoothed": partial(_then_smoothed, disturb=_DROPPED),
    "jittered": _JITTERED,
    "jittered-smoothed": partial(_then_smoothed, disturb=_JITTERED),
    "jittered-masks": partial(masked, disturb=_JITTERED),
    "masks": masked,
    "swapped": swapped,
    "wrong-phrase": wrong_phrase,
}
