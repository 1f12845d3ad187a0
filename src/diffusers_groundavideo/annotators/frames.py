"""The frames that annotators take."""

from collections.abc import Sequence

import numpy as np
from PIL import Image


Frames = np.ndarray | Sequence[Image.Image]

# Below this nothing can be told apart, and models take three columns of pixels for the colours.
MIN_SIDE = 8


def frames_to_array(frames: Frames) -> np.ndarray:
    """Frames of one clip as an array.

    Args:
        frames: (F, H, W, 3) uint8 RGB, or a list of F images of mode "RGB" and of one size; F >= 1, H and W >= 8.

    Returns:
        `np.ndarray` of shape (F, H, W, 3), uint8 RGB, in one piece in memory.

    Raises:
        `ValueError`: If there is no frame, if frames are grey, have transparency, are not 8-bit, are of several sizes,
            or are smaller than 8 pixels a side.
    """
    if not isinstance(frames, np.ndarray):
        modes = sorted({frame.mode if isinstance(frame, Image.Image) else type(frame).__name__ for frame in frames})
        if modes != ["RGB"]:
            raise ValueError(
                f"`frames` has to be an array (F, H, W, 3) or a list of RGB images, at least one, but holds {modes}: "
                'convert them with `image.convert("RGB")`.'
            )
        sizes = sorted({frame.size for frame in frames})
        if len(sizes) > 1:
            raise ValueError(f"`frames` has to hold images of one size, but has the (width, height) {sizes}.")
        frames = np.stack([np.asarray(frame) for frame in frames])
    if frames.ndim != 4 or frames.shape[3] != 3 or frames.dtype != np.uint8 or not len(frames):
        raise ValueError(
            "`frames` has to be uint8 RGB of shape (F, H, W, 3) with at least one frame (grey has to be repeated, "
            f"transparency dropped), but is {frames.dtype} of shape {frames.shape}."
        )
    if min(frames.shape[1:3]) < MIN_SIDE:
        raise ValueError(
            f"`frames` has to be at least {MIN_SIDE} pixels high and wide, but is of (height, width) "
            f"{frames.shape[1:3]}."
        )
    # PyTorch takes no view that runs backwards, as `bgr[..., ::-1]` does.
    return np.ascontiguousarray(frames)
