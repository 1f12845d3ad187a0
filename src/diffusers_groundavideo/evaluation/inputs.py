"""What the metrics take: checked forms, and the regions that boxes cover."""

from collections.abc import Sequence

import numpy as np
import torch

from ..grounding import GroundedObject
from ..video import check_frames


def check_pair(a: np.ndarray, b: np.ndarray, names: tuple[str, str] = ("a", "b")) -> None:
    """Raises a `ValueError` if the two are not clips of one shape."""
    check_frames(a, names[0])
    check_frames(b, names[1])
    if a.shape != b.shape:
        raise ValueError(f"`{names[0]}` and `{names[1]}` have to be of one shape, but are {a.shape} and {b.shape}.")


def check_mask(mask: np.ndarray, shape: tuple[int, ...], name: str = "region") -> None:
    """Raises a `ValueError` if the mask is not boolean and of that shape."""
    if mask.dtype != np.bool_ or mask.shape != shape:
        raise ValueError(f"`{name}` has to be bool of shape {shape}, but is {mask.dtype} of shape {mask.shape}.")


def compared_region(a: np.ndarray, b: np.ndarray, region: np.ndarray | None) -> np.ndarray:
    """The pixels that count when two clips are compared, (F, H, W) bool: `region`, or all of them.

    Raises:
        `ValueError`: If the two are not clips of one shape, or the region is not boolean and of theirs.
    """
    check_pair(a, b)
    if region is None:
        return np.ones(a.shape[:3], dtype=bool)
    check_mask(region, a.shape[:3])
    return region


def check_boxes(boxes: np.ndarray, num_frames: int, num_objects: int | None = None) -> None:
    """Raises a `ValueError` if the boxes are not (num_frames, N, 4), with `num_objects` of them if that is given, or
    if one is neither NaN nor `0 <= x0 < x1 <= 1`, `0 <= y0 < y1 <= 1`."""
    if boxes.ndim != 3 or boxes.shape[0] != num_frames or boxes.shape[2] != 4:
        raise ValueError(f"`boxes` has to be of shape ({num_frames}, N, 4), but is {boxes.shape}.")
    if num_objects is not None and boxes.shape[1] != num_objects:
        raise ValueError(f"`boxes` has to hold one object for each of {num_objects}, but is of shape {boxes.shape}.")
    present = boxes[~np.isnan(boxes).any(axis=-1)]
    if not ((present >= 0) & (present <= 1)).all() or not (present[:, :2] < present[:, 2:]).all():
        raise ValueError("`boxes` has to be xyxy with 0 <= x0 < x1 <= 1 and 0 <= y0 < y1 <= 1, or NaN where absent.")


def box_region(boxes: np.ndarray, height: int, width: int) -> np.ndarray:
    """The pixels that boxes reach into.

    Args:
        boxes: (F, N, 4) xyxy in [0, 1], NaN where absent.
        height, width: of the frames.

    Returns:
        (F, height, width) bool, the union over the N objects.
    """
    region = np.zeros((len(boxes), height, width), dtype=bool)
    for of_object in boxes.transpose(1, 0, 2):
        frame_boxes = [None if np.isnan(box).any() else box.tolist() for box in of_object]
        placed = GroundedObject("object", None, boxes=frame_boxes)
        region |= placed.region(len(boxes), height, width).numpy()
    return region


def to_images(frames: np.ndarray) -> torch.Tensor:
    """(F, H, W, 3) uint8 to (F, 3, H, W) float32 in [0, 1]."""
    return torch.from_numpy(frames).movedim(-1, 1).float() / 255


def pasted_outside(a: np.ndarray, b: np.ndarray, region: np.ndarray) -> np.ndarray:
    """`b` where the region is, `a` elsewhere: what differs from `a` differs within the region."""
    return np.where(region[..., None], b, a)


def check_phrases(phrases: Sequence[str | None], name: str) -> None:
    """Raises a `ValueError` if it is a single string, which would be taken for its letters."""
    if isinstance(phrases, str):
        raise ValueError(f"`{name}` has to be a list with one entry an object, but is the string {phrases!r}.")
