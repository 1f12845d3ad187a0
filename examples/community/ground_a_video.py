# SPDX-License-Identifier: Apache-2.0
"""Ground-A-Video (arXiv 2310.01107) as one file: several edits of one clip at once, without training.

Put together from the modules of diffusers-groundavideo 0.1.0.dev0: change those, not this file. It imports diffusers,
transformers and torch, and of what diffusers itself depends on numpy, Pillow and safetensors.
"""

import copy
import hashlib
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import PIL.Image
import torch
import torch.nn.functional as F
from diffusers import (
    AutoencoderKL,
    ControlNetModel,
    DDIMScheduler,
    DiffusionPipeline,
    ModelMixin,
    MultiControlNetModel,
    UNet2DConditionModel,
)
from diffusers.loaders import StableDiffusionLoraLoaderMixin, TextualInversionLoaderMixin
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import ResnetBlock2D
from diffusers.pipelines.pipeline_utils import StableDiffusionMixin
from diffusers.utils import BaseOutput, logging
from diffusers.utils.torch_utils import randn_tensor
from diffusers.video_processor import VideoProcessor
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import nn
from transformers import CLIPTextModel, CLIPTokenizer


# ---------------------------------------------------------------------------------------------------------------------
# From what a user passes to tensors, with errors that say what came and what was expected.
# ---------------------------------------------------------------------------------------------------------------------


def clips_to_tensor(clips: Any, argument: str, processor: VideoProcessor) -> torch.Tensor:
    """Frames in any of diffusers' forms as a float32 tensor on the CPU.

    Args:
        clips: A list of PIL images, an array (F, H, W, 3) or a tensor (F, 3, H, W): one clip; a list of these, an
            array (clips, F, H, W, 3) or a tensor (clips, F, 3, H, W): several. Arrays and tensors are uint8 or in
            [0, 1] (tensors may be in [-1, 1] where `processor` normalises).
        argument (`str`): How messages call it.
        processor ([`VideoProcessor`]): Converts, and normalises to [-1, 1] if it is set up so.

    Returns:
        `torch.Tensor` of shape (clips, F, 3, H, W).

    Raises:
        `ValueError`: If it is empty, of another form, of several frame sizes or lengths, or out of range.
    """
    batch = _as_batch(clips, argument)
    sizes = sorted({size for clip in batch for size in _frame_sizes(clip, argument)})
    lengths = sorted({len(clip) for clip in batch})
    if len(sizes) != 1 or len(lengths) != 1:
        raise ValueError(
            f"`{argument}` has to hold frames of one size, and clips of one length, but has frames of (height, width) "
            f"{sizes} and clips of {lengths} frames."
        )
    if min(sizes[0]) == 0 or lengths[0] == 0:
        raise ValueError(f"`{argument}` is empty: {lengths[0]} frames of (height, width) {sizes[0]}.")
    batch = [_in_unit_range(clip, argument, processor) for clip in batch]
    return torch.cat([processor.preprocess_video(clip) for clip in batch]).transpose(1, 2).float().cpu()


def _as_batch(clips: Any, argument: str) -> list[Any]:
    """A list of clips, each a list of PIL images or a 4-dimensional array or tensor."""
    if isinstance(clips, (np.ndarray, torch.Tensor)):
        if clips.ndim not in (4, 5):
            raise ValueError(f"`{argument}` has to have 4 or 5 dimensions, but is of shape {tuple(clips.shape)}.")
        return [clips] if clips.ndim == 4 else list(clips)
    if not isinstance(clips, (list, tuple)) or not len(clips):
        raise ValueError(f"`{argument}` has to be frames or clips, at least one, but is {_described(clips)}.")
    first = clips[0]
    if isinstance(first, PIL.Image.Image):
        return [_all_of(clips, PIL.Image.Image, argument)]
    if isinstance(first, (np.ndarray, torch.Tensor)):
        _all_of(clips, type(first), argument)
        if {item.ndim for item in clips} == {3}:
            shapes = {tuple(item.shape) for item in clips}
            if len(shapes) != 1:
                raise ValueError(f"`{argument}` has to hold frames of one size, but has frames of shape {shapes}.")
            return [np.stack(clips) if isinstance(first, np.ndarray) else torch.stack(list(clips))]
        if {item.ndim for item in clips} == {4}:
            return list(clips)
        raise ValueError(f"`{argument}` has items of shape {[tuple(item.shape) for item in clips]}.")
    if isinstance(first, (list, tuple)):
        return [clip for item in clips for clip in _as_batch(item, argument)]
    raise ValueError(f"`{argument}` has to hold PIL images, arrays or tensors, but holds {_described(first)}.")


def _all_of(items: Sequence[Any], kind: type, argument: str) -> list[Any]:
    for index, item in enumerate(items):
        if not isinstance(item, kind):
            raise ValueError(
                f"`{argument}[{index}]` is {_described(item)}, but `{argument}[0]` is of {kind.__name__}."
            )
    return list(items)


def _frame_sizes(clip: Any, argument: str) -> set[tuple[int, int]]:
    """The (height, width) that occur in a clip."""
    if isinstance(clip, list):
        return {(frame.height, frame.width) for frame in clip}
    channels, height, width = clip.shape[1:] if isinstance(clip, torch.Tensor) else np.roll(clip.shape[1:], 1)
    if channels != 3:
        raise ValueError(
            f"`{argument}` has to have 3 channels (RGB), as (frames, 3, height, width) in a tensor or (frames, "
            f"height, width, 3) in an array, but is of shape {tuple(clip.shape)}."
        )
    return {(int(height), int(width))}


def _in_unit_range(clip: Any, argument: str, processor: VideoProcessor) -> Any:
    if isinstance(clip, list):
        return clip
    if clip.dtype in (np.uint8, torch.uint8):
        return clip.astype(np.float32) / 255 if isinstance(clip, np.ndarray) else clip.float() / 255
    floating = clip.is_floating_point() if isinstance(clip, torch.Tensor) else np.issubdtype(clip.dtype, np.floating)
    if not floating:
        raise ValueError(f"`{argument}` has to be uint8 or of floating point, but is of {clip.dtype}.")
    signed = isinstance(clip, torch.Tensor) and processor.config.do_normalize
    low, high = float(clip.min()), float(clip.max())
    # Written so that NaN, which compares as false with everything, is refused.
    if not ((-1 if signed else 0) <= low and high <= 1):
        raise ValueError(
            f"`{argument}` has to be uint8 or in [{-1 if signed else 0}, 1], but has values from {low} to {high}."
        )
    return clip


def _described(value: Any) -> str:
    return f"an empty {type(value).__name__}" if isinstance(value, Sequence) and not value else type(value).__name__


def flow_to_tensors(flow: Any, argument: str, num_clips: int, num_frames: int) -> list[torch.Tensor]:
    """Optical flow as one float32 tensor (F - 1, 2, H, W) a clip.

    Args:
        flow: An array or tensor (F - 1, 2, H, W), one with clips in front, or a list of one a clip.
        argument (`str`): How messages call it.
        num_clips, num_frames (`int`): What it has to fit.

    Raises:
        `ValueError`: If it is of another shape, does not fit, or is not finite.
    """
    if isinstance(flow, (np.ndarray, torch.Tensor)):
        flow = list(flow) if flow.ndim == 5 else [flow]
    if not isinstance(flow, (list, tuple)) or not all(isinstance(one, (np.ndarray, torch.Tensor)) for one in flow):
        raise ValueError(f"`{argument}` has to be a tensor or a list of one a clip, but is {_described(flow)}.")
    tensors = [torch.as_tensor(one).float() for one in flow]
    shapes = [tuple(one.shape) for one in tensors]
    if len(tensors) != num_clips or any(len(s) != 4 or s[:2] != (num_frames - 1, 2) or 0 in s[2:] for s in shapes):
        raise ValueError(
            f"`{argument}` has to be of shape ({num_frames - 1}, 2, height, width) for each of {num_clips} clip(s) of "
            f"{num_frames} frames, but is {shapes}."
        )
    if not all(one.isfinite().all() for one in tensors):
        raise ValueError(f"`{argument}` has to be finite, but holds NaN or infinity.")
    return tensors


def check_number(
    value: Any, argument: str, low: float, high: float = float("inf"), integer: bool = False, strict: bool = False
) -> None:
    """Raises a `ValueError` unless `low <= value <= high` (`low < value` if `strict`), and it is an `int` if asked."""
    kind = int if integer else (int, float)
    is_number = isinstance(value, kind) and not isinstance(value, bool) and math.isfinite(value)
    if not is_number or not low <= value <= high or (strict and value == low):
        what = "an integer" if integer else "a finite number"
        bound = f"{'above' if strict else 'at least'} {low}" + (f" and at most {high}" if high < float("inf") else "")
        raise ValueError(f"`{argument}` has to be {what} {bound}, but is {value!r}.")


def check_texts(value: Any, argument: str, num_clips: int) -> None:
    """Raises a `ValueError` unless `value` is a string for a single clip or a list of one string a clip."""
    texts = value if isinstance(value, list) else [value]
    if len(texts) != num_clips or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"`{argument}` has to be one string for each of {num_clips} clip(s), but is {value!r}.")


def check_finite_tensor(value: Any, argument: str, shape: tuple[int | None, ...]) -> None:
    """Raises a `ValueError` unless `value` is a finite tensor of `shape`, where `None` stands for any size."""
    fits = isinstance(value, torch.Tensor) and len(value.shape) == len(shape)
    if not fits or any(want not in (None, got) for want, got in zip(shape, value.shape, strict=True)):
        got = tuple(value.shape) if isinstance(value, torch.Tensor) else _described(value)
        raise ValueError(f"`{argument}` has to be a tensor of shape {shape} (None: any), but is {got}.")
    if not value.isfinite().all():
        raise ValueError(f"`{argument}` has to be finite, but holds NaN or infinity.")


# ---------------------------------------------------------------------------------------------------------------------
# What is in the clip, where, and what each thing shall become (Ground-A-Video, section 3.1).
#
# Boxes are `(x0, y0, x1, y1)` everywhere, normalised to [0, 1] by the width and height of the frame, origin at the top
# left. Masks are boolean at the resolution of the clip (or any other with its aspect ratio).
# ---------------------------------------------------------------------------------------------------------------------


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
    >>> from ground_a_video import GroundedObject, VideoGrounding

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


# ---------------------------------------------------------------------------------------------------------------------
# How the frames of a clip see each other while they are edited (Ground-A-Video, sections 3.2 and 3.3).
#
# The UNet and the ControlNet get all frames of a clip as one batch, frame-major: `(clips * frames, ...)`. The
# processors here fold the frames of a clip into the length of the query, so keys and values are computed once for the
# clip and shared by its frames, and clips never meet. [`inflated`] installs everything for the time of an edit.
# ---------------------------------------------------------------------------------------------------------------------


FrameAttention = Literal["cross-frame", "first-frame", "sparse-causal", "per-frame"]
GatedAttention = Literal["own-grounding", FrameAttention]


@dataclass(frozen=True)
class Inflation:
    """What the frames of a clip share during the edit.

    The defaults are Ground-A-Video with three changes, each for the same reason: what an image model was trained with
    is one frame. [`Inflation.published`] is without them, the rest is for comparison (benchmarks/RESULTS.md).

    Args:
        self_attention (`str`): Whose latents a frame's queries attend to in `attn1`: those of all frames
            (`"cross-frame"`, Ground-A-Video's spatial-temporal attention), of the first frame (`"first-frame"`,
            Text2Video-Zero), of the first and the previous frame (`"sparse-causal"`, Tune-A-Video), or its own
            (`"per-frame"`).
        gated_attention (`str`): The same for GLIGEN's gated attention, whose keys also hold the grounding tokens; or
            the latents of all frames and the tokens of a frame's own (`"own-grounding"`). Ground-A-Video's cross-frame
            gated attention is `"cross-frame"`, in which a phrase leaks to where its object is in other frames.
        modulated_cross_attention (`bool`): Whether in the unconditional branch a frame's queries attend to the null
            embeddings of all frames, not to its own alone. No difference without null-text optimisation.
        group_norm (`bool`): Whether the group norms of the ResNet blocks and of the UNet's output take their
            statistics over all frames of a clip, as in the published model, or each frame is normalised by itself.
        entropy_scaling (`bool`): Whether attention to several frames is sharpened, so that its entropy stays the same
            share of the largest possible: logits are multiplied by `sqrt(log(keys) / log(tokens of a frame))` (Jin et
            al., "Training-free Diffusion Model Adaptation for Variable-Sized Text-to-Image Synthesis", NeurIPS 2023,
            arXiv:2306.08645, there for larger pictures). The published model and its peers attend without.

    Raises:
        `ValueError`: If an attention scheme is unknown.
    """

    self_attention: FrameAttention = "cross-frame"
    gated_attention: GatedAttention = "own-grounding"
    modulated_cross_attention: bool = True
    group_norm: bool = False
    entropy_scaling: bool = True

    @classmethod
    def published(cls) -> "Inflation":
        """Ground-A-Video as published."""
        return cls(gated_attention="cross-frame", group_norm=True, entropy_scaling=False)

    def __post_init__(self) -> None:
        for name, schemes in (("self_attention", FrameAttention), ("gated_attention", GatedAttention)):
            scheme = getattr(self, name)
            if scheme not in get_args(schemes):
                raise ValueError(f"`{name}` has to be one of {get_args(schemes)}, but is {scheme!r}.")


