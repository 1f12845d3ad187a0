"""From what a user passes to tensors, with errors that say what came and what was expected."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import PIL.Image
import torch
from diffusers.video_processor import VideoProcessor


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
