"""Flicker where the source stands still."""

import math

import numpy as np

from ..video import check_frames
from .inputs import check_mask


# Of a flow that is estimated, what stands still has this little, in pixels.
MAX_STILL_MOTION = 0.5


def static_region(forward_flow: np.ndarray, occluded: np.ndarray, max_motion: float = MAX_STILL_MOTION) -> np.ndarray:
    """The pixels that stand still throughout a clip: they never move and are never covered.

    Args:
        forward_flow: (F - 1, 2, H, W) pixels (dx, dy), of the source.
        occluded: (F - 1, H, W) bool, pixels of frame t that frame t + 1 does not show.
        max_motion: pixels between two frames up to which a pixel stands still.

    Returns:
        (F, H, W) bool, the same in all frames.

    Raises:
        ValueError: flow or occlusion of another form.

    >>> import numpy as np
    >>> flow = np.zeros((2, 2, 4, 4), dtype=np.float32)
    >>> flow[1, 0, :, 0] = 3
    >>> static_region(flow, np.zeros((2, 4, 4), dtype=bool))[2, 0].tolist()
    [False, True, True, True]
    """
    if forward_flow.ndim != 4 or forward_flow.shape[1] != 2:
        raise ValueError(f"`forward_flow` has to be of shape (F - 1, 2, H, W), but is {forward_flow.shape}.")
    check_mask(occluded, (len(forward_flow), *forward_flow.shape[2:]), "occluded")
    still = (np.linalg.norm(forward_flow, axis=1) <= max_motion) & ~occluded
    return np.repeat(still.all(axis=0)[None], len(forward_flow) + 1, axis=0)


def static_flicker(frames: np.ndarray, static_region: np.ndarray) -> float:
    """Mean absolute change from frame to frame where the source stands still.

    `mean |V[t+1] - V[t]|` over channels and over all pixels that are static in frame t and in frame t + 1, in all
    pairs of frames together. V is in [0, 1] (units of 255). Noise of the source counts too: compare with the source's
    own value.

    Args:
        frames: (F, H, W, 3) uint8, edited.
        static_region: (F, H, W) bool, what stands still in the source, as [`static_region`] finds it.

    Returns:
        In [0, 1], 0 for none; NaN for a single frame, or if nothing stands still.

    Raises:
        ValueError: frames or region of another form.

    Source: the temporal flickering of VBench (Huang et al., CVPR 2024, arXiv:2311.17982), which takes static clips, on
    static regions.

    >>> import numpy as np
    >>> frames = np.zeros((3, 4, 4, 3), dtype=np.uint8)
    >>> frames[1] = 51
    >>> static_flicker(frames, np.ones((3, 4, 4), dtype=bool))
    0.2
    """
    check_frames(frames)
    check_mask(static_region, frames.shape[:3], "static_region")
    both = static_region[1:] & static_region[:-1]
    if not both.any():
        return math.nan
    change = np.abs(frames[1:][both].astype(np.float64) - frames[:-1][both])
    return float(change.mean() / 255)
