"""The clips of the benchmark: seeded sprite scenes with the edit of each and what the perfect edit looks like."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from ..grounding import VideoGrounding
from ..spriteworld import RenderedScene, Scene, edit_arguments, grounding_dict, random_scene, random_targets, render
from ..spriteworld.backgrounds import BACKGROUND_NAMES


# In the order in which clips take them: the first half alone already asks for several edits, an addition, a kept
# object, a new background and motion.
KINDS: tuple[str, ...] = (
    "two-edits",
    "kept-object",
    "addition",
    "crossing",
    "background-change",
    "three-edits",
    "one-edit",
    "background-swap",
    "camera-pan",
    "leaving",
    "fast",
    "slow",
)

# Share of the way across the frame that the object of a slow clip goes. That of a fast one goes there and back.
SLOW_SHARE = 0.15

# Share of a sprite, of what the frame's border and nearer sprites leave of it, from which on a judge is asked for it.
MIN_SEEN_SHARE = 0.5


@dataclass(frozen=True, eq=False)
class BenchmarkClip:
    """One clip and its edit.

    Attributes:
        seed, index: Of the suite, and the clip's place in it; with the number of frames they determine all the rest.
        kind: One of `KINDS`.
        scene, target: Before and after the perfect edit, with the same slots.
        source, perfect: Both, rendered.
        grounding: The edit, with exact boxes. Kept objects have exact masks too, so that they can be protected.
        source_prompt, prompt: What the clip shows before and after.
    """

    seed: int
    index: int
    kind: str
    scene: Scene
    target: Scene
    source: RenderedScene
    perfect: RenderedScene
    grounding: VideoGrounding
    source_prompt: str
    prompt: str

    @property
    def name(self) -> str:
        return clip_name(self.index, self.scene.num_frames)

    @property
    def changed(self) -> list[int]:
        """Indices of the objects that are changed or new."""
        pairs = zip(self.scene.objects, self.target.objects)
        return [index for index, (before, after) in enumerate(pairs) if before.name != after.name]

    @property
    def kept(self) -> list[int]:
        """Indices of the objects that stay what they are."""
        return [index for index in range(len(self.scene.objects)) if index not in self.changed]

    @property
    def target_names(self) -> list[str]:
        """What each object is after the edit."""
        return [str(item.name) for item in self.target.objects]

    @property
    def changes_background(self) -> bool:
        return self.scene.background != self.target.background

    @cached_property
    def arguments(self) -> dict[str, Any]:
        """The edit as arguments of the pipeline, with exact depth and flow."""
        return {**edit_arguments(self.scene, self.target), "grounding": self.grounding}

    @cached_property
    def judged_boxes(self) -> np.ndarray:
        """(F, N, 4) float32: the boxes after the edit, NaN where too little of the object is seen to be told apart."""
        slots = np.stack([item.slots for item in self.target.objects], axis=1)
        inside = np.clip(slots, 0, 1)
        areas = [np.prod(boxes[..., 2:] - boxes[..., :2], axis=-1) for boxes in (inside, slots)]
        visible, full = (masks.sum(axis=(2, 3)) for masks in (self.perfect.visible_masks, self.perfect.full_masks))
        seen = areas[0] / areas[1] * visible / np.maximum(full, 1)
        return np.where((seen >= MIN_SEEN_SHARE)[..., None], self.perfect.boxes, np.nan).astype(np.float32)

    @cached_property
    def background_region(self) -> np.ndarray:
        """(F, H, W) bool: what the perfect edit leaves as it is outside of every sprite, of the source and the target.

        Pixels at a sprite's soft edge that the edit changes are not in it. Empty if the background changes.
        """
        sprites = self.source.full_masks.any(axis=1) | self.perfect.full_masks.any(axis=1)
        return ~sprites & (self.source.frames == self.perfect.frames).all(axis=-1)

    def opened_region(self, cell: int) -> np.ndarray:
        """(F, H, W) bool: the pixels that the edit of the exact grounding may change.

        Args:
            cell: Side of a latent cell, pixels.
        """
        side = self.scene.size // cell
        mask = self.grounding.edit_mask(self.scene.num_frames, side, side)[:, 0].numpy() == 0
        return mask.repeat(cell, axis=1).repeat(cell, axis=2)


def clip_kind(index: int) -> str:
    """The kind of the clip at `index` of any suite."""
    return KINDS[index % len(KINDS)]


def clip_name(index: int, num_frames: int) -> str:
    """What the clip is called in files: `"003-crossing-8f"`."""
    return f"{index:03d}-{clip_kind(index)}-{num_frames}f"


def benchmark_clip(seed: int, index: int, num_frames: int = 8, size: int = 64) -> BenchmarkClip:
    """The clip at `index` of the suite `seed`: its kind is [`clip_kind`] of the index.

    Args:
        seed: Of the suite; suites of different seeds share no clip.
        index: From 0.
        num_frames: Of the clip, at least 2. The way that objects go does not depend on it, so longer clips are slower.
        size: Side of the square frames, pixels.

    Raises:
        `ValueError`: If the seed or index is negative, or the clip has fewer than 2 frames.
    """
    if seed < 0 or index < 0:
        raise ValueError(f"`seed` and `index` have to be at least 0, but are {seed} and {index}.")
    if num_frames < 2:
        raise ValueError(f"`num_frames` has to be at least 2, but is {num_frames}.")
    kind = clip_kind(index)
    # Through all backgrounds, and each kind through all of them in turn.
    background = BACKGROUND_NAMES[(seed + index + index // len(KINDS)) % len(BACKGROUND_NAMES)]
    rng = np.random.default_rng([seed, index])
    scene_seed, target_seed = (int(drawn) for drawn in rng.integers(2**31, size=2))

    def draw(num_objects: int, motion: str = "linear") -> Scene:
        return random_scene(
            scene_seed,
            num_frames=num_frames,
            size=size,
            num_objects=num_objects,
            motion=motion,
            background=background,
        )

    def edit(scene: Scene, num_edits: int, new_background: bool = False) -> Scene:
        others = [name for name in BACKGROUND_NAMES if name != scene.background]
        other = str(rng.choice(others)) if new_background else None
        return random_targets(scene, target_seed, num_edits=num_edits, background=other)

    if kind == "addition":
        target = draw(2)
        # The place of what is added is empty before; the other object is kept.
        scene = target.with_targets([None, target.objects[1].name])
    else:
        match kind:
            case "one-edit":
                scene, num_edits = draw(1), 1
            case "two-edits":
                scene, num_edits = draw(2), 2
            case "three-edits":
                scene, num_edits = draw(3), 3
            case "kept-object":
                scene, num_edits = draw(3), 2
            case "background-change":
                scene, num_edits = draw(2), 0
            case "background-swap":
                scene, num_edits = draw(2), 2
            case "slow":
                scene, num_edits = _retimed(draw(1, "crossing"), SLOW_SHARE * np.linspace(0, 1, num_frames)), 1
            case "fast":
                there_and_back = 1 - np.abs(np.linspace(-1, 1, num_frames))
                scene, num_edits = _retimed(draw(1, "crossing"), there_and_back), 1
            case "crossing":
                scene, num_edits = draw(2, "crossing"), 2
            case "leaving":
                scene, num_edits = draw(2, "leaving"), 2
            case _:
                scene, num_edits = draw(2, "pan"), 2
        target = edit(scene, num_edits, new_background=kind.startswith("background"))

    source = render(scene)
    described = grounding_dict(scene, target)
    grounding = VideoGrounding.from_dict(described)
    objects = [
        replace(grounded, masks=source.visible_masks[:, index]) if grounded.role == "kept" else grounded
        for index, grounded in enumerate(grounding.objects)
    ]
    return BenchmarkClip(
        seed=seed,
        index=index,
        kind=kind,
        scene=scene,
        target=target,
        source=source,
        perfect=render(target),
        grounding=VideoGrounding(objects),
        source_prompt=described["source_prompt"],
        prompt=described["target_prompt"],
    )


def clip_indices(count: int, kinds: Sequence[str] | None = None) -> list[int]:
    """The first `count` indices of a suite whose clips are of one of `kinds` (by default of any).

    Raises:
        `ValueError`: If the count is below 1 or there is no such kind.
    """
    if count < 1:
        raise ValueError(f"The number of clips has to be at least 1, but is {count}.")
    unknown = [kind for kind in kinds or () if kind not in KINDS]
    if unknown:
        raise ValueError(f"There is no kind of clip called {', '.join(unknown)}; the kinds are {', '.join(KINDS)}.")
    wanted = [place for place, kind in enumerate(KINDS) if not kinds or kind in kinds]
    return [number // len(wanted) * len(KINDS) + wanted[number % len(wanted)] for number in range(count)]


def _retimed(scene: Scene, progress: np.ndarray) -> Scene:
    """A scene of linear motion whose objects are `progress`, (F,) in [0, 1], of their way in each frame."""
    share = progress[:, None]
    objects = tuple(
        replace(item, slots=(1 - share) * item.slots[0] + share * item.slots[-1]) for item in scene.objects
    )
    return replace(scene, objects=objects)
