"""What is in the clip, where, and what each thing shall become (Ground-A-Video, section 3.1).

Boxes are `(x0, y0, x1, y1)` everywhere, normalised to [0, 1] by the width and height of the frame, origin at the top
left. Masks are boolean at the resolution of the clip (or any other with its aspect ratio).
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from diffusers.utils import logging


logger = logging.get_logger(__name__)

Box = tuple[float, float, float, float]

# GLIGEN was trained with 30 grounding tokens a picture, the unused ones padded.
MAX_OBJECTS = 30

# Keeps `0.3 * 10 = 3.0000000000000004` from opening an eleventh cell.
_CORNER_TOLERANCE = 1e-6


@dataclass(frozen=True, eq=False)
class GroundedObject:
    """One object: its phrase before and after the edit, and its place in every frame.

    The place is given in exactly one of these ways: `boxes`, `box`, `keyframes`, or `masks` alone (each frame's box is
    then the extent of its mask). `masks` may also accompany boxes: the boxes then ground the phrase and the masks say
    what is opened or protected.

    Args:
        source_phrase (`str`, *optional*): What the place holds in the source clip. `None`: the object is new.
        target_phrase (`str`, *optional*): What it shall hold after the edit. Equal to `source_phrase`: the object is
            kept. `None`: it is removed.
        boxes (sequence of F boxes or `None`, *optional*): One box a frame, normalised xyxy in [0, 1]; `None` where the
            object is out of the frame.
        box (4 floats, *optional*): One normalised xyxy box for all frames.
        keyframes (mapping of frame index to box or `None`, *optional*): Boxes of some frames. Between two boxes the
            corners are interpolated linearly; before the first and after the last keyframe its box stands still; after
            a `None` the object is absent up to the next keyframe that has a box.
        masks (`np.ndarray` of shape (F, H, W), *optional*): Boolean masks, all `False` where the object is out of the
            frame.

    Raises:
        `ValueError`: If both phrases are missing or a phrase is empty, if not exactly one place is given, if a box is
            not 4 finite numbers with `0 <= x0 < x1 <= 1` and `0 <= y0 < y1 <= 1`, or if masks are not (F, H, W).
    """

    source_phrase: str | None
    target_phrase: str | None
    boxes: Sequence[Sequence[float] | None] | None = None
    box: Sequence[float] | None = None
    keyframes: Mapping[int, Sequence[float] | None] | None = None
    masks: np.ndarray | None = None

    def __post_init__(self) -> None:
        for name, phrase in (("source_phrase", self.source_phrase), ("target_phrase", self.target_phrase)):
            if phrase is not None and (not isinstance(phrase, str) or not phrase.strip()):
                raise ValueError(f"`{name}` has to be a non-empty string or None, but is {phrase!r}.")
        if self.source_phrase is None and self.target_phrase is None:
            raise ValueError("A grounded object needs a `source_phrase`, a `target_phrase` or both; both are None.")

        places = [name for name in ("boxes", "box", "keyframes") if getattr(self, name) is not None]
        if len(places) > 1 or (not places and self.masks is None):
            raise ValueError(
                f"The object {self.name!r} has to have exactly one of `boxes`, `box` and `keyframes`, or `masks` "
                f"alone, but has {places or 'none'}."
            )
        if self.box is not None:
            self._set("box", self._checked_box(self.box, "box"))
        if self.boxes is not None:
            if isinstance(self.boxes, (str, Mapping)) or not isinstance(self.boxes, Sequence | np.ndarray):
                raise ValueError(
                    f"`boxes` of {self.name!r} has to be a list with one box a frame, not {self.boxes!r}."
                )
            checked = (
                None if b is None else self._checked_box(b, f"boxes[{frame}]") for frame, b in enumerate(self.boxes)
            )
            self._set("boxes", tuple(checked))
        if self.keyframes is not None:
            self._set("keyframes", self._checked_keyframes())
        if self.masks is not None:
            masks = np.asarray(self.masks)
            if masks.ndim != 3 or masks.dtype != np.bool_ or 0 in masks.shape:
                raise ValueError(
                    f"`masks` of {self.name!r} has to be a boolean array of shape (frames, height, width), but is "
                    f"{masks.dtype} of shape {masks.shape}."
                )
            self._set("masks", masks)

    def _set(self, field: str, value: Any) -> None:
        object.__setattr__(self, field, value)

    def _checked_box(self, box: Sequence[float], where: str) -> Box:
        message = (
            f"`{where}` of {self.name!r} has to be 4 numbers 0 <= x0 < x1 <= 1, 0 <= y0 < y1 <= 1, but is {box!r}."
        )
        try:
            x0, y0, x1, y1 = (float(corner) for corner in box)
        except (TypeError, ValueError) as error:
            raise ValueError(message) from error
        if not (0 <= x0 < x1 <= 1 and 0 <= y0 < y1 <= 1):
            raise ValueError(message)
        return x0, y0, x1, y1

    def _checked_keyframes(self) -> dict[int, Box | None]:
        message = f"`keyframes` of {self.name!r} has to map frame indices >= 0 to boxes, but is {self.keyframes!r}."
        if not isinstance(self.keyframes, Mapping):
            raise ValueError(message)
        if any(isinstance(frame, bool) or not isinstance(frame, int) or frame < 0 for frame in self.keyframes):
            raise ValueError(message)
        if all(box is None for box in self.keyframes.values()):
            raise ValueError(message)
        return {
            frame: None if box is None else self._checked_box(box, f"keyframes[{frame}]")
            for frame, box in sorted(self.keyframes.items())
        }

    @property
    def name(self) -> str:
        """What messages call the object: the source phrase, or the target phrase of a new one."""
        return str(self.source_phrase if self.source_phrase is not None else self.target_phrase)

    @property
    def role(self) -> Literal["new", "kept", "changed", "removed"]:
        """What the edit does to the object."""
        if self.source_phrase is None:
            return "new"
        if self.target_phrase is None:
            return "removed"
        return "kept" if self.source_phrase.strip() == self.target_phrase.strip() else "changed"

    def frame_boxes(self, num_frames: int) -> list[Box | None]:
        """The object's normalised xyxy box in each of `num_frames` frames, `None` where it is out of the frame.

        Raises:
            `ValueError`: If the boxes, masks or keyframes were given for another number of frames.
        """
        if self.masks is not None and len(self.masks) != num_frames:
            raise ValueError(
                f"`grounding`: {self.name!r} has {len(self.masks)} masks, but the clip has {num_frames} frames."
            )
        if self.boxes is not None:
            if len(self.boxes) != num_frames:
                raise ValueError(
                    f"`grounding`: {self.name!r} has {len(self.boxes)} boxes, but the clip has {num_frames} frames."
                )
            return list(self.boxes)  # type: ignore[arg-type]
        if self.box is not None:
            return [self.box] * num_frames  # type: ignore[list-item]
        if self.keyframes is not None:
            last = max(self.keyframes)
            if last >= num_frames:
                raise ValueError(
                    f"`grounding`: {self.name!r} has a keyframe at frame {last}, but the clip has {num_frames} frames."
                )
            return [self._interpolated_box(frame) for frame in range(num_frames)]
        assert self.masks is not None
        return [_mask_extent(mask) for mask in self.masks]

    def _interpolated_box(self, frame: int) -> Box | None:
        assert self.keyframes is not None
        before = max((key for key in self.keyframes if key <= frame), default=None)
        after = min((key for key in self.keyframes if key >= frame), default=None)
        if before is None or after is None:
            return self.keyframes[before if after is None else after]  # type: ignore[index, return-value]
        start, end = self.keyframes[before], self.keyframes[after]
        if start is None or end is None or before == after:
            return start  # type: ignore[return-value]
        share = (frame - before) / (after - before)
        return tuple((1 - share) * a + share * b for a, b in zip(start, end, strict=True))  # type: ignore[return-value]

    def region(self, num_frames: int, height: int, width: int, truncate: bool = False) -> torch.Tensor:
        """The cells of a `height` x `width` grid over the frame that the object covers.

        A cell belongs to the region if the object's mask, or else its box, reaches into it: corners are rounded
        outward. `truncate=True` is the published rule: boxes only, corner indices cut off with `int()`, by which a box
        thinner than a cell can vanish.

        Returns:
            `torch.Tensor` of shape (num_frames, height, width), boolean.
        """
        frame_boxes = self.frame_boxes(num_frames)
        if self.masks is not None and not truncate:
            masks = torch.from_numpy(self.masks).float()
            return F.adaptive_max_pool2d(masks[:, None], (height, width))[:, 0].bool()
        return _region_of_boxes(frame_boxes, height, width, truncate)


def _region_of_boxes(boxes: Sequence[Box | None], height: int, width: int, truncate: bool = False) -> torch.Tensor:
    region = torch.zeros(len(boxes), height, width, dtype=torch.bool)
    for frame, box in enumerate(boxes):
        if box is None:
            continue
        x0, y0, x1, y1 = box
        if truncate:
            rows, columns = slice(int(y0 * height), int(y1 * height)), slice(int(x0 * width), int(x1 * width))
        else:
            rows, columns = _outward(y0, y1, height), _outward(x0, x1, width)
        region[frame, rows, columns] = True
    return region


def _outward(low: float, high: float, size: int) -> slice:
    # A box thinner than the tolerance still has its one cell.
    start = min(math.floor(low * size + _CORNER_TOLERANCE), size - 1)
    return slice(start, max(start + 1, math.ceil(high * size - _CORNER_TOLERANCE)))


def _mask_extent(mask: np.ndarray) -> Box | None:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not rows.size:
        return None
    height, width = mask.shape
    return (
        float(columns[0] / width),
        float(rows[0] / height),
        float((columns[-1] + 1) / width),
        float((rows[-1] + 1) / height),
    )


@dataclass(frozen=True, eq=False)
class VideoGrounding:
    """All grounded objects of one clip.

    Args:
        objects (sequence of [`GroundedObject`]): 1 to 30 of them.

    Raises:
        `ValueError`: If there is no object, or more than the 30 that GLIGEN's position net was trained with.

    Example:
    ```py
    >>> from diffusers_groundavideo import GroundedObject, VideoGrounding

    >>> grounding = VideoGrounding(
    ...     [
    ...         GroundedObject("rabbit", "squirrel", keyframes={0: (0.1, 0.2, 0.5, 0.9), 7: (0.3, 0.2, 0.7, 0.9)}),
    ...         GroundedObject("table", "table", box=(0, 0.8, 1, 1)),
    ...         GroundedObject(None, "aurora", box=(0, 0, 1, 0.4)),
    ...     ]
    ... )
    >>> [grounded.role for grounded in grounding.objects]
    ['changed', 'kept', 'new']
    ```
    """

    objects: Sequence[GroundedObject]

    def __post_init__(self) -> None:
        for grounded in self.objects:
            if not isinstance(grounded, GroundedObject):
                raise ValueError(f"`objects` has to be a list of GroundedObject, but holds {type(grounded).__name__}.")
        if not 1 <= len(self.objects) <= MAX_OBJECTS:
            raise ValueError(f"`objects` has to hold 1 to {MAX_OBJECTS} objects, but holds {len(self.objects)}.")
        object.__setattr__(self, "objects", tuple(self.objects))

    def phrases(self, side: Literal["source", "target"]) -> list[str | None]:
        """The N phrases of the objects before (`"source"`) or after (`"target"`) the edit."""
        return [o.source_phrase if side == "source" else o.target_phrase for o in self.objects]

    def frame_boxes(self, num_frames: int) -> tuple[torch.Tensor, torch.Tensor]:
        """All boxes of a clip of `num_frames` frames.

        Returns:
            `torch.Tensor` of shape (num_frames, N, 4), float32: normalised xyxy, zeros where an object is absent; and
            `torch.Tensor` of shape (num_frames, N), boolean: whether the object is in the frame.

        Raises:
            `ValueError`: If an object was grounded for another number of frames.
        """
        columns = [grounded.frame_boxes(num_frames) for grounded in self.objects]
        boxes = torch.tensor([[box or (0.0,) * 4 for box in column] for column in columns], dtype=torch.float32)
        present = torch.tensor([[box is not None for box in column] for column in columns])
        return boxes.transpose(0, 1).contiguous(), present.T.contiguous()

    def edit_mask(self, num_frames: int, height: int, width: int, open_all_boxes: bool = False) -> torch.Tensor:
        """The latent mask of the edit: 1 keeps the source, 0 is open to the edit.

        Open is what objects that are changed, new or removed cover (mask or else box), minus the masks of kept ones. A
        kept object that is known only by a box cannot be told from what it lies in: where it overlaps an opened
        region it stays open, and a warning says so.

        Args:
            num_frames (`int`): Frames of the clip.
            height, width (`int`): Size of the latents.
            open_all_boxes (`bool`): The published behaviour: the boxes of all objects are open, kept ones too, with
                their corners truncated instead of rounded outward.

        Returns:
            `torch.Tensor` of shape (num_frames, 1, height, width), float32, 0 or 1.
        """
        opened = torch.zeros(num_frames, height, width, dtype=torch.bool)
        kept = [o for o in self.objects if o.role == "kept" and not open_all_boxes]
        for grounded in self.objects:
            if grounded not in kept:
                opened |= grounded.region(num_frames, height, width, truncate=open_all_boxes)
        for grounded in kept:
            region = grounded.region(num_frames, height, width)
            if grounded.masks is not None:
                opened &= ~region
            elif (opened & region).any():
                logger.warning(
                    f"The kept object {grounded.name!r} is known only by its box, which overlaps the box of an object "
                    "that is edited: the overlap stays open to the edit. Give it `masks` to protect it."
                )
        return (~opened)[:, None].float()

    def inversion_mask(self, num_frames: int, height: int, width: int) -> torch.Tensor:
        """The latent mask of the inversion: all boxes are open, whatever becomes of the objects.

        It depends on nothing that an edit decides, so one inversion serves any edit of these objects.

        Returns:
            `torch.Tensor` of shape (num_frames, 1, height, width), float32: 1 keeps the source, 0 is open.
        """
        opened = torch.zeros(num_frames, height, width, dtype=torch.bool)
        for grounded in self.objects:
            opened |= _region_of_boxes(grounded.frame_boxes(num_frames), height, width)
        return (~opened)[:, None].float()

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "VideoGrounding":
        """Reads `{"objects": [{"source_phrase", "target_phrase", "boxes" | "box" | "keyframes", "masks"}, …]}`.

        Keyframe indices may be strings, as JSON writes them. `masks` is one uncompressed COCO run-length encoding a
        frame, `{"size": [height, width], "counts": […]}`, or `None`. Other keys of `data` are left to the caller (a
        file may hold prompts and sizes beside the objects); unknown keys of an object are refused.

        Raises:
            `ValueError`: If `data` or one of its objects is not of that form; the message names the object.
        """
        objects = data.get("objects") if isinstance(data, Mapping) else None
        if not isinstance(objects, Sequence) or isinstance(objects, str):
            raise ValueError(
                f"A grounding has to be a dict with a list under 'objects', but 'objects' is {objects!r}."
            )
        return cls([_object_from_dict(index, item) for index, item in enumerate(objects)])

    def to_dict(self) -> dict[str, Any]:
        """The form that [`~VideoGrounding.from_dict`] reads; holds only what JSON can hold."""
        return {"objects": [_object_to_dict(grounded) for grounded in self.objects]}

    @classmethod
    def from_json(cls, path: str | Path) -> "VideoGrounding":
        """Reads a JSON file of the form of [`~VideoGrounding.from_dict`].

        Raises:
            `ValueError`: If the file does not exist, is not JSON, or does not have that form.
        """
        try:
            data = json.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ValueError(f"`path`: {str(path)!r} could not be read as JSON: {error}") from error
        return cls.from_dict(data)

    def to_json(self, path: str | Path) -> None:
        """Writes the grounding to a JSON file."""
        Path(path).write_text(json.dumps(self.to_dict(), indent=1) + "\n", encoding="utf-8")


_OBJECT_KEYS = ("source_phrase", "target_phrase", "boxes", "box", "keyframes", "masks")


def _object_from_dict(index: int, item: Any) -> GroundedObject:
    if not isinstance(item, Mapping):
        raise ValueError(f"`objects[{index}]` has to be a dict, but is {item!r}.")
    unknown = sorted(set(item) - set(_OBJECT_KEYS))
    missing = [key for key in ("source_phrase", "target_phrase") if key not in item]
    if unknown or missing:
        raise ValueError(f"`objects[{index}]` has unknown keys {unknown} and lacks the keys {missing}.")
    fields = dict(item)
    try:
        if isinstance(fields.get("keyframes"), Mapping):
            fields["keyframes"] = {int(frame): box for frame, box in fields["keyframes"].items()}
        if fields.get("masks") is not None:
            fields["masks"] = _decode_masks(fields["masks"])
        return GroundedObject(**fields)
    except (TypeError, KeyError, ValueError) as error:
        raise ValueError(f"`objects[{index}]`: {error}") from error


def _object_to_dict(grounded: GroundedObject) -> dict[str, Any]:
    item: dict[str, Any] = {"source_phrase": grounded.source_phrase, "target_phrase": grounded.target_phrase}
    if grounded.boxes is not None:
        item["boxes"] = [None if box is None else list(box) for box in grounded.boxes]
    if grounded.box is not None:
        item["box"] = list(grounded.box)
    if grounded.keyframes is not None:
        item["keyframes"] = {str(f): None if box is None else list(box) for f, box in grounded.keyframes.items()}
    if grounded.masks is not None:
        item["masks"] = [_encode_mask(mask) for mask in grounded.masks]
    return item


def _encode_mask(mask: np.ndarray) -> dict[str, list[int]]:
    """Uncompressed COCO run-length encoding: column by column, lengths of runs of 0 and 1 in turn, 0 first."""
    pixels = np.concatenate([[False], mask.flatten(order="F"), [not mask[-1, -1]]])
    ends = np.flatnonzero(pixels[1:] != pixels[:-1])
    return {"size": list(mask.shape), "counts": np.diff(ends, prepend=0).tolist()}


def _decode_masks(encoded: Sequence[Mapping[str, Sequence[int]] | None]) -> np.ndarray:
    sizes = {tuple(rle["size"]) for rle in encoded if rle is not None}
    if len(sizes) != 1:
        raise ValueError(f"`masks` have to be of one size, but have the sizes {sorted(sizes)}.")
    ((height, width),) = sizes
    masks = np.zeros((len(encoded), height, width), dtype=bool)
    for mask, rle in zip(masks, encoded, strict=True):
        if rle is None:
            continue
        counts = np.asarray(rle["counts"], dtype=np.int64)
        if (counts < 0).any() or counts.sum() != height * width:
            raise ValueError(f"the run lengths of a mask of size {(height, width)} sum up to {counts.sum()}.")
        values = np.arange(len(counts)) % 2 == 1
        mask[:] = np.repeat(values, counts).reshape(width, height).T
    return masks


def position_net_inputs(
    boxes: torch.Tensor, present: torch.Tensor, phrase_embeddings: torch.Tensor
) -> dict[str, torch.Tensor]:
    """The arguments of GLIGEN's `unet.position_net`, padded with zeros to 30 objects (GLIGEN, section 3.1).

    Args:
        boxes (`torch.Tensor` of shape (frames, N, 4)): Normalised xyxy in [0, 1].
        present (`torch.Tensor` of shape (frames, N)): Whether the object has a grounding token in the frame.
        phrase_embeddings (`torch.Tensor` of shape (N, D) or (frames, N, D)): Pooled text embedding of each phrase.

    Returns:
        `dict` with `boxes` (frames, 30, 4), `masks` (frames, 30) and `positive_embeddings` (frames, 30, D), in the
        dtype and on the device of `phrase_embeddings`.
    """
    num_frames, num_objects = present.shape
    padding = MAX_OBJECTS - num_objects
    masks = present.to(phrase_embeddings)
    embeddings = phrase_embeddings.expand(num_frames, num_objects, -1) * masks[..., None]
    boxes = boxes.to(phrase_embeddings) * masks[..., None]
    return {
        "boxes": F.pad(boxes, (0, 0, 0, padding)),
        "masks": F.pad(masks, (0, padding)),
        "positive_embeddings": F.pad(embeddings, (0, 0, 0, padding)),
    }