class CrossFrameAttnProcessor:
    """Self-attention in which the queries of every frame attend to the keys and values of all frames of the clip.

    Serves `attn1` (spatial-temporal self-attention) and `fuser.attn` (cross-frame gated attention, whose input
    `[latents ; grounding tokens]` makes the grounding tokens of all frames part of the keys).

    Args:
        num_frames (`int`): Frames of a clip.
        entropy_scaling (`bool`): As in [`Inflation`].
    """

    def __init__(self, num_frames: int, entropy_scaling: bool = False) -> None:
        self.num_frames = num_frames
        self.entropy_scaling = entropy_scaling

    def __call__(
        self,
        attn: Attention,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Attends within each clip.

        Args:
            attn (`Attention`): The module that calls.
            hidden_states (`torch.Tensor` of shape (clips * frames, tokens, channels)): Frame-major.
            encoder_hidden_states, attention_mask: Part of the signature that `Attention` calls; always `None` here.

        Returns:
            `torch.Tensor` of the shape of `hidden_states`.
        """
        clips = hidden_states.unflatten(0, (-1, self.num_frames))
        query = attn.to_q(clips)
        attended = self.attend(query, *self.key_value(attn, clips), attn.heads)
        return _project_out(attn, attended.flatten(0, 1))

    def key_value(self, attn: Attention, clips: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of the frames that others attend to: (clips, frames, tokens, channels) each."""
        return attn.to_k(clips), attn.to_v(clips)

    def attend(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, heads: int) -> torch.Tensor:
        """Attention of `query` (clips, frames, tokens, channels) over `key` and `value` of the same form."""
        key, value = key.flatten(1, 2), value.flatten(1, 2)
        attended = _attention(query.flatten(1, 2), key, value, heads, self.sharpness(query, key))
        return attended.unflatten(1, query.shape[1:3])

    def sharpness(self, query: torch.Tensor, key: torch.Tensor) -> float:
        """The factor on the logits of `query` (..., tokens of a frame, channels) and `key` (..., keys, channels)."""
        if not self.entropy_scaling:
            return 1.0
        # The logarithm of a single token would be 0.
        return math.sqrt(math.log(max(key.shape[-2], 2)) / math.log(max(query.shape[-2], 2)))


class FirstFrameAttnProcessor(CrossFrameAttnProcessor):
    """Every frame attends to the first frame alone (Text2Video-Zero, section 3.3.3)."""

    def key_value(self, attn: Attention, clips: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return attn.to_k(clips[:, :1]), attn.to_v(clips[:, :1])


class SparseCausalAttnProcessor(CrossFrameAttnProcessor):
    """Every frame attends to the first and to the previous frame (Tune-A-Video, section 4.1)."""

    def attend(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, heads: int) -> torch.Tensor:
        frames = []
        for frame in range(self.num_frames):
            # Frames 0 and 1 have only the first one to look back at: naming it twice would change nothing.
            seen = [0] if frame <= 1 else [0, frame - 1]
            keys, values = key[:, seen].flatten(1, 2), value[:, seen].flatten(1, 2)
            frames.append(_attention(query[:, frame], keys, values, heads, self.sharpness(query, keys)))
        return torch.stack(frames, dim=1)


class PerFrameAttnProcessor(CrossFrameAttnProcessor):
    """Every frame attends to itself alone, as in the image model."""

    def attend(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, heads: int) -> torch.Tensor:
        attended = _attention(query.flatten(0, 1), key.flatten(0, 1), value.flatten(0, 1), heads)
        return attended.unflatten(0, query.shape[:2])


class OwnGroundingAttnProcessor(CrossFrameAttnProcessor):
    """Gated attention in which a frame attends to the latents of all frames, but to its own grounding tokens alone.

    Boxes are places in their own frame. Where things move, the tokens of other frames put a phrase where it was or
    will be; where two cross, into each other's place. A frame's own tokens stand for those of all frames, so that
    latents and tokens weigh against each other as they do within a frame.

    Args:
        num_frames (`int`): Frames of a clip.
        entropy_scaling (`bool`): As in [`Inflation`].
        num_grounding_tokens (`int`): Tokens at the end of the input that are no latents.
    """

    def __init__(
        self, num_frames: int, entropy_scaling: bool = False, num_grounding_tokens: int = MAX_OBJECTS
    ) -> None:
        super().__init__(num_frames, entropy_scaling)
        self.num_grounding_tokens = num_grounding_tokens

    def count_tokens(self, fuser: nn.Module, args: tuple[torch.Tensor, torch.Tensor]) -> None:
        """A hook on GLIGEN's layer, which knows the tokens apart from the latents."""
        self.num_grounding_tokens = args[1].shape[1]

    def attend(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, heads: int) -> torch.Tensor:
        def seen_by(frame: int, states: torch.Tensor) -> torch.Tensor:
            latents, tokens = states.tensor_split([-self.num_grounding_tokens], dim=2)
            return torch.cat([latents.flatten(1, 2), tokens[:, frame].repeat(1, self.num_frames, 1)], dim=1)

        frames = []
        # Frame by frame, so that keys and values take the memory of one clip.
        for frame in range(self.num_frames):
            keys, values = seen_by(frame, key), seen_by(frame, value)
            frames.append(_attention(query[:, frame], keys, values, heads, self.sharpness(query, keys)))
        return torch.stack(frames, dim=1)


_FRAME_ATTENTION: dict[str, type[CrossFrameAttnProcessor]] = {
    "own-grounding": OwnGroundingAttnProcessor,
    "cross-frame": CrossFrameAttnProcessor,
    "first-frame": FirstFrameAttnProcessor,
    "sparse-causal": SparseCausalAttnProcessor,
    "per-frame": PerFrameAttnProcessor,
}


class ModulatedCrossAttnProcessor:
    """Cross-attention in which all frames that share a text attend to it together.

    The branch is told by the text that is passed, never by a state of the module. In the conditional branch it is the
    prompt, once a clip. In the unconditional branch it is the null embeddings of all frames of the clip in a row
    (see [`modulated_text`]), which is modulated cross-attention (section 3.3). A text for every frame of its own gives
    ordinary cross-attention.
    """

    def __call__(
        self,
        attn: Attention,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Attends to the text.

        Args:
            attn (`Attention`): The module that calls.
            hidden_states (`torch.Tensor` of shape (clips * frames, tokens, channels)): Frame-major.
            encoder_hidden_states (`torch.Tensor` of shape (texts, text tokens, text channels)): One text a clip or one
                a frame, in the order of `hidden_states`.
            attention_mask: Part of the signature that `Attention` calls; always `None` here.

        Returns:
            `torch.Tensor` of the shape of `hidden_states`.
        """
        texts, (batch, tokens, _) = encoder_hidden_states.shape[0], hidden_states.shape
        query = attn.to_q(hidden_states).reshape(texts, batch // texts * tokens, -1)
        key, value = attn.to_k(encoder_hidden_states), attn.to_v(encoder_hidden_states)
        attended = _attention(query, key, value, attn.heads)
        return _project_out(attn, attended.reshape(batch, tokens, -1))


def modulated_text(null_embeddings: torch.Tensor) -> torch.Tensor:
    """The text of the unconditional branch: the null embeddings of all frames of a clip, one after the other.

    Args:
        null_embeddings (`torch.Tensor` of shape (clips, frames, tokens, channels)): The null embedding of each frame.

    Returns:
        `torch.Tensor` of shape (clips, frames * tokens, channels).
    """
    return null_embeddings.flatten(1, 2)


def _attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, heads: int, sharpness: float = 1.0
) -> torch.Tensor:
    """Multi-head attention over (batch, tokens, channels), the logits multiplied by `sharpness`."""
    query, key, value = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (query, key, value))
    scale = sharpness / math.sqrt(query.shape[-1])
    return F.scaled_dot_product_attention(query, key, value, scale=scale).transpose(1, 2).flatten(2)


def _project_out(attn: Attention, hidden_states: torch.Tensor) -> torch.Tensor:
    for layer in attn.to_out:
        hidden_states = layer(hidden_states)
    return hidden_states / attn.rescale_output_factor


@contextmanager
def inflated(
    unet: UNet2DConditionModel,
    controlnets: list[ControlNetModel],
    num_frames: int,
    inflation: Inflation | None = None,
) -> Iterator[None]:
    """Makes `unet` and `controlnets` treat a clip as one sample, and undoes it on leaving, also by an exception.

    Args:
        unet (`UNet2DConditionModel`): Its `attn1`, `attn2` and, if gated, `fuser.attn` get the processors above.
        controlnets (`list[ControlNetModel]`): Their `attn1` and `attn2` get them too.
        num_frames (`int`): Frames of a clip. The models' batches have to be `(clips * num_frames, ...)`.
        inflation ([`Inflation`], *optional*): What is shared between the frames; Ground-A-Video by default.
    """
    inflation = Inflation() if inflation is None else inflation
    self_attention = _FRAME_ATTENTION[inflation.self_attention](num_frames, inflation.entropy_scaling)
    gated_attention = _FRAME_ATTENTION[inflation.gated_attention](num_frames, inflation.entropy_scaling)
    cross_attention = ModulatedCrossAttnProcessor()
    found: list[tuple[Attention, object]] = []
    hooks: list[torch.utils.hooks.RemovableHandle] = []

    def install(attn: Attention, processor: object) -> None:
        found.append((attn, attn.processor))
        attn.set_processor(processor)

    try:
        # One ControlNet may serve several conditions; it is installed on once.
        for model in dict.fromkeys([unet, *controlnets]):
            for module in model.modules():
                if isinstance(module, BasicTransformerBlock):
                    install(module.attn1, self_attention)
                    install(module.attn2, cross_attention)
                    if hasattr(module, "fuser"):
                        install(module.fuser.attn, gated_attention)
                        if isinstance(gated_attention, OwnGroundingAttnProcessor):
                            hooks.append(module.fuser.register_forward_pre_hook(gated_attention.count_tokens))
                elif isinstance(module, ResnetBlock2D) and inflation.group_norm:
                    hooks += [*_inflate_norm(module.norm1, num_frames), *_inflate_norm(module.norm2, num_frames)]
        if inflation.group_norm:
            hooks += _inflate_norm(unet.conv_norm_out, num_frames)
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for attn, processor in found:
            attn.set_processor(processor)


def _inflate_norm(norm: nn.Module, num_frames: int) -> list[torch.utils.hooks.RemovableHandle]:
    """Makes a group norm see (clips, channels, frames, height, width), so that its statistics span the clip.

    Hooks, not another module in its place: parameters keep their names, and offloading keeps its own hooks on it.
    """

    def fold(module: nn.Module, args: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
        return (args[0].unflatten(0, (-1, num_frames)).transpose(1, 2),)

    def unfold(module: nn.Module, args: tuple[torch.Tensor], output: torch.Tensor) -> torch.Tensor:
        return output.transpose(1, 2).flatten(0, 1)

    return [norm.register_forward_pre_hook(fold), norm.register_forward_hook(unfold)]


# ---------------------------------------------------------------------------------------------------------------------
# From a clip to the noise it would have come from: DDIM inversion and null-text optimisation.
#
# Both run on the plain image UNet, every frame for itself. Trajectories are `(steps + 1, F, C, h, w)` in float32, from
# the clean latents to the noise; grids are in denoising order, from the noisiest timestep to the cleanest.
# ---------------------------------------------------------------------------------------------------------------------


# (latents (n, C, h, w), timestep, text (n, tokens, channels), indices of the n frames) -> noise (n, C, h, w), float32.
PredictNoise = Callable[[torch.Tensor, int, torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class DDIMGrid:
    """The timesteps of a run, with the noise level at both ends of each step.

    Args:
        timesteps (`list[int]`): S timesteps, the noisiest first.
        alphas (`torch.Tensor` of shape (S,)): Cumulative alphas at these timesteps.
        previous_alphas (`torch.Tensor` of shape (S,)): Cumulative alphas at the timesteps that the denoising steps
            lead to.
    """

    timesteps: list[int]
    alphas: torch.Tensor
    previous_alphas: torch.Tensor

    @classmethod
    def from_scheduler(cls, scheduler: DDIMScheduler, num_inference_steps: int) -> "DDIMGrid":
        """The grid on which `scheduler` denoises; sets the timesteps of `scheduler`."""
        scheduler.set_timesteps(num_inference_steps)
        timesteps = scheduler.timesteps.cpu()
        previous = timesteps - scheduler.config.num_train_timesteps // num_inference_steps
        cumulative = scheduler.alphas_cumprod.cpu()
        return cls(
            timesteps.tolist(),
            cumulative[timesteps],
            torch.where(previous >= 0, cumulative[previous.clamp(min=0)], scheduler.final_alpha_cumprod.cpu()),
        )


def ddim_step(
    latents: torch.Tensor, noise_pred: torch.Tensor, alpha: torch.Tensor, next_alpha: torch.Tensor
) -> torch.Tensor:
    """The deterministic DDIM step between two noise levels, in either direction (DDIM, equation 12 with sigma 0).

    Args:
        latents (`torch.Tensor`): Latents at the cumulative alpha `alpha`.
        noise_pred (`torch.Tensor`): The noise predicted in them.
        alpha, next_alpha (`torch.Tensor` of shape ()): Cumulative alphas, in (0, 1], before and after the step.

    Returns:
        `torch.Tensor`: Latents at `next_alpha`.
    """
    clean = (latents - (1 - alpha) ** 0.5 * noise_pred) / alpha**0.5
    return next_alpha**0.5 * clean + (1 - next_alpha) ** 0.5 * noise_pred


class StepCheckpoint:
    """Keeps the finished steps of one inversion in a folder, so that a killed run goes on where it stopped.

    Every step is a file of its own, written beside and renamed. The folder belongs to one inversion, told by its key.

    Args:
        folder (`str` or `Path`, *optional*): `None` keeps nothing.
        key (`dict`): What the inversion depends on (see [`InvertedClip`]).

    Raises:
        `ValueError`: If the folder holds the steps of another inversion.
    """

    def __init__(self, folder: str | Path | None, key: dict[str, Any]) -> None:
        self.folder = None if folder is None else Path(folder)
        if self.folder is None:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        key_file = self.folder / "key.json"
        if key_file.exists():
            check_key(json.loads(key_file.read_text(encoding="utf-8")), key, f"`checkpoint_dir` {str(folder)!r}")
        else:
            with _replacing(key_file) as temporary:
                temporary.write_text(json.dumps(key), encoding="utf-8")

    def load(self, name: str, device: torch.device) -> dict[str, torch.Tensor] | None:
        """The tensors of the step `name`, or `None` if it was not finished before."""
        if self.folder is None or not (path := self.folder / f"{name}.safetensors").exists():
            return None
        return load_file(path, device=str(device))

    def save(self, name: str, tensors: dict[str, torch.Tensor]) -> None:
        """Keeps the tensors of the finished step `name`."""
        if self.folder is not None:
            with _replacing(self.folder / f"{name}.safetensors") as temporary:
                temporary.write_bytes(save({key: tensor.cpu().contiguous() for key, tensor in tensors.items()}))


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """A file beside `path` that takes its place when all went well, and is gone when not."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@torch.no_grad()
def ddim_inversion(
    predict_noise: PredictNoise,
    latents: torch.Tensor,
    text: torch.Tensor,
    grid: DDIMGrid,
    batch_size: int | None = None,
    checkpoint: StepCheckpoint | None = None,
    on_step: Callable[[], Any] = lambda: None,
) -> torch.Tensor:
    """DDIM run backwards, every frame for itself (Ground-A-Video, section 3.4; DDIM, section 4.3).

    The UNet is evaluated at the timestep that the step leads to.

    Args:
        predict_noise: The noise of some frames at a timestep under a text, with the source groundings.
        latents (`torch.Tensor` of shape (F, C, h, w)): Clean latents, float32.
        text (`torch.Tensor` of shape (tokens, channels)): The text of all frames.
        grid ([`DDIMGrid`]): The timesteps.
        batch_size (`int`, *optional*): Frames a forward; `None` for all.
        checkpoint ([`StepCheckpoint`], *optional*): Where finished steps are kept.
        on_step: Called after every step.

    Returns:
        `torch.Tensor` of shape (S + 1, F, C, h, w): the trajectory from the clean latents to the noise.
    """
    checkpoint = checkpoint or StepCheckpoint(None, {})
    batches = torch.arange(len(latents)).split(batch_size or len(latents))
    trajectory = [latents]
    for step in range(len(grid.timesteps)):
        timestep, alpha, previous_alpha = (
            grid.timesteps[-1 - step],
            grid.alphas[-1 - step],
            grid.previous_alphas[-1 - step],
        )
        state = checkpoint.load(f"ddim-{step:04d}", latents.device)
        if state is None:
            z = trajectory[-1]
            noise_pred = torch.cat(
                [predict_noise(z[frames], timestep, text.expand(len(frames), -1, -1), frames) for frames in batches]
            )
            state = {"latents": ddim_step(z, noise_pred, previous_alpha, alpha)}
            checkpoint.save(f"ddim-{step:04d}", state)
        trajectory.append(state["latents"])
        on_step()
    return torch.stack(trajectory)


@torch.no_grad()
def null_text_optimization(
    predict_noise: PredictNoise,
    trajectory: torch.Tensor,
    source_text: torch.Tensor,
    null_text: torch.Tensor,
    grid: DDIMGrid,
    guidance_scale: float,
    num_inner_steps: int = 10,
    early_stop_epsilon: float | None = 1e-5,
    batch_size: int | None = None,
    checkpoint: StepCheckpoint | None = None,
    on_step: Callable[[], Any] = lambda: None,
) -> torch.Tensor:
    """Null-text optimisation (Mokady et al., CVPR 2023, algorithm 1), all frames in one batch.

    At every timestep the null embedding of each frame is moved by Adam (eps 1e-4, learning rate `1e-2 (1 - i / 100)`
    at step i) until the guided step from the current latents lands on the inverted trajectory. A frame whose loss has
    fallen below `early_stop_epsilon + 2e-5 i` after an Adam step is left alone from then on, its Adam moments too.
    Embeddings, gradients and moments are float32 whatever the UNet computes in.

    Args:
        predict_noise: The noise of some frames at a timestep under a text, with the source groundings; differentiable
            in the text.
        trajectory (`torch.Tensor` of shape (S + 1, F, C, h, w)): From [`ddim_inversion`].
        source_text (`torch.Tensor` of shape (tokens, channels)): Embedding of the source prompt.
        null_text (`torch.Tensor` of shape (tokens, channels)): Where the null embeddings start.
        grid ([`DDIMGrid`]): The timesteps of the trajectory.
        guidance_scale (`float`): The scale of classifier-free guidance to optimise for.
        num_inner_steps (`int`): Adam steps a timestep at most.
        early_stop_epsilon (`float`, *optional*): `None` never stops early.
        batch_size (`int`, *optional*): Frames a forward; `None` for all.
        checkpoint ([`StepCheckpoint`], *optional*): Where finished steps are kept.
        on_step: Called after every timestep.

    Returns:
        `torch.Tensor` of shape (S, F, tokens, channels), float32: the null embedding of every timestep and frame.
    """
    checkpoint = checkpoint or StepCheckpoint(None, {})
    num_frames = trajectory.shape[1]
    batches = torch.arange(num_frames).split(batch_size or num_frames)
    z, null = trajectory[-1], null_text.float().expand(num_frames, -1, -1)
    optimized = []
    for i, timestep in enumerate(grid.timesteps):
        state = checkpoint.load(f"null-text-{i:04d}", trajectory.device)
        if state is None:
            noise_source = torch.cat(
                [
                    predict_noise(z[frames], timestep, source_text.expand(len(frames), -1, -1), frames)
                    for frames in batches
                ]
            )

            def guided_step(null: torch.Tensor, frames: torch.Tensor) -> torch.Tensor:
                noise_null = predict_noise(z[frames], timestep, null, frames)  # noqa: B023
                noise_pred = noise_null + guidance_scale * (noise_source[frames] - noise_null)  # noqa: B023
                return ddim_step(z[frames], noise_pred, grid.alphas[i], grid.previous_alphas[i])  # noqa: B023

            null = _optimize_null_embeddings(
                guided_step,
                null,
                target=trajectory[-2 - i],
                learning_rate=1e-2 * max(0.0, 1 - i / 100),
                num_steps=num_inner_steps,
                stop_below=None if early_stop_epsilon is None else early_stop_epsilon + 2e-5 * i,
                batch_size=batch_size,
            )
            z = torch.cat([guided_step(null[frames], frames) for frames in batches])
            state = {"latents": z, "null_embeddings": null}
            checkpoint.save(f"null-text-{i:04d}", state)
        z, null = state["latents"], state["null_embeddings"]
        optimized.append(null)
        on_step()
    return torch.stack(optimized)


def _optimize_null_embeddings(
    guided_step: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    null: torch.Tensor,
    target: torch.Tensor,
    learning_rate: float,
    num_steps: int,
    stop_below: float | None,
    batch_size: int | None,
) -> torch.Tensor:
    """Adam on the null embeddings (F, tokens, channels) of one timestep, towards `target` (F, C, h, w)."""
    null = null.clone()
    mean, variance = torch.zeros_like(null), torch.zeros_like(null)
    active = torch.arange(len(null))
    for step in range(1, num_steps + 1):
        losses = []
        for frames in active.split(batch_size or len(null)):
            with torch.enable_grad():
                candidate = null[frames].requires_grad_()
                # Summed here and divided in float32 below: under a float16 UNet the gradients of the mean would be
                # too small to be told from zero.
                loss = (guided_step(candidate, frames) - target[frames]).square().flatten(1).sum(dim=1)
                (gradient,) = torch.autograd.grad(loss.sum(), candidate)
            losses.append(loss.detach().cpu() / target[0].numel())
            gradient = gradient / target[0].numel()
            mean[frames] = 0.9 * mean[frames] + 0.1 * gradient
            variance[frames] = 0.999 * variance[frames] + 0.001 * gradient.square()
            corrected_mean = mean[frames] / (1 - 0.9**step)
            corrected_variance = variance[frames] / (1 - 0.999**step)
            null[frames] -= learning_rate * corrected_mean / (corrected_variance.sqrt() + 1e-4)
        if stop_below is not None:
            # Indexing only the others freezes a frame's embedding and its moments alike.
            active = active[torch.cat(losses) >= stop_below]
            if not len(active):
                break
    return null


@contextmanager
def differentiable_in_inputs_only(model: ModelMixin, gradient_checkpointing: bool) -> Iterator[None]:
    """Keeps gradients of the parameters of `model` from being prepared, and optionally checkpoints its activations.

    On leaving, every parameter and module is as it was found.

    Args:
        model (`ModelMixin`): The UNet.
        gradient_checkpointing (`bool`): Whether activations are computed again in the backward pass instead of kept.
    """
    required = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    names = ("gradient_checkpointing", "_gradient_checkpointing_func")
    flags = [
        (module, {name: module.__dict__[name] for name in names if name in module.__dict__})
        for module in model.modules()
        if hasattr(module, "gradient_checkpointing")
    ]
    try:
        for parameter, _ in required:
            parameter.requires_grad_(False)
        if gradient_checkpointing:
            model.enable_gradient_checkpointing()
        yield
    finally:
        for parameter, requires_grad in required:
            parameter.requires_grad_(requires_grad)
        for module, found in flags:
            for name in names:
                module.__dict__.pop(name, None)
            module.__dict__.update(found)


@dataclass(frozen=True, eq=False)
class InvertedClip:
    """An inverted clip, to be edited any number of times.

    Args:
        trajectory (`torch.Tensor` of shape (S + 1, F, C, h, w)): From the clean latents to the noise, float32.
        null_embeddings (`torch.Tensor`, *optional*): Of shape (S, F, tokens, channels) with null-text optimisation; of
            shape (1, 1, tokens, channels), the source prompt's embedding, with negative-prompt inversion; `None` with
            plain DDIM inversion.
        key (`dict`): Everything the inversion depends on, as JSON holds it.
    """

    trajectory: torch.Tensor
    null_embeddings: torch.Tensor | None
    key: dict[str, Any]

    @property
    def inversion_method(self) -> str:
        """`"ddim"`, `"negative-prompt"` or `"null-text"`."""
        return self.key["inversion_method"]

    @property
    def noise_latents(self) -> torch.Tensor:
        """The end of the trajectory, (F, C, h, w)."""
        return self.trajectory[-1]

    def save(self, path: str | Path) -> None:
        """Writes the inversion to a safetensors file, all of it or nothing."""
        path = Path(path)
        tensors = {"trajectory": self.trajectory.cpu().contiguous()}
        if self.null_embeddings is not None:
            tensors["null_embeddings"] = self.null_embeddings.cpu().contiguous()
        with _replacing(path) as temporary:
            # Not `save_file`, whose files only their owner may read.
            temporary.write_bytes(save(tensors, metadata={"key": json.dumps(self.key)}))

    @classmethod
    def load(cls, path: str | Path) -> "InvertedClip":
        """Reads what [`~InvertedClip.save`] wrote.

        Raises:
            `ValueError`: If the file does not exist or is not such a file.
        """
        try:
            with safe_open(path, framework="pt") as file:
                key = json.loads((file.metadata() or {})["key"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return cls(tensors["trajectory"], tensors.get("null_embeddings"), key)
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            raise ValueError(f"`path`: {str(path)!r} is not a saved InvertedClip: {error!r}") from error


def check_key(made_for: Mapping[str, Any], asked_for: Mapping[str, Any], what: str) -> None:
    """Raises a `ValueError` that lists where two inversion keys differ, if they do.

    Args:
        made_for (`dict`): The key of the inversion at hand.
        asked_for (`dict`): The key, or the part of it, that the call leads to.
        what (`str`): How the message calls the inversion at hand.
    """
    # Through JSON, since a stored key went through it: tuples become lists.
    asked_for = json.loads(json.dumps(asked_for))
    different = [name for name, value in asked_for.items() if made_for.get(name) != value]
    if different:
        details = "; ".join(
            f"{name}: made for {_short(made_for.get(name))}, called with {_short(asked_for[name])}"
            for name in different
        )
        raise ValueError(f"{what} was made for another inversion. {details}.")


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else text[:77] + "..."


def tensor_hash(tensor: torch.Tensor) -> str:
    """SHA-256 of a tensor's values, in float32."""
    return hashlib.sha256(tensor.detach().cpu().float().contiguous().numpy().tobytes()).hexdigest()


def model_fingerprint(model: nn.Module) -> str:
    """Tells one set of weights from another: SHA-256 over names, shapes, dtypes and up to 256 values a parameter.

    LoRA layers are parameters too; their scales and which of them are active count as well.
    """
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        values = parameter.detach().flatten()
        stride = max(1, values.numel() // 256)
        digest.update(f"{name} {tuple(parameter.shape)} {parameter.dtype}".encode())
        # Weights that sequential offloading keeps elsewhere are told by name and shape alone.
        if not parameter.is_meta:
            digest.update(values[::stride][:256].cpu().float().numpy().tobytes())
    for name, module in model.named_modules():
        if hasattr(module, "active_adapters") and hasattr(module, "scaling"):
            state = (sorted(module.scaling.items()), list(module.active_adapters), module.disable_adapters)
            digest.update(f"{name} {state}".encode())
    return digest.hexdigest()


# ---------------------------------------------------------------------------------------------------------------------
# Flow-guided smoothing of inverted latents (Ground-A-Video, section 3.4).
#
# Where a clip stands still, its inverted latents should too: there each frame takes the latent of the frame before.
# Flow is (F - 1, 2, H, W) in pixels of its own H x W grid, x before y, forward from frame i to i + 1 unless it is
# called backward (from i + 1 to i). Both of the motion masks below are boolean of shape (F - 1, 1, h, w) at latent
# size.
# ---------------------------------------------------------------------------------------------------------------------


def relative_motion_mask(flow: torch.Tensor, height: int, width: int, threshold: float = 0.2) -> torch.Tensor:
    """The published mask: each magnitude map is divided by its own maximum before the threshold.

    So the threshold means another speed in every pair of frames, and in a nearly still pair noise counts as motion.

    Args:
        flow (`torch.Tensor` of shape (F - 1, 2, H, W)): Forward flow in pixels.
        height, width (`int`): Size of the latents.
        threshold (`float`): Share of the pair's largest magnitude, in [0, 1], above which a place moves.

    Returns:
        `torch.Tensor` of shape (F - 1, 1, height, width), boolean: what moves.
    """
    return relative_magnitude(flow, height, width) > threshold


def relative_magnitude(flow: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Flow magnitude over its maximum in the pair, resized to latent size: (F - 1, 1, height, width) in [0, 1]."""
    magnitude = flow.float().norm(dim=1, keepdim=True)
    peak = magnitude.amax(dim=(2, 3), keepdim=True)
    # A pair without any motion has no maximum to divide by, and nothing in it moves.
    magnitude = torch.where(peak > 0, magnitude / peak, 0.0)
    return F.interpolate(magnitude, (height, width), mode="bilinear", align_corners=False)


def absolute_motion_mask(
    flow: torch.Tensor,
    height: int,
    width: int,
    threshold: float = 0.25,
    backward_flow: torch.Tensor | None = None,
) -> torch.Tensor:
    """What moves by more than a fixed number of latent cells, or is not seen in the frame before.

    Args:
        flow (`torch.Tensor` of shape (F - 1, 2, H, W)): Forward flow in pixels.
        height, width (`int`): Size of the latents.
        threshold (`float`): Motion between two frames, in latent cells, above which a place moves. A latent cell moves
            if any of its pixels does.
        backward_flow (`torch.Tensor` of shape (F - 1, 2, H, W), *optional*): Flow from frame i + 1 to i. With it, what
            is uncovered or covered between the two frames (see [`inconsistent`]) counts as moving.

    Returns:
        `torch.Tensor` of shape (F - 1, 1, height, width), boolean: what moves.
    """
    cells_per_pixel = torch.tensor([width / flow.shape[3], height / flow.shape[2]], device=flow.device)
    moving = (flow.float() * cells_per_pixel[:, None, None]).norm(dim=1, keepdim=True) > threshold
    if backward_flow is not None:
        moving = moving | inconsistent(flow, backward_flow) | inconsistent(backward_flow, flow)
    return F.adaptive_max_pool2d(moving.float(), (height, width)).bool()


def inconsistent(flow: torch.Tensor, opposite_flow: torch.Tensor) -> torch.Tensor:
    """Where following `flow` and then `opposite_flow` does not lead back (Sundaram et al., ECCV 2010, equation 5).

    `|f(x) + b(x + f(x))|^2 > 0.01 (|f(x)|^2 + |b(x + f(x))|^2) + 0.5`, or `x + f(x)` lies outside the frame.

    Args:
        flow, opposite_flow (`torch.Tensor` of shape (pairs, 2, H, W)): Flows between the same frames, there and back,
            in pixels.

    Returns:
        `torch.Tensor` of shape (pairs, 1, H, W), boolean, on the grid that `flow` starts from.
    """
    flow, opposite_flow = flow.float(), opposite_flow.float()
    height, width = flow.shape[2:]
    y, x = torch.meshgrid(
        torch.arange(height, device=flow.device), torch.arange(width, device=flow.device), indexing="ij"
    )
    target_x, target_y = x + flow[:, 0], y + flow[:, 1]
    outside = (target_x < 0) | (target_x > width - 1) | (target_y < 0) | (target_y > height - 1)
    # grid_sample's coordinates with align_corners=False: pixel centres at (2 i + 1) / size - 1.
    grid = torch.stack([(2 * target_x + 1) / width - 1, (2 * target_y + 1) / height - 1], dim=-1)
    back = F.grid_sample(opposite_flow, grid, padding_mode="border", align_corners=False)
    gap = (flow + back).square().sum(dim=1)
    bound = 0.01 * (flow.square().sum(dim=1) + back.square().sum(dim=1)) + 0.5
    return ((gap > bound) | outside)[:, None]


def smooth_latents(latents: torch.Tensor, moving: torch.Tensor) -> torch.Tensor:
    """In frame order, what does not move takes the (already smoothed) latent of the frame before.

    Args:
        latents (`torch.Tensor` of shape (F, C, h, w)): Inverted latents of one clip.
        moving (`torch.Tensor` of shape (F - 1, 1, h, w)): Boolean, from one of the masks above.

    Returns:
        `torch.Tensor` of shape (F, C, h, w); the input is left as it is.
    """
    smoothed = [latents[0]]
    for latent, moves in zip(latents[1:], moving, strict=True):
        smoothed.append(torch.where(moves, latent, smoothed[-1]))
    return torch.stack(smoothed)


# ---------------------------------------------------------------------------------------------------------------------
# Ground-A-Video (Jeong & Ye, ICLR 2024, arXiv 2310.01107): several edits of one clip at once, without training.
# ---------------------------------------------------------------------------------------------------------------------


InversionMethod = Literal["negative-prompt", "null-text", "ddim"]
OutputType = Literal["pil", "np", "pt", "latent"]

# One clip, or several of one length and size: see `GroundAVideoPipeline.preprocess_video`.
VideoInput = (
    list[PIL.Image.Image]
    | list[list[PIL.Image.Image]]
    | np.ndarray
    | list[np.ndarray]
    | torch.Tensor
    | list[torch.Tensor]
)


@dataclass
class GroundAVideoPipelineOutput(BaseOutput):
    """What [`GroundAVideoPipeline`] returns.

    Args:
        frames (`list[list[PIL.Image.Image]]`, `np.ndarray` or `torch.Tensor`): The edited clips: lists of PIL images,
            an array (clips, F, H, W, 3) or a tensor (clips, F, 3, H, W) in [0, 1], or latents (clips, F, C, h, w).
        opened_share (`list[float]`): Of each clip, the share in [0, 1] of the latent cells that was open to the edit.
    """

    frames: list[list[PIL.Image.Image]] | np.ndarray | torch.Tensor
    opened_share: list[float]


@dataclass(frozen=True)
class _InversionSettings:
    """How clips are inverted: what `__call__` and `invert` both take, by the same names."""

    source_prompt: Any
    num_inference_steps: int
    inversion_method: InversionMethod
    num_null_text_steps: int
    gradient_checkpointing: bool
    frame_batch_size: int | None


class GroundAVideoPipeline(
    DiffusionPipeline, StableDiffusionMixin, TextualInversionLoaderMixin, StableDiffusionLoraLoaderMixin
):
    r"""Edits several objects of a clip at once with a grounded text-to-image model (Ground-A-Video, ICLR 2024).

    Args:
        vae ([`AutoencoderKL`]): Between frames and latents.
        text_encoder ([`~transformers.CLIPTextModel`]): Encodes prompts, and (pooled) the phrases of the groundings.
        tokenizer ([`~transformers.CLIPTokenizer`]): Its tokenizer.
        unet ([`UNet2DConditionModel`]): A GLIGEN UNet (`attention_type="gated"`), with 9 input channels (inpainting:
            latents, masked source latents, mask) or as many as the latents have (generation).
        scheduler ([`DDIMScheduler`]): Another scheduler is converted, with a warning.
        controlnet ([`ControlNetModel`], a list of them, or [`MultiControlNetModel`], *optional*): On depth, or on
            whatever `conditioning_frames` hold.

    Example:
    ```py
    >>> import torch
    >>> from diffusers import ControlNetModel
    >>> from ground_a_video import GroundAVideoPipeline, VideoGrounding

    >>> controlnet = ControlNetModel.from_pretrained("lllyasviel/control_v11f1p_sd15_depth", dtype=torch.float16)
    >>> pipe = GroundAVideoPipeline.from_pretrained(
    ...     "masterful/gligen-1-4-inpainting-text-box", controlnet=controlnet, variant="fp16", dtype=torch.float16
    ... ).to("cuda")
    >>> frames = pipe(
    ...     video=video,
    ...     source_prompt="a rabbit is eating a watermelon on the table",
    ...     prompt="a squirrel is eating an orange on the grass, under the aurora",
    ...     grounding=VideoGrounding.from_json("edit.json"),
    ...     conditioning_frames=depth,
    ...     flow=flow,
    ...     generator=torch.Generator().manual_seed(0),
    ... ).frames[0]
    ```
    """

    model_cpu_offload_seq = "text_encoder->unet->vae"
    _optional_components = ["controlnet"]
    _callback_tensor_inputs = ["latents", "prompt_embeds", "negative_prompt_embeds"]

    # No component has a default, or `from_pretrained(..., custom_pipeline=..., controlnet=mine)` would ignore `mine`.
    def __init__(
        self,
        vae: AutoencoderKL | None,
        text_encoder: CLIPTextModel | None,
        tokenizer: CLIPTokenizer | None,
        unet: UNet2DConditionModel | None,
        scheduler: DDIMScheduler | None,
        controlnet: ControlNetModel | list[ControlNetModel] | MultiControlNetModel | None,
    ) -> None:
        super().__init__()
        if scheduler is not None and not isinstance(scheduler, DDIMScheduler):
            logger.warning(
                f"Inversion needs DDIM: the {type(scheduler).__name__} is converted to a DDIMScheduler. Pass "
                "`scheduler=DDIMScheduler.from_config(...)` to choose its settings."
            )
            # Schedulers without these settings would fall back on defaults that clamp the predicted clean latents.
            scheduler = DDIMScheduler.from_config(
                scheduler.config, clip_sample=False, set_alpha_to_one=False, timestep_spacing="leading"
            )
        if isinstance(controlnet, (list, tuple)):
            controlnet = MultiControlNetModel(controlnet)
        self.register_modules(
            vae=vae,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            unet=unet,
            scheduler=scheduler,
            controlnet=controlnet,
        )
        self.vae_scale_factor = 8 if vae is None else 2 ** (len(vae.config.block_out_channels) - 1)
        self.video_processor = VideoProcessor(do_resize=False, do_convert_rgb=True)
        self.control_video_processor = VideoProcessor(do_resize=False, do_convert_rgb=True, do_normalize=False)
        self._said: set[str] = set()
        self._guidance_scale = 1.0
        self._clip_skip: int | None = None
        self._cross_attention_kwargs: dict[str, Any] | None = None
        self._interrupt = False
        self._num_timesteps = 0

    @classmethod
    def _dict_from_json_file(cls, json_file: str | os.PathLike, **kwargs: Any) -> dict[str, Any]:
        # A repo that carries its own pipeline names its file too, and diffusers would run that in place of this class.
        # Older releases pass more than the file.
        config = super()._dict_from_json_file(json_file, **kwargs)
        if isinstance(config["_class_name"], list):
            config["_class_name"] = config["_class_name"][1]
        return config

    @property
    def guidance_scale(self) -> float:
        return self._guidance_scale

    @property
    def do_classifier_free_guidance(self) -> bool:
        return self._guidance_scale > 1

    @property
    def clip_skip(self) -> int | None:
        return self._clip_skip

    @property
    def cross_attention_kwargs(self) -> dict[str, Any] | None:
        return self._cross_attention_kwargs

    @property
    def num_timesteps(self) -> int:
        return self._num_timesteps

    @property
    def interrupt(self) -> bool:
        return self._interrupt

    @torch.no_grad()
    def __call__(
        self,
        video: VideoInput,
        grounding: VideoGrounding | dict[str, Any] | list[VideoGrounding | dict[str, Any]],
        prompt: str | list[str] | None = None,
        source_prompt: str | list[str] | None = None,
        conditioning_frames: VideoInput | list[VideoInput] | None = None,
        flow: torch.Tensor | np.ndarray | list | None = None,
        backward_flow: torch.Tensor | np.ndarray | list | None = None,
        inverted: InvertedClip | list[InvertedClip] | None = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 50,
        guidance_scale: float = 12.5,
        negative_prompt: str | list[str] | None = None,
        num_videos_per_prompt: int = 1,
        eta: float = 0.0,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: torch.Tensor | None = None,
        prompt_embeds: torch.Tensor | None = None,
        negative_prompt_embeds: torch.Tensor | None = None,
        phrase_embeds: torch.Tensor | list[torch.Tensor] | None = None,
        inversion_method: InversionMethod = "negative-prompt",
        num_null_text_steps: int = 10,
        gradient_checkpointing: bool = False,
        frame_batch_size: int | None = None,
        flow_threshold: float | None = None,
        relative_flow_threshold: bool = False,
        open_all_boxes: bool = False,
        paste_back: bool = True,
        restore_size: bool | None = None,
        controlnet_conditioning_scale: float | list[float] = 1.0,
        control_guidance_start: float | list[float] = 0.0,
        control_guidance_end: float | list[float] = 1.0,
        gligen_scheduled_sampling_beta: float = 1.0,
        inflation: Inflation | None = None,
        clip_skip: int | None = None,
        cross_attention_kwargs: dict[str, Any] | None = None,
        output_type: OutputType = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[[DiffusionPipeline, int, int, dict], dict] | None = None,
        callback_on_step_end_tensor_inputs: list[str] | None = None,
    ) -> GroundAVideoPipelineOutput | tuple:
        r"""Edits one clip, or a batch of clips of one length and size.

        Args:
            video: The clip or clips: all that [`~VideoProcessor.preprocess_video`] takes, (clips,) F frames of H x W,
                pixels in [0, 1] or uint8.
            grounding ([`VideoGrounding`], a dict for [`VideoGrounding.from_dict`], or a list of one a clip): The
                objects, their places, and what they become.
            prompt (`str` or `list[str]`): What each clip shall show after the edit.
            source_prompt (`str` or `list[str]`, *optional*): What each clip shows now. Needed to invert with
                `"negative-prompt"` and `"null-text"`.
            conditioning_frames (*optional*): What the ControlNet sees, of the clips' length, in any form that `video`
                takes, in [0, 1]; for several ControlNets a list of such. `None`: no ControlNet is used.
            flow (`torch.Tensor` of shape (F - 1, 2, H', W') or a list of one a clip, *optional*): Optical flow from
                frame i to i + 1 in pixels of its own H' x W' grid, x before y. `None`: latents are not smoothed.
            backward_flow (like `flow`, *optional*): Flow from frame i + 1 to i, to leave what gets covered or
                uncovered unsmoothed.
            inverted ([`InvertedClip`] or a list of one a clip, *optional*): From [`~GroundAVideoPipeline.invert`], in
                place of inverting here. It says how it was made, so `inversion_method` and `num_null_text_steps` are
                not looked at.
            height, width (`int`, *optional*): Size in pixels at which the clip is edited, divisible by the VAE's scale
                factor (8 for Stable Diffusion). By default that of the clip, or the nearest divisible one.
            num_inference_steps (`int`): Steps of inversion and denoising alike.
            guidance_scale (`float`): Of classifier-free guidance; at most 1 turns it off.
            negative_prompt (`str` or `list[str]`, *optional*): For inversion with `"ddim"` only: the others decide the
                unconditional branch themselves.
            num_videos_per_prompt (`int`): Edits of every clip.
            eta (`float`): Of DDIM, in [0, 1].
            generator (`torch.Generator` or a list of one a resulting clip, *optional*): For deterministic results.
            latents (`torch.Tensor` of shape (resulting clips, F, C, h, w), *optional*): Where denoising starts, in
                place of inverting and smoothing.
            prompt_embeds (`torch.Tensor` of shape (clips, tokens, channels), *optional*): In place of `prompt`.
            negative_prompt_embeds (`torch.Tensor` of shape (clips, tokens, channels), *optional*): In place of
                `negative_prompt`.
            phrase_embeds (`torch.Tensor` of shape (N, channels) or a list of one a clip, *optional*): Pooled text
                embeddings of the N target phrases, in place of encoding them. Rows of removed objects are not used.
            inversion_method (`str`): `"negative-prompt"` inverts with the source prompt and takes it for the
                unconditional branch; `"null-text"` inverts with the empty prompt and optimises the unconditional
                embeddings; `"ddim"` inverts with the empty prompt.
            num_null_text_steps (`int`): Adam steps a timestep of null-text optimisation, at most.
            gradient_checkpointing (`bool`): Whether null-text optimisation computes activations again instead of
                keeping them.
            frame_batch_size (`int`, *optional*): Frames a forward wherever frames are independent (VAE, inversion,
                null-text optimisation). `None`: all at once.
            flow_threshold (`float`, *optional*): Motion between two frames above which latents are left unsmoothed:
                in latent cells (by default 0.25), or with `relative_flow_threshold` as a share of the pair's largest
                motion (by default 0.2).
            relative_flow_threshold (`bool`): Whether the threshold is the published, relative one.
            open_all_boxes (`bool`): Whether all boxes are open to the edit, kept objects too, as published. By default
                only objects that change are, without the masks of kept ones.
            paste_back (`bool`): Whether pixels that were not opened are the source's own in the result. The opened
                region is the latent mask, upsampled nearest.
            restore_size (`bool`, *optional*): Whether the result is brought back to the size of `video`. By default
                only if neither `height` nor `width` is given. With `paste_back`, what was not opened then is the
                source at its full resolution.
            controlnet_conditioning_scale (`float` or one a ControlNet): Factor on the ControlNet's residuals.
            control_guidance_start, control_guidance_end (`float` or one a ControlNet): Shares of the steps, in
                [0, 1], between which the ControlNet acts.
            gligen_scheduled_sampling_beta (`float`): Share of the steps, in [0, 1], in which GLIGEN's layers are on.
            inflation ([`Inflation`], *optional*): Other attention schemes, for comparison.
            clip_skip (`int`, *optional*): Layers of the text encoder to skip.
            cross_attention_kwargs (`dict`, *optional*): `{"scale": s}`, the scale of LoRA layers.
            output_type (`str`): `"pil"`, `"np"`, `"pt"` or `"latent"`.
            return_dict (`bool`): Whether to return a [`GroundAVideoPipelineOutput`] or a tuple.
            callback_on_step_end (`Callable`, *optional*): Called after every denoising step as
                `callback(pipe, step, timestep, callback_kwargs)`; what it returns takes the place of these tensors.
            callback_on_step_end_tensor_inputs (`list[str]`, *optional*): Of `latents` (by default), `prompt_embeds`
                and `negative_prompt_embeds` (with null-text of shape (S, clips, F, tokens, channels)).

        Returns:
            [`GroundAVideoPipelineOutput`], or the tuple of its fields.

        Raises:
            `ValueError`: For every argument of a wrong shape, count, range or combination, before any model runs.
        """
        callback_on_step_end_tensor_inputs = callback_on_step_end_tensor_inputs or ["latents"]
        groundings = _as_groundings(grounding)

        # 1. Check everything before any model runs.
        pixels = self.preprocess_video(video)
        size = self._working_size(pixels, height, width)
        conditions = self._preprocess_conditions(conditioning_frames, pixels, size)
        flows = self._preprocess_flow(flow, "flow", pixels)
        backward_flows = self._preprocess_flow(backward_flow, "backward_flow", pixels, flows)
        self.check_inputs(
            pixels=pixels,
            groundings=groundings,
            size=size,
            prompt=prompt,
            source_prompt=source_prompt,
            negative_prompt=negative_prompt,
            prompt_embeds=prompt_embeds,
            negative_prompt_embeds=negative_prompt_embeds,
            phrase_embeds=phrase_embeds,
            latents=latents,
            inverted=inverted,
            inversion_method=inversion_method,
            num_inference_steps=num_inference_steps,
            num_null_text_steps=num_null_text_steps,
            guidance_scale=guidance_scale,
            num_videos_per_prompt=num_videos_per_prompt,
            eta=eta,
            generator=generator,
            frame_batch_size=frame_batch_size,
            flow_threshold=flow_threshold,
            relative_flow_threshold=relative_flow_threshold,
            has_flow=flows is not None,
            has_backward_flow=backward_flows is not None,
            controlnet_conditioning_scale=controlnet_conditioning_scale,
            control_guidance_start=control_guidance_start,
            control_guidance_end=control_guidance_end,
            gligen_scheduled_sampling_beta=gligen_scheduled_sampling_beta,
            cross_attention_kwargs=cross_attention_kwargs,
            output_type=output_type,
            callback_on_step_end_tensor_inputs=callback_on_step_end_tensor_inputs,
            inflation=inflation,
            clip_skip=clip_skip,
        )
        self._guidance_scale = guidance_scale
        self._clip_skip = clip_skip
        self._cross_attention_kwargs = cross_attention_kwargs
        self._interrupt = False
        num_frames, device = pixels.shape[1], self._execution_device
        clips = inverted if isinstance(inverted, list) or inverted is None else [inverted]
        if clips is not None:
            self._check_inverted(clips, pixels, size, groundings, source_prompt, num_inference_steps)
        if conditions is None:
            self._say_once("`conditioning_frames` is None: no ControlNet holds the structure of the clip.")
        if flows is None and num_frames > 1 and latents is None:
            self._say_once("`flow` is None: the inverted latents are not smoothed.")

        # 2. Invert each clip, unless somebody did before.
        inversion = _InversionSettings(
            source_prompt,
            num_inference_steps,
            inversion_method,
            num_null_text_steps,
            gradient_checkpointing,
            frame_batch_size,
        )
        if clips is None and latents is None:
            clips = self._invert_clips(pixels, size, groundings, inversion)
        if clips is not None:
            source_latents = torch.stack([clip.trajectory[0] for clip in clips]).to(device)
        else:
            source_latents = self.encode_video(_resize(pixels, *size), frame_batch_size)

        # 3. Smooth the inverted latents where the clip stands still.
        if clips is not None:
            latents = self.prepare_latents(clips, flows, backward_flows, flow_threshold, relative_flow_threshold)
            latents = latents.repeat_interleave(num_videos_per_prompt, dim=0)
        assert latents is not None
        latents = latents.to(device, torch.float32)

        # 4. Encode prompts and groundings, and find what is open to the edit.
        lora_scale = (cross_attention_kwargs or {}).get("scale")
        # What inversion found for the unconditional branch goes before a negative prompt.
        has_null_embeddings = clips is not None and clips[0].inversion_method != "ddim"
        prompt_embeds, negative_prompt_embeds = self.encode_prompt(
            prompt,
            device,
            num_videos_per_prompt,
            self.do_classifier_free_guidance and not has_null_embeddings,
            negative_prompt,
            prompt_embeds,
            negative_prompt_embeds,
            lora_scale,
            clip_skip,
        )
        if clips is not None and has_null_embeddings:
            negative_prompt_embeds = self._null_embeddings(clips, num_videos_per_prompt)
        embeds: Sequence = phrase_embeds if isinstance(phrase_embeds, list) else [phrase_embeds] * len(groundings)
        gligens = [
            self.encode_grounding(one, num_frames, "target", each, lora_scale)
            for one, each in zip(groundings, embeds, strict=True)
        ]
        latent_size = source_latents.shape[-2], source_latents.shape[-1]
        masks = torch.stack([one.edit_mask(num_frames, *latent_size, open_all_boxes) for one in groundings])
        opened_share = [1 - float(mask.mean()) for mask in masks]
        logger.info(f"Open to the edit: {', '.join(f'{share:.1%}' for share in opened_share)} of the clip.")

        # 5. Denoise, all frames of a clip together.
        repeats = num_videos_per_prompt
        latents = self.denoise(
            latents,
            source_latents.repeat_interleave(repeats, dim=0),
            masks.to(device).repeat_interleave(repeats, dim=0),
            prompt_embeds,
            negative_prompt_embeds,
            {name: torch.stack([one[name] for one in gligens]).repeat_interleave(repeats, 0) for name in gligens[0]},
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            eta=eta,
            generator=generator,
            conditioning_frames=None if conditions is None else [c.repeat_interleave(repeats, 0) for c in conditions],
            controlnet_conditioning_scale=controlnet_conditioning_scale,
            control_guidance_start=control_guidance_start,
            control_guidance_end=control_guidance_end,
            gligen_scheduled_sampling_beta=gligen_scheduled_sampling_beta,
            inflation=inflation,
            callback_on_step_end=callback_on_step_end,
            callback_on_step_end_tensor_inputs=callback_on_step_end_tensor_inputs,
        )

        # 6. Decode, and give back what was not opened.
        if output_type == "latent":
            frames: Any = latents
        else:
            edited = self.decode_latents(latents, frame_batch_size)
            if (height is None and width is None) if restore_size is None else restore_size:
                edited = _resize(edited, *pixels.shape[-2:])
            if paste_back:
                source = _resize(pixels, *edited.shape[-2:])
                edited = self.paste_back(edited, *(x.repeat_interleave(repeats, dim=0) for x in (source, masks)))
            frames = self.video_processor.postprocess_video(edited.transpose(1, 2), output_type)
        self.maybe_free_model_hooks()

        opened_share = [share for share in opened_share for _ in range(repeats)]
        if not return_dict:
            return frames, opened_share
        return GroundAVideoPipelineOutput(frames=frames, opened_share=opened_share)

    @torch.no_grad()
    def invert(
        self,
        video: VideoInput,
        grounding: VideoGrounding | dict[str, Any] | list[VideoGrounding | dict[str, Any]],
        source_prompt: str | list[str] | None = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 50,
        inversion_method: InversionMethod = "negative-prompt",
        guidance_scale: float = 12.5,
        num_null_text_steps: int = 10,
        gradient_checkpointing: bool = False,
        frame_batch_size: int | None = None,
        clip_skip: int | None = None,
        cross_attention_kwargs: dict[str, Any] | None = None,
        checkpoint_dir: str | None = None,
    ) -> InvertedClip | list[InvertedClip]:
        r"""Inverts a clip once for any number of edits of the grounded objects (Ground-A-Video, section 3.4).

        What the objects become is of no matter here, nor is the prompt of the edit: source phrases and boxes are used,
        and all boxes are open.

        Args:
            checkpoint_dir (`str`, *optional*): Where finished timesteps are kept. A run that was killed goes on from
                its last finished timestep when it is called again with the same arguments, with the same result to
                the bit. For a batch of clips each has a folder of its own in it.
            guidance_scale, num_null_text_steps: Matter with `"null-text"` only.
            others: As in [`~GroundAVideoPipeline.__call__`].

        Returns:
            [`InvertedClip`], or a list of them for a batch of clips.

        Raises:
            `ValueError`: For bad arguments, before any model runs; and if `checkpoint_dir` holds another inversion.
        """
        groundings = _as_groundings(grounding)
        pixels = self.preprocess_video(video)
        size = self._working_size(pixels, height, width)
        inversion = _InversionSettings(
            source_prompt,
            num_inference_steps,
            inversion_method,
            num_null_text_steps,
            gradient_checkpointing,
            frame_batch_size,
        )
        self._check_inversion_inputs(pixels, groundings, inversion, guidance_scale, clip_skip, cross_attention_kwargs)
        if not self._can_encode_text:
            raise ValueError(
                "The pipeline needs its `text_encoder` and `tokenizer` to invert, but one of them is None."
            )
        self._guidance_scale = guidance_scale
        self._clip_skip = clip_skip
        self._cross_attention_kwargs = cross_attention_kwargs
        inverted = self._invert_clips(pixels, size, groundings, inversion, checkpoint_dir)
        self.maybe_free_model_hooks()
        return inverted if isinstance(grounding, list) else inverted[0]

    def preprocess_video(self, video: VideoInput) -> torch.Tensor:
        """The clip or clips at their own size: (clips, F, 3, H, W) in [-1, 1], float32, on the CPU."""
        return clips_to_tensor(video, "video", self.video_processor)

    def _working_size(self, pixels: torch.Tensor, height: int | None, width: int | None) -> tuple[int, int]:
        """The (height, width) in pixels at which the clip is edited."""
        size = []
        for name, given, own in (("height", height, pixels.shape[-2]), ("width", width, pixels.shape[-1])):
            if given is not None:
                check_number(given, name, self.vae_scale_factor, integer=True)
                if given % self.vae_scale_factor:
                    raise ValueError(f"`{name}` has to be divisible by {self.vae_scale_factor}, but is {given}.")
            size.append(given or max(1, round(own / self.vae_scale_factor)) * self.vae_scale_factor)
        return size[0], size[1]

    @property
    def _controlnets(self) -> list[ControlNetModel]:
        if self.controlnet is None:
            return []
        return list(getattr(self.controlnet, "nets", [self.controlnet]))

    def _preprocess_conditions(
        self, conditioning_frames: Any, pixels: torch.Tensor, size: tuple[int, int]
    ) -> list[torch.Tensor] | None:
        """What each ControlNet sees: (clips, F, 3, height, width) in [0, 1]."""
        if conditioning_frames is None:
            return None
        if self.controlnet is None:
            raise ValueError("`conditioning_frames` were given, but the pipeline has no ControlNet to see them.")
        several = isinstance(self.controlnet, MultiControlNetModel)
        given = conditioning_frames if several else [conditioning_frames]
        if not isinstance(given, list) or len(given) != len(self._controlnets):
            raise ValueError(
                f"`conditioning_frames` has to be a list of one clip (or batch) for each of {len(self._controlnets)} "
                f"ControlNets, but is {type(given).__name__}"
                f"{f' of length {len(given)}' if isinstance(given, list) else ''}."
            )
        conditions = [clips_to_tensor(one, "conditioning_frames", self.control_video_processor) for one in given]
        for condition in conditions:
            if condition.shape[:2] != pixels.shape[:2]:
                raise ValueError(
                    f"`conditioning_frames` has to hold {pixels.shape[0]} clip(s) of {pixels.shape[1]} frames, as "
                    f"`video` does, but holds {condition.shape[0]} of {condition.shape[1]}."
                )
        return [_resize(condition, *size).clamp(0, 1) for condition in conditions]

    def _preprocess_flow(
        self, flow: Any, argument: str, pixels: torch.Tensor, opposite: list[torch.Tensor] | None = None
    ) -> list[torch.Tensor] | None:
        if flow is None:
            return None
        flows = flow_to_tensors(flow, argument, *pixels.shape[:2])
        for one, other in zip(flows, opposite or flows, strict=True):
            if one.shape != other.shape:
                raise ValueError(
                    f"`{argument}` has to be on the grid of `flow`, but is on {tuple(one.shape[-2:])} pixels and "
                    f"`flow` on {tuple(other.shape[-2:])}."
                )
        return flows

    def check_inputs(
        self,
        pixels: torch.Tensor,
        groundings: Sequence[Any],
        size: tuple[int, int],
        *,
        prompt: Any = None,
        source_prompt: Any = None,
        negative_prompt: Any = None,
        prompt_embeds: Any = None,
        negative_prompt_embeds: Any = None,
        phrase_embeds: Any = None,
        latents: Any = None,
        inverted: Any = None,
        inversion_method: Any = "negative-prompt",
        num_inference_steps: Any = 50,
        num_null_text_steps: Any = 10,
        guidance_scale: Any = 12.5,
        num_videos_per_prompt: Any = 1,
        eta: Any = 0.0,
        generator: Any = None,
        frame_batch_size: Any = None,
        flow_threshold: Any = None,
        relative_flow_threshold: bool = False,
        has_flow: bool = False,
        has_backward_flow: bool = False,
        controlnet_conditioning_scale: Any = 1.0,
        control_guidance_start: Any = 0.0,
        control_guidance_end: Any = 1.0,
        gligen_scheduled_sampling_beta: Any = 1.0,
        cross_attention_kwargs: Any = None,
        output_type: Any = "pil",
        callback_on_step_end_tensor_inputs: Any = ("latents",),
        inflation: Any = None,
        clip_skip: Any = None,
    ) -> None:
        """Raises a `ValueError` for what `__call__` cannot work with. Runs no model.

        Args:
            pixels (`torch.Tensor` of shape (clips, F, 3, H, W)): From [`~GroundAVideoPipeline.preprocess_video`].
            groundings (`list` of [`VideoGrounding`]): One a clip.
            size (`tuple[int, int]`): Height and width at which the clips are edited.
            has_flow, has_backward_flow (`bool`): Whether `flow` and `backward_flow` are given.
            others: As in [`~GroundAVideoPipeline.__call__`].
        """
        num_clips, num_frames = pixels.shape[:2]
        inverts = inverted is None and latents is None
        if inverted is not None and latents is not None:
            raise ValueError("`inverted` and `latents` both say where denoising starts: pass only one of them.")
        inversion = _InversionSettings(
            source_prompt,
            num_inference_steps,
            inversion_method if inverts else "ddim",
            num_null_text_steps,
            False,
            frame_batch_size,
        )
        self._check_inversion_inputs(pixels, groundings, inversion, guidance_scale, clip_skip, cross_attention_kwargs)
        if inverted is not None:
            clips = inverted if isinstance(inverted, list) else [inverted]
            if len(clips) != num_clips or not all(isinstance(clip, InvertedClip) for clip in clips):
                raise ValueError(f"`inverted` has to be one InvertedClip for each of {num_clips} clip(s).")
            methods = sorted({clip.inversion_method for clip in clips})
            if len(methods) != 1:
                raise ValueError(f"`inverted` has to hold clips of one inversion method, but holds {methods}.")
            method = methods[0]
        else:
            method = inversion_method if inverts else "ddim"

        if (prompt is None) == (prompt_embeds is None):
            raise ValueError("Exactly one of `prompt` and `prompt_embeds` has to be given.")
        if prompt is not None:
            check_texts(prompt, "prompt", num_clips)
        if negative_prompt is not None and negative_prompt_embeds is not None:
            raise ValueError("`negative_prompt` and `negative_prompt_embeds` were both given: pass only one of them.")
        if method != "ddim" and not (negative_prompt is None and negative_prompt_embeds is None):
            raise ValueError(
                f"`negative_prompt` and `negative_prompt_embeds` have no place with {method!r} inversion, which "
                "decides the unconditional branch itself: leave them out, or invert with 'ddim'."
            )
        if negative_prompt is not None:
            check_texts(negative_prompt, "negative_prompt", num_clips)
        channels = self.unet.config.cross_attention_dim
        if prompt_embeds is not None:
            check_finite_tensor(prompt_embeds, "prompt_embeds", (num_clips, None, channels))
        if negative_prompt_embeds is not None:
            check_finite_tensor(negative_prompt_embeds, "negative_prompt_embeds", (num_clips, None, channels))
        if phrase_embeds is not None:
            each = phrase_embeds if isinstance(phrase_embeds, list) else [phrase_embeds]
            if len(each) != num_clips:
                raise ValueError(
                    f"`phrase_embeds` has to hold one tensor a clip ({num_clips}), but holds {len(each)}."
                )
            for one, grounding in zip(each, groundings, strict=True):
                check_finite_tensor(one, "phrase_embeds", (len(grounding.objects), channels))
        if not self._can_encode_text and (prompt is not None or phrase_embeds is None or inverts):
            raise ValueError(
                "Without a text encoder and its tokenizer `prompt_embeds`, `phrase_embeds` and `inverted` or "
                "`latents` have to be given."
            )
        if not self._can_encode_text and method == "ddim" and guidance_scale > 1 and negative_prompt_embeds is None:
            raise ValueError(
                "Without a text encoder and its tokenizer `negative_prompt_embeds` has to be given for guidance."
            )

        check_number(num_videos_per_prompt, "num_videos_per_prompt", 1, integer=True)
        check_number(eta, "eta", 0, 1)
        check_number(gligen_scheduled_sampling_beta, "gligen_scheduled_sampling_beta", 0, 1)
        num_results = num_clips * num_videos_per_prompt
        if isinstance(generator, list) and len(generator) != num_results:
            raise ValueError(
                f"`generator` has to hold one a resulting clip ({num_results}), but holds {len(generator)}."
            )
        for one in generator if isinstance(generator, list) else [generator]:
            if generator is not None and not isinstance(one, torch.Generator):
                raise ValueError(
                    f"`generator` has to be a torch.Generator or a list of them, but is {type(one).__name__}."
                )
        if latents is not None:
            h, w = size[0] // self.vae_scale_factor, size[1] // self.vae_scale_factor
            shape = (num_results, num_frames, self.vae.config.latent_channels, h, w)
            check_finite_tensor(latents, "latents", shape)
        if has_flow and latents is not None:
            raise ValueError("`flow` smooths inverted latents, but `latents` are taken as they are: pass one of them.")
        if flow_threshold is not None:
            check_number(flow_threshold, "flow_threshold", 0, 1 if relative_flow_threshold else float("inf"))
        if has_backward_flow and (relative_flow_threshold or not has_flow):
            raise ValueError("`backward_flow` needs `flow` beside it, and an absolute threshold.")

        nets = len(self._controlnets)
        for name, value, low, high in (
            ("controlnet_conditioning_scale", controlnet_conditioning_scale, -math.inf, math.inf),
            ("control_guidance_start", control_guidance_start, 0, 1),
            ("control_guidance_end", control_guidance_end, 0, 1),
        ):
            if isinstance(value, list) and len(value) != nets:
                raise ValueError(f"`{name}` has to hold one number a ControlNet ({nets}), but holds {len(value)}.")
            for number in value if isinstance(value, list) else [value]:
                check_number(number, name, low, high)
        for start, end in zip(
            _one_a_net(control_guidance_start, nets), _one_a_net(control_guidance_end, nets), strict=True
        ):
            if start >= end:
                raise ValueError(f"`control_guidance_start` ({start}) has to be below `control_guidance_end` ({end}).")

        if inflation is not None and not isinstance(inflation, Inflation):
            raise ValueError(f"`inflation` has to be an Inflation, but is {type(inflation).__name__}.")
        if output_type not in get_args(OutputType):
            raise ValueError(f"`output_type` has to be one of {get_args(OutputType)}, but is {output_type!r}.")
        unknown = [name for name in callback_on_step_end_tensor_inputs if name not in self._callback_tensor_inputs]
        if unknown:
            raise ValueError(
                f"`callback_on_step_end_tensor_inputs` has to be in {self._callback_tensor_inputs}, but has {unknown}."
            )

    def _check_inversion_inputs(
        self,
        pixels: torch.Tensor,
        groundings: Sequence[Any],
        inversion: _InversionSettings,
        guidance_scale: Any,
        clip_skip: Any,
        cross_attention_kwargs: Any,
    ) -> None:
        """What `__call__` and `invert` both ask for."""
        num_clips, num_frames = pixels.shape[:2]
        method, steps = inversion.inversion_method, inversion.num_inference_steps
        if self.unet is None or self.scheduler is None or self.vae is None:
            raise ValueError("The pipeline needs its `unet`, `vae` and `scheduler`, but one of them is None.")
        if self.unet.config.attention_type != "gated":
            raise ValueError(
                "`unet` has to be a GLIGEN UNet with attention_type='gated', but has "
                f"{self.unet.config.attention_type!r}."
            )
        channels = self.vae.config.latent_channels
        if self.unet.config.in_channels not in (channels, 2 * channels + 1):
            raise ValueError(
                f"`unet` has to have {channels} input channels (GLIGEN generation) or {2 * channels + 1} (GLIGEN "
                f"inpainting), but has {self.unet.config.in_channels}."
            )
        if not isinstance(self.scheduler, DDIMScheduler) or self.scheduler.config.prediction_type != "epsilon":
            raise ValueError("`scheduler` has to be a DDIMScheduler with prediction_type='epsilon'.")
        if len(groundings) != num_clips or not all(isinstance(one, VideoGrounding) for one in groundings):
            raise ValueError(
                f"`grounding` has to be one VideoGrounding for each of {num_clips} clip(s) (VideoGrounding.from_dict "
                f"makes one of a dict), but is {[type(one).__name__ for one in groundings]}."
            )
        for one in groundings:
            one.frame_boxes(num_frames)
        if method not in get_args(InversionMethod):
            raise ValueError(f"`inversion_method` has to be one of {get_args(InversionMethod)}, but is {method!r}.")
        if inversion.source_prompt is not None:
            check_texts(inversion.source_prompt, "source_prompt", num_clips)
        elif method != "ddim":
            raise ValueError(f"`source_prompt` is needed to invert with {method!r}, but is None.")
        check_number(
            steps,
            "num_inference_steps",
            1,
            self.scheduler.config.num_train_timesteps,
            integer=True,
        )
        scheduler = copy.deepcopy(self.scheduler)
        scheduler.set_timesteps(steps)
        if (first := int(scheduler.timesteps[0])) >= self.scheduler.config.num_train_timesteps:
            raise ValueError(
                f"`num_inference_steps` is {steps}, with which the scheduler begins at timestep "
                f"{first}, but has only {self.scheduler.config.num_train_timesteps} of them."
            )
        check_number(inversion.num_null_text_steps, "num_null_text_steps", 1, integer=True)
        check_number(guidance_scale, "guidance_scale", 0)
        if method == "null-text" and guidance_scale <= 1:
            raise ValueError(
                f"`guidance_scale` has to be above 1 with 'null-text' inversion, but is {guidance_scale}."
            )
        if inversion.frame_batch_size is not None:
            check_number(inversion.frame_batch_size, "frame_batch_size", 1, integer=True)
        if clip_skip is not None and self.text_encoder is not None:
            check_number(clip_skip, "clip_skip", 0, self.text_encoder.config.num_hidden_layers, integer=True)
        if cross_attention_kwargs is not None and not isinstance(cross_attention_kwargs, dict):
            raise ValueError(
                f"`cross_attention_kwargs` has to be a dict, but is {type(cross_attention_kwargs).__name__}."
            )
        unknown = sorted(set(cross_attention_kwargs or {}) - {"scale"})
        if unknown:
            raise ValueError(f"`cross_attention_kwargs` may hold 'scale' (of LoRA layers) only, but holds {unknown}.")
        if cross_attention_kwargs:
            check_number(cross_attention_kwargs["scale"], "cross_attention_kwargs['scale']", -math.inf)

    @property
    def _can_encode_text(self) -> bool:
        return self.text_encoder is not None and self.tokenizer is not None

    def _check_inverted(
        self,
        inverted: list[InvertedClip],
        pixels: torch.Tensor,
        size: tuple[int, int],
        groundings: list[VideoGrounding],
        source_prompt: str | list[str] | None,
        num_inference_steps: int,
    ) -> None:
        """Raises a `ValueError` if a saved inversion is not the one that this call would make."""
        clips = _resize(pixels, *size)
        for index, (clip, grounding) in enumerate(zip(inverted, groundings, strict=True)):
            asked_for = self._inversion_key(
                clips[index],
                grounding,
                _nth(source_prompt, index),
                num_inference_steps,
                clip.inversion_method,
            )
            if clip.inversion_method == "null-text":
                asked_for["guidance_scale"] = self._guidance_scale
            check_key(clip.key, asked_for, "`inverted`")

    def _say_once(self, message: str) -> None:
        if message not in self._said:
            self._said.add(message)
            logger.warning(message)

    def _stage(self, name: str, total: int) -> Any:
        """A progress bar that names the stage."""
        bar = self.progress_bar(total=total)
        bar.set_description(name)
        return bar

    def encode_video(self, frames: torch.Tensor, frame_batch_size: int | None = None) -> torch.Tensor:
        """The clean latents of clips: the mean of the VAE's posterior, scaled.

        Args:
            frames (`torch.Tensor` of shape (clips, F, 3, H, W)): In [-1, 1], H and W divisible by the VAE's factor.
            frame_batch_size (`int`, *optional*): Frames a forward.

        Returns:
            `torch.Tensor` of shape (clips, F, C, h, w), float32.
        """
        flat = frames.flatten(0, 1)
        device = self._execution_device
        latents = [
            self.vae.encode(batch.to(device, self.vae.dtype)).latent_dist.mean.float()
            for batch in flat.split(frame_batch_size or len(flat))
        ]
        return (torch.cat(latents) * self.vae.config.scaling_factor).unflatten(0, frames.shape[:2])

    def decode_latents(self, latents: torch.Tensor, frame_batch_size: int | None = None) -> torch.Tensor:
        """Frames (clips, F, 3, H, W) in [-1, 1], float32, of latents (clips, F, C, h, w)."""
        flat = latents.flatten(0, 1) / self.vae.config.scaling_factor
        frames = [
            self.vae.decode(batch.to(self.vae.dtype)).sample.float()
            for batch in flat.split(frame_batch_size or len(flat))
        ]
        return torch.cat(frames).clamp(-1, 1).unflatten(0, latents.shape[:2])

    @staticmethod
    def paste_back(edited: torch.Tensor, source: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Takes every pixel that was not opened from the source.

        Args:
            edited, source (`torch.Tensor` of shape (clips, F, 3, H, W)): In the same range.
            mask (`torch.Tensor` of shape (clips, F, 1, h, w)): At latent size, 0 where open; upsampled nearest.

        Returns:
            `torch.Tensor` of shape (clips, F, 3, H, W).
        """
        kept = F.interpolate(mask.flatten(0, 1), edited.shape[-2:], mode="nearest-exact").bool().to(edited.device)
        return torch.where(kept.unflatten(0, mask.shape[:2]), source.to(edited.device), edited)

    def encode_prompt(
        self,
        prompt: str | list[str] | None,
        device: torch.device,
        num_videos_per_prompt: int,
        do_classifier_free_guidance: bool,
        negative_prompt: str | list[str] | None = None,
        prompt_embeds: torch.Tensor | None = None,
        negative_prompt_embeds: torch.Tensor | None = None,
        lora_scale: float | None = None,
        clip_skip: int | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        r"""Encodes the prompt into text encoder hidden states.

        Args:
            prompt (`str` or `list[str]`, *optional*): One a clip.
            device (`torch.device`): Where the embeddings go.
            num_videos_per_prompt (`int`): How often each is repeated.
            do_classifier_free_guidance (`bool`): Whether to encode the negative prompt.
            negative_prompt (`str` or `list[str]`, *optional*): One a clip; the empty prompt by default.
            prompt_embeds, negative_prompt_embeds (`torch.Tensor` of shape (clips, tokens, channels), *optional*): In
                place of encoding.
            lora_scale (`float`, *optional*): Scale of the text encoder's LoRA layers.
            clip_skip (`int`, *optional*): Layers of the text encoder to skip; 1 takes the output of the one before the
                last.

        Returns:
            Two `torch.Tensor` of shape (clips * num_videos_per_prompt, tokens, channels): of the prompt, and of the
            negative prompt (`None` without guidance).
        """
        if prompt_embeds is None:
            assert prompt is not None
            prompt_embeds = self._encode_text(prompt, lora_scale, clip_skip)[0]
        if do_classifier_free_guidance and negative_prompt_embeds is None:
            if negative_prompt is None:
                negative_prompt = [""] * len(prompt_embeds)
            negative_prompt_embeds = self._encode_text(negative_prompt, lora_scale, clip_skip)[0]
        prompt_embeds = prompt_embeds.to(device).repeat_interleave(num_videos_per_prompt, dim=0)
        if not do_classifier_free_guidance or negative_prompt_embeds is None:
            return prompt_embeds, None
        return prompt_embeds, negative_prompt_embeds.to(device).repeat_interleave(num_videos_per_prompt, dim=0)

    def _encode_text(
        self, texts: str | list[str], lora_scale: float | None = None, clip_skip: int | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Hidden states (texts, tokens, channels) and pooled output (texts, channels) of the text encoder."""
        texts = [texts] if isinstance(texts, str) else texts
        texts = self.maybe_convert_prompt(texts, self.tokenizer)
        tokens = self.tokenizer(
            texts,
            padding="max_length",
            max_length=self.tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        )
        untruncated = self.tokenizer(texts).input_ids
        for text, ids in zip(texts, untruncated, strict=True):
            if len(ids) > self.tokenizer.model_max_length:
                removed = self.tokenizer.decode(ids[self.tokenizer.model_max_length - 1 : -1])
                logger.warning(f"CLIP sees {self.tokenizer.model_max_length} tokens; cut off {text!r}: {removed!r}.")
        with _lora_scaled(self.text_encoder, lora_scale):
            uses_mask = getattr(self.text_encoder.config, "use_attention_mask", False)
            encoded = self.text_encoder(
                tokens.input_ids.to(self._execution_device),
                attention_mask=tokens.attention_mask.to(self._execution_device) if uses_mask else None,
                output_hidden_states=clip_skip is not None,
            )
        if clip_skip is None:
            return encoded.last_hidden_state, encoded.pooler_output
        skipped = encoded.hidden_states[-(clip_skip + 1)]
        return self.text_encoder.final_layer_norm(skipped), encoded.pooler_output

    def encode_grounding(
        self,
        grounding: VideoGrounding,
        num_frames: int,
        side: Literal["source", "target"] = "target",
        phrase_embeds: torch.Tensor | None = None,
        lora_scale: float | None = None,
    ) -> dict[str, torch.Tensor]:
        r"""The inputs of GLIGEN's position net for one clip (GLIGEN, section 3.1).

        A phrase is the pooled output of the text encoder. An object without a phrase on this side, or out of the
        frame, has no grounding token.

        Args:
            grounding ([`VideoGrounding`]): The objects.
            num_frames (`int`): Frames of the clip.
            side (`str`): `"source"` for the phrases before the edit, `"target"` for those after it.
            phrase_embeds (`torch.Tensor` of shape (N, channels), *optional*): In place of encoding the phrases.
            lora_scale (`float`, *optional*): Scale of the text encoder's LoRA layers.

        Returns:
            `dict` with `boxes` (F, 30, 4), normalised xyxy, `masks` (F, 30) and `positive_embeddings` (F, 30,
            channels).
        """
        boxes, present = grounding.frame_boxes(num_frames)
        phrases = grounding.phrases(side)
        if phrase_embeds is None:
            phrase_embeds = self._encode_text([phrase or "" for phrase in phrases], lora_scale)[1]
        present = present & torch.tensor([phrase is not None for phrase in phrases])
        return position_net_inputs(boxes, present, phrase_embeds.to(self._execution_device))

    def prepare_latents(
        self,
        inverted: list[InvertedClip],
        flow: list[torch.Tensor] | None = None,
        backward_flow: list[torch.Tensor] | None = None,
        flow_threshold: float | None = None,
        relative_flow_threshold: bool = False,
    ) -> torch.Tensor:
        """The inverted latents, smoothed where the clip stands still: (clips, F, C, h, w), float32.

        Args:
            inverted (`list[InvertedClip]`): The clips.
            flow, backward_flow (`list` of `torch.Tensor` of shape (F - 1, 2, H', W'), *optional*): In pixels of their
                own grid; without `flow` nothing is smoothed.
            flow_threshold (`float`, *optional*): In latent cells (by default 0.25), or relative (by default 0.2).
            relative_flow_threshold (`bool`): Which of the two.
        """
        latents = [clip.noise_latents for clip in inverted]
        if flow is None:
            return torch.stack(latents)
        smoothed = []
        for index, clip in enumerate(latents):
            height, width = clip.shape[-2:]
            if relative_flow_threshold:
                threshold = 0.2 if flow_threshold is None else flow_threshold
                moving = relative_motion_mask(flow[index], height, width, threshold)
            else:
                threshold = 0.25 if flow_threshold is None else flow_threshold
                opposite = None if backward_flow is None else backward_flow[index]
                moving = absolute_motion_mask(flow[index], height, width, threshold, opposite)
            smoothed.append(smooth_latents(clip, moving.to(clip.device)))
        return torch.stack(smoothed)

    def predict_noise(
        self,
        latents: torch.Tensor,
        timestep: torch.Tensor | int,
        text: torch.Tensor,
        gligen: dict[str, torch.Tensor] | None = None,
        inpainting: torch.Tensor | None = None,
        conditioning_frames: list[torch.Tensor] | None = None,
        conditioning_scale: list[float] | None = None,
    ) -> torch.Tensor:
        """The noise that UNet and ControlNets predict in one branch. What is not passed does not act.

        Args:
            latents (`torch.Tensor` of shape (n, C, h, w)): Noisy latents, frame-major.
            timestep (`int`): Their timestep.
            text (`torch.Tensor` of shape (texts, tokens, channels)): Of this branch: one a frame with the plain UNet,
                also one a clip while [`inflated`].
            gligen (`dict`, *optional*): Inputs of the position net, (n, ...) each. `None`: the gate is off.
            inpainting (`torch.Tensor` of shape (n, C + 1, h, w), *optional*): Masked source latents and mask, for a
                9-channel UNet.
            conditioning_frames (`list` of `torch.Tensor` of shape (n, 3, H, W), *optional*): One a ControlNet.
            conditioning_scale (`list[float]`, *optional*): One a ControlNet.

        Returns:
            `torch.Tensor` of shape (n, C, h, w), float32.
        """
        residuals = {}
        if conditioning_frames is not None and conditioning_scale is not None:
            several = isinstance(self.controlnet, MultiControlNetModel)
            down, mid = self.controlnet(
                latents.to(self.controlnet.dtype),
                timestep,
                encoder_hidden_states=text.to(self.controlnet.dtype),
                controlnet_cond=conditioning_frames if several else conditioning_frames[0],
                conditioning_scale=conditioning_scale if several else conditioning_scale[0],
                return_dict=False,
            )
            residuals["down_block_additional_residuals"] = [sample.to(self.unet.dtype) for sample in down]
            residuals["mid_block_additional_residual"] = mid.to(self.unet.dtype)
        sample = latents if inpainting is None else torch.cat([latents, inpainting], dim=1)
        attention_kwargs = {}
        if gligen is not None:
            attention_kwargs["gligen"] = {name: value.to(self.unet.dtype) for name, value in gligen.items()}
        return self.unet(
            sample.to(self.unet.dtype),
            timestep,
            encoder_hidden_states=text.to(self.unet.dtype),
            cross_attention_kwargs=attention_kwargs,
            **residuals,
        ).sample.float()

    def denoise(
        self,
        latents: torch.Tensor,
        source_latents: torch.Tensor,
        mask: torch.Tensor,
        prompt_embeds: torch.Tensor,
        negative_prompt_embeds: torch.Tensor | None,
        gligen: dict[str, torch.Tensor],
        num_inference_steps: int = 50,
        guidance_scale: float = 12.5,
        eta: float = 0.0,
        generator: torch.Generator | list[torch.Generator] | None = None,
        blend_noise: torch.Tensor | None = None,
        conditioning_frames: list[torch.Tensor] | None = None,
        controlnet_conditioning_scale: float | list[float] = 1.0,
        control_guidance_start: float | list[float] = 0.0,
        control_guidance_end: float | list[float] = 1.0,
        gligen_scheduled_sampling_beta: float = 1.0,
        inflation: Inflation | None = None,
        callback_on_step_end: Callable[[DiffusionPipeline, int, int, dict], dict] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
    ) -> torch.Tensor:
        r"""Denoises clips, all frames of a clip together (Ground-A-Video, sections 3.2, 3.3 and 3.5).

        Args:
            latents (`torch.Tensor` of shape (clips, F, C, h, w)): Where denoising starts.
            source_latents (`torch.Tensor` of shape (clips, F, C, h, w)): Clean latents of the source.
            mask (`torch.Tensor` of shape (clips, F, 1, h, w)): 1 keeps the source, 0 is open.
            prompt_embeds (`torch.Tensor` of shape (clips, tokens, channels)): Of the edit prompt.
            negative_prompt_embeds (`torch.Tensor`, *optional*): For the unconditional branch: (clips, tokens,
                channels), or the null embeddings of every step and frame, (S, clips, F, tokens, channels).
            gligen (`dict`): Inputs of the position net, (clips, F, ...) each, as of [`encode_grounding`].
            blend_noise (`torch.Tensor` of shape (S, clips, F, C, h, w), *optional*): The noise on the source at every
                step, in place of drawing it with `generator`.
            conditioning_frames (`list` of `torch.Tensor` of shape (clips, F, 3, H, W), *optional*): In [0, 1], one a
                ControlNet.
            others: As in [`~GroundAVideoPipeline.__call__`].

        Returns:
            `torch.Tensor` of shape (clips, F, C, h, w), float32: the edited latents.
        """
        self._guidance_scale = guidance_scale
        inflation = Inflation() if inflation is None else inflation
        # A copy, since setting the timesteps would leave its mark on the shared scheduler.
        scheduler = copy.deepcopy(self.scheduler)
        scheduler.set_timesteps(num_inference_steps)
        self._num_timesteps = len(scheduler.timesteps)
        num_frames, device, nets = latents.shape[1], latents.device, len(self._controlnets)
        scales = _one_a_net(controlnet_conditioning_scale, nets)
        starts, ends = _one_a_net(control_guidance_start, nets), _one_a_net(control_guidance_end, nets)
        num_grounded_steps = int(gligen_scheduled_sampling_beta * self._num_timesteps)

        inpainting = None
        if self.unet.config.in_channels != latents.shape[2]:
            inpainting = torch.cat([source_latents * mask, mask], dim=2).flatten(0, 1)
        grounding_tokens = {name: value.flatten(0, 1) for name, value in gligen.items()}
        null_grounding_tokens = {name: torch.zeros_like(value) for name, value in grounding_tokens.items()}
        if conditioning_frames is not None:
            conditioning_frames = [c.flatten(0, 1).to(device, self.controlnet.dtype) for c in conditioning_frames]

        with (
            _lora_scaled(self.unet, (self.cross_attention_kwargs or {}).get("scale")),
            inflated(self.unet, self._controlnets, num_frames, inflation),
            self._stage("Denoising", self._num_timesteps) as progress_bar,
        ):
            for i, t in enumerate(scheduler.timesteps):
                if self.interrupt:
                    continue

                # Outside the mask, the source at this noise level.
                noise = self._draw_noise(latents, generator) if blend_noise is None else blend_noise[i]
                noisy_source = scheduler.add_noise(source_latents, noise, t)
                latents = mask * noisy_source + (1 - mask) * latents

                share = i / self._num_timesteps, (i + 1) / self._num_timesteps
                conditioning_scale = [
                    scale if share[0] >= start and share[1] <= end else 0.0
                    for scale, start, end in zip(scales, starts, ends, strict=True)
                ]
                branch: dict[str, Any] = {
                    "inpainting": inpainting,
                    "conditioning_frames": conditioning_frames if any(conditioning_scale) else None,
                    "conditioning_scale": conditioning_scale,
                }
                grounded = i < num_grounded_steps
                flat = latents.flatten(0, 1)
                noise_pred = self.predict_noise(
                    flat, t, prompt_embeds, grounding_tokens if grounded else None, **branch
                )
                if self.do_classifier_free_guidance:
                    noise_pred_uncond = self.predict_noise(
                        flat,
                        t,
                        _unconditional_text(negative_prompt_embeds, i, inflation),
                        null_grounding_tokens if grounded else None,
                        **branch,
                    )
                    noise_pred = noise_pred_uncond + self.guidance_scale * (noise_pred - noise_pred_uncond)
                variance_noise = self._draw_noise(latents, generator).flatten(0, 1) if eta > 0 else None
                stepped = scheduler.step(noise_pred, t, flat, eta=eta, variance_noise=variance_noise).prev_sample
                latents = stepped.unflatten(0, latents.shape[:2])

                if callback_on_step_end is not None:
                    tensors: dict[str, Any] = {
                        "latents": latents,
                        "prompt_embeds": prompt_embeds,
                        "negative_prompt_embeds": negative_prompt_embeds,
                    }
                    callback_kwargs = {name: tensors[name] for name in callback_on_step_end_tensor_inputs}
                    tensors |= callback_on_step_end(self, i, t, callback_kwargs)
                    latents, prompt_embeds = tensors["latents"], tensors["prompt_embeds"]
                    negative_prompt_embeds = tensors["negative_prompt_embeds"]
                progress_bar.update()
        return latents

    @staticmethod
    def _draw_noise(latents: torch.Tensor, generator: torch.Generator | list[torch.Generator] | None) -> torch.Tensor:
        return randn_tensor(latents.shape, generator=generator, device=latents.device, dtype=latents.dtype)

    def _null_embeddings(self, inverted: list[InvertedClip], num_videos_per_prompt: int) -> torch.Tensor:
        """What inversion left for the unconditional branch, in the form that `denoise` takes."""
        per_clip = [clip.null_embeddings for clip in inverted if clip.null_embeddings is not None]
        embeddings = torch.stack(per_clip, dim=1).to(self._execution_device)
        embeddings = embeddings.repeat_interleave(num_videos_per_prompt, dim=1)
        return embeddings[0, :, 0] if inverted[0].inversion_method == "negative-prompt" else embeddings

    def _invert_clips(
        self,
        pixels: torch.Tensor,
        size: tuple[int, int],
        groundings: list[VideoGrounding],
        inversion: _InversionSettings,
        checkpoint_dir: str | None = None,
    ) -> list[InvertedClip]:
        """Clip by clip, so that a clip's inversion never depends on what else is in the batch."""
        inverted = []
        for index, (frames, grounding) in enumerate(zip(_resize(pixels, *size), groundings, strict=True)):
            own = replace(inversion, source_prompt=_nth(inversion.source_prompt, index))
            key = self._inversion_key(
                frames, grounding, own.source_prompt, own.num_inference_steps, own.inversion_method
            )
            if own.inversion_method == "null-text":
                key |= {"guidance_scale": self._guidance_scale, "num_null_text_steps": own.num_null_text_steps}
            folder = checkpoint_dir
            if checkpoint_dir is not None and len(pixels) > 1:
                folder = f"{checkpoint_dir}/clip-{index:03d}"
            inverted.append(self._invert_clip(frames, grounding, own, key, StepCheckpoint(folder, key)))
        return inverted

    def _invert_clip(
        self,
        frames: torch.Tensor,
        grounding: VideoGrounding,
        inversion: _InversionSettings,
        key: dict[str, Any],
        checkpoint: StepCheckpoint,
    ) -> InvertedClip:
        """Inverts one clip, (F, 3, height, width) in [-1, 1], with the plain UNet."""
        lora_scale = (self.cross_attention_kwargs or {}).get("scale")
        num_inference_steps, frame_batch_size = inversion.num_inference_steps, inversion.frame_batch_size
        grid = DDIMGrid.from_scheduler(copy.deepcopy(self.scheduler), num_inference_steps)
        latents = self.encode_video(frames[None], frame_batch_size)[0]
        mask = grounding.inversion_mask(len(frames), *latents.shape[-2:]).to(latents.device)
        gligen = self.encode_grounding(grounding, len(frames), "source", lora_scale=lora_scale)
        inpainting = None
        if self.unet.config.in_channels != latents.shape[1]:
            inpainting = torch.cat([latents * mask, mask], dim=1)

        def predict_noise(z: torch.Tensor, t: int, text: torch.Tensor, which: torch.Tensor) -> torch.Tensor:
            which = which.to(z.device)
            tokens = {name: value[which] for name, value in gligen.items()}
            return self.predict_noise(z, t, text, tokens, None if inpainting is None else inpainting[which])

        texts = [inversion.source_prompt or "", ""]
        source_text, empty_text = self._encode_text(texts, lora_scale, self.clip_skip)[0]
        text = source_text if inversion.inversion_method == "negative-prompt" else empty_text
        with _lora_scaled(self.unet, lora_scale), self._stage("DDIM inversion", num_inference_steps) as bar:
            trajectory = ddim_inversion(predict_noise, latents, text, grid, frame_batch_size, checkpoint, bar.update)
        null_embeddings = None
        if inversion.inversion_method == "negative-prompt":
            null_embeddings = source_text.float()[None, None]
        elif inversion.inversion_method == "null-text":
            with (
                # Around the whole, for a backward pass may compute activations again.
                _lora_scaled(self.unet, lora_scale),
                differentiable_in_inputs_only(self.unet, inversion.gradient_checkpointing),
                self._stage("Null-text optimization", num_inference_steps) as bar,
            ):
                null_embeddings = null_text_optimization(
                    predict_noise,
                    trajectory,
                    source_text,
                    empty_text,
                    grid,
                    self._guidance_scale,
                    inversion.num_null_text_steps,
                    batch_size=frame_batch_size,
                    checkpoint=checkpoint,
                    on_step=bar.update,
                )
        return InvertedClip(trajectory, null_embeddings, key)

    def _inversion_key(
        self,
        frames: torch.Tensor,
        grounding: VideoGrounding,
        source_prompt: str | None,
        num_inference_steps: int,
        inversion_method: str,
    ) -> dict[str, Any]:
        """What the inversion of a clip, (F, 3, height, width) in [-1, 1], depends on: never the target of an edit."""
        num_frames, _, height, width = frames.shape
        boxes, present = grounding.frame_boxes(num_frames)
        grid = DDIMGrid.from_scheduler(copy.deepcopy(self.scheduler), num_inference_steps)
        models = {"vae": self.vae, "text_encoder": self.text_encoder, "unet": self.unet}
        key = {
            "video": tensor_hash(frames),
            "num_frames": num_frames,
            "height": height,
            "width": width,
            "inversion_method": inversion_method,
            "source_phrases": grounding.phrases("source"),
            "boxes": [[box.tolist() if there else None for box, there in zip(*f)] for f in zip(boxes, present)],
            "timesteps": grid.timesteps,
            "alphas": tensor_hash(torch.cat([grid.alphas, grid.previous_alphas])),
            "lora_scale": (self.cross_attention_kwargs or {}).get("scale"),
            "clip_skip": self.clip_skip,
        }
        # A pipeline that was given embeddings instead of a text encoder cannot say whose they are.
        key |= {name: model_fingerprint(model) for name, model in models.items() if model is not None}
        if source_prompt is not None and inversion_method != "ddim":
            key["source_prompt"] = source_prompt
        return key


@contextmanager
def _lora_scaled(model: torch.nn.Module, scale: float | None) -> Iterator[None]:
    """The LoRA layers of `model` at `scale`, and afterwards exactly as they were.

    diffusers would divide the scale out again, which leaves rounding errors, and the weight of an adapter lost if the
    scale is 0: the model would be another one than its clips were inverted with.
    """
    layers: list[Any] = [m for m in model.modules() if hasattr(m, "scale_layer") and hasattr(m, "scaling")]
    found = [dict(layer.scaling) for layer in layers]
    try:
        for layer in layers if scale is not None else []:
            layer.scale_layer(scale)
        yield
    finally:
        for layer, scaling in zip(layers, found):
            layer.scaling.update(scaling)


def _unconditional_text(negative_prompt_embeds: torch.Tensor | None, step: int, inflation: Inflation) -> torch.Tensor:
    """The text of the unconditional branch: (clips, tokens, channels), or (clips * F, ...) for one a frame."""
    assert negative_prompt_embeds is not None
    if negative_prompt_embeds.ndim == 3:
        return negative_prompt_embeds
    null_embeddings = negative_prompt_embeds[step]
    return modulated_text(null_embeddings) if inflation.modulated_cross_attention else null_embeddings.flatten(0, 1)


def _resize(frames: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Frames (clips, F, 3, H, W) at another size, bicubic with antialiasing; as they are if they have it already."""
    if frames.shape[-2:] == (height, width):
        return frames
    resized = F.interpolate(frames.flatten(0, 1), (height, width), mode="bicubic", antialias=True, align_corners=False)
    return resized.clamp(-1, 1).unflatten(0, frames.shape[:2])


def _as_groundings(grounding: Any) -> list[VideoGrounding]:
    each = grounding if isinstance(grounding, list) else [grounding]
    try:
        return [VideoGrounding.from_dict(one) if isinstance(one, dict) else one for one in each]
    except ValueError as error:
        raise ValueError(f"`grounding`: {error}") from error


def _one_a_net(value: float | list[float], nets: int) -> list[float]:
    return value if isinstance(value, list) else [value] * nets


def _nth(texts: str | list[str] | None, index: int) -> str | None:
    return texts[index] if isinstance(texts, list) else texts
