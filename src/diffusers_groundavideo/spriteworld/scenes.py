"""Scenes: what is in a clip, where it moves, how the camera moves; and the same scene with other things in it.

Coordinates: boxes are xyxy, x to the right and y down, in units of the frame, so the frame is (0, 0, 1, 1). Frame
coordinates move with the camera, world coordinates do not; the two agree for a camera at rest.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from .backgrounds import BACKGROUND_NAMES
from .sprites import SPRITE_NAMES, sprite_aspect


MOTIONS: tuple[str, ...] = ("linear", "accelerating", "crossing", "leaving", "entering", "zoom", "pan")

# Longer side of a sprite in units of the frame, by the number of objects in the scene: the more, the smaller.
SIZE_RANGES: dict[int, tuple[float, float]] = {1: (0.40, 0.56), 2: (0.36, 0.50), 3: (0.32, 0.42)}

# An object counts as absent from a frame when less than this share of its slot is inside the frame.
MIN_VISIBLE_SHARE = 0.2


@dataclass(frozen=True, eq=False)
class SceneObject:
    """A sprite on its way through the clip.

    Attributes:
        name: one of `SPRITE_NAMES`, or None for a place that is empty (an object to be added, or removed).
        slots: (F, 4) float64, the rectangle the sprite is fitted into in every frame: xyxy, frame coordinates in units
            of the frame, not clipped to the frame. The sprite keeps its aspect and stands on the lower edge.
        depth: nearness in (0, 1], 1 is nearest; of two overlapping objects the nearer one is seen.
    """

    name: str | None
    slots: np.ndarray
    depth: float


@dataclass(frozen=True, eq=False)
class Scene:
    """A clip before it is rendered.

    Attributes:
        objects: the objects, in the order of their phrases and boxes (not of their depth).
        background: one of `BACKGROUND_NAMES`.
        camera: (F, 4) float64, the part of the world each frame shows: xyxy, world coordinates.
        texture_seed: seed of the background texture.
        size: side of the square frames, pixels.
    """

    objects: tuple[SceneObject, ...]
    background: str
    camera: np.ndarray
    texture_seed: int
    size: int = 64

    @property
    def num_frames(self) -> int:
        return len(self.camera)

    def frame(self, index: int) -> "Scene":
        """The one-frame scene of frame `index`."""
        objects = tuple(replace(item, slots=item.slots[index : index + 1]) for item in self.objects)
        return replace(self, objects=objects, camera=self.camera[index : index + 1])

    def with_targets(self, names: Sequence[str | None], background: str | None = None) -> "Scene":
        """The perfect edit: the same slots, depths, camera and texture seed with other sprites in them.

        Args:
            names: the new name of every object, in order; None leaves its place empty.
            background: the new background; None keeps the old one, bit by bit.
        """
        if len(names) != len(self.objects):
            raise ValueError(f"The scene has {len(self.objects)} objects, but {len(names)} names were given.")
        objects = tuple(replace(item, name=name) for item, name in zip(self.objects, names))
        return replace(self, objects=objects, background=background or self.background)


def clipped_boxes(slots: np.ndarray) -> np.ndarray:
    """Slots clipped to the frame, as a detector would report them.

    Args:
        slots: (..., 4) xyxy in units of the frame.

    Returns:
        (..., 4) xyxy in [0, 1]; NaN where less than `MIN_VISIBLE_SHARE` of the slot is inside the frame.
    """
    boxes = np.clip(slots, 0.0, 1.0)
    inside = (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])
    whole = (slots[..., 2] - slots[..., 0]) * (slots[..., 3] - slots[..., 1])
    return np.where((inside >= MIN_VISIBLE_SHARE * whole)[..., None], boxes, np.nan)


def ground_depth(y: np.ndarray | float) -> np.ndarray:
    """Nearness of the ground at height `y` of the frame (0 top, 1 bottom): in [0.05, 0.75], near is large.

    The nearness of an object is that of the ground it stands on, plus a little for the nearer objects to stand out:
    a depth map can therefore be inferred from the picture.
    """
    return 0.05 + 0.7 * np.clip(y, 0.0, 1.0)


def _worst_overlap(slots: np.ndarray) -> float:
    """Largest share of the smaller of two slots that the other covers, over all frames: slots (N, F, 4)."""
    worst = 0.0
    for first in range(len(slots)):
        for second in range(first + 1, len(slots)):
            a, b = slots[first], slots[second]
            width = np.minimum(a[:, 2], b[:, 2]) - np.maximum(a[:, 0], b[:, 0])
            height = np.minimum(a[:, 3], b[:, 3]) - np.maximum(a[:, 1], b[:, 1])
            areas = np.minimum((a[:, 2] - a[:, 0]) * (a[:, 3] - a[:, 1]), (b[:, 2] - b[:, 0]) * (b[:, 3] - b[:, 1]))
            worst = max(worst, float((np.clip(width, 0, None) * np.clip(height, 0, None) / areas).max()))
    return worst


def _random_slots(
    rng: np.random.Generator, extents: np.ndarray, motion: str, progress: np.ndarray, size: int
) -> np.ndarray:
    """World slots of all objects, one draw: extents (N, 2) width and height, progress (F,) in [0, 1] -> (N, F, 4)."""
    half = extents / 2
    # Two pixels of air to the frame's edge, so that what is meant to be inside is inside.
    air = 2 / size
    start = rng.uniform(half + air, 1 - half - air)
    travel = rng.uniform(-0.3, 0.3, size=start.shape)
    end = np.clip(start + travel, half + air, 1 - half - air)
    growth = np.ones(len(extents))
    if motion in ("pan", "zoom"):
        end = start.copy()
    if motion == "zoom":
        growth[0] = rng.uniform(1.15, 1.35)
    if motion == "crossing":
        start[0, 0], end[0, 0] = half[0, 0] + air, 1 - half[0, 0] - air
        end[0, 1] = start[0, 1]
        if len(extents) > 1:
            start[1, 0], end[1, 0] = 1 - half[1, 0] - air, half[1, 0] + air
            # Paths at different heights: a difference in depth, and neither hides the other completely.
            start[0, 1], start[1, 1] = 0.56 * half[0, 1] / 0.25, 1 - 0.56 * half[1, 1] / 0.25
            start[:2, 1] = np.clip(start[:2, 1] + rng.uniform(-0.06, 0.06, size=2), half[:2, 1] + air, None)
            start[:2, 1] = np.minimum(start[:2, 1], 1 - half[:2, 1] - air)
            end[:2, 1] = start[:2, 1]
    if motion in ("leaving", "entering"):
        outside = -half[0, 0] if rng.random() < 0.5 else 1 + half[0, 0]
        end[0] = (outside, start[0, 1])
        if motion == "entering":
            start[0], end[0] = end[0].copy(), start[0].copy()
    centres = start[:, None] + progress[None, :, None] * (end - start)[:, None]
    scale = 1 + progress[None, :, None] * (growth - 1)[:, None, None]
    reach = half[:, None] * scale
    return np.concatenate([centres - reach, centres + reach], axis=-1)


def random_scene(
    seed: int,
    *,
    num_frames: int = 8,
    size: int = 64,
    num_objects: int | None = None,
    motion: str | None = None,
    background: str | None = None,
    names: Sequence[str] = SPRITE_NAMES,
) -> Scene:
    """A scene drawn at random; the same arguments give the same scene.

    Args:
        seed: everything not given below is drawn from it.
        num_frames: frames of the clip.
        size: side of the square frames, pixels.
        num_objects: 0 to 3; drawn from 1 to 3 if None.
        motion: one of `MOTIONS`; "crossing", "leaving", "entering" and "zoom" concern the first object (crossing the
            first two), "pan" the camera, the other objects move linearly.
        background: one of `BACKGROUND_NAMES`.
        names: the names to draw from, without repetition.
    """
    rng = np.random.default_rng(seed)
    if num_objects is None:
        num_objects = int(rng.integers(1, 4))
    if not 0 <= num_objects <= 3:
        raise ValueError(f"A scene has 0 to 3 objects, got num_objects={num_objects}.")
    motion = motion or MOTIONS[rng.integers(len(MOTIONS))]
    if motion not in MOTIONS:
        raise ValueError(f"There is no motion called {motion!r}; the motions are {', '.join(MOTIONS)}.")
    background = background or BACKGROUND_NAMES[rng.integers(len(BACKGROUND_NAMES))]
    progress = np.linspace(0.0, 1.0, num_frames) if num_frames > 1 else np.zeros(1)
    if motion == "accelerating":
        progress = progress**2

    window = np.array([0.0, 0.0, 1.0, 1.0])
    camera = np.repeat(window[None], num_frames, axis=0)
    if motion == "pan":
        # Objects are placed for the middle of the pan and stay mostly in view at both ends.
        shift = rng.uniform(-0.2, 0.2, size=2)
        camera = camera + (progress - 0.5)[:, None] * np.tile(shift, 2)[None]

    chosen = [names[index] for index in rng.permutation(len(names))[:num_objects]]
    slots = np.zeros((num_objects, num_frames, 4))
    if num_objects:
        aspects = np.array([sprite_aspect(name) for name in chosen])
        sides = rng.uniform(*SIZE_RANGES[num_objects], size=num_objects)
        extents = sides[:, None] * np.stack([np.minimum(aspects, 1), np.minimum(1 / aspects, 1)], axis=-1)
        allowed, best = (0.7 if motion == "crossing" else 0.2), np.inf
        for _ in range(30):
            candidate = _random_slots(rng, extents, motion, progress, size)
            overlap = _worst_overlap(candidate)
            if overlap < best:
                slots, best = candidate, overlap
            if best <= allowed:
                break
    origin, extent = camera[:, :2], camera[:, 2:] - camera[:, :2]
    slots = (slots - np.tile(origin, 2)[None]) / np.tile(extent, 2)[None]
    # Constant over the clip: an object does not swap places in depth with another while they overlap.
    objects = tuple(
        SceneObject(name, slot, depth=float(ground_depth(slot[:, 3].mean())) + 0.2)
        for name, slot in zip(chosen, slots)
    )
    return Scene(objects, background, camera, texture_seed=int(rng.integers(2**31)), size=size)


def random_targets(
    scene: Scene,
    seed: int,
    *,
    num_edits: int | None = None,
    background: str | None = None,
    names: Sequence[str] = SPRITE_NAMES,
) -> Scene:
    """The scene with `num_edits` of its objects (drawn from 1 to all, if None) replaced by names not in the scene."""
    rng = np.random.default_rng(seed)
    present = [item.name for item in scene.objects]
    unused = [name for name in names if name not in present]
    if num_edits is None:
        num_edits = int(rng.integers(1, len(present) + 1)) if present else 0
    edited = rng.permutation(len(present))[:num_edits]
    replacements = rng.permutation(len(unused))[:num_edits]
    targets = list(present)
    for index, replacement in zip(edited, replacements):
        targets[index] = unused[replacement]
    return scene.with_targets(targets, background)
