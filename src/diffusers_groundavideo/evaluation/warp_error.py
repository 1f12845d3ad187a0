"""Temporal consistency along the motion of the source."""

import math

import numpy as np
import torch
import torch.nn.functional as F

from ..video import check_frames
from .inputs import check_mask, to_images


def warp_error(frames: np.ndarray, forward_flow: np.ndarray, occluded: np.ndarray) -> float:
    """How much a clip changes along the motion of its source.

    `E(t) = sum over visible x of |V[t](x) - V[t+1](x + flow[t](x))|^2 / (3 * number of visible x)`, averaged over the
    pairs of frames that have a visible pixel. V is in [0, 1] (units of 255), x + flow is read bilinearly. A pixel of
    frame t is visible if it is not occluded and x + flow lies in the frame: from the centre of the first to that of
    the last pixel. The flow is the source's: an edit that follows the source's motion has no error but that of
    resampling, whatever it looks like, and one that froze has.

    Args:
        frames: (F, H, W, 3) uint8, edited.
        forward_flow: (F - 1, 2, H, W) pixels (dx, dy) from frame t to t + 1, of the source, on the same grid.
        occluded: (F - 1, H, W) bool, pixels of frame t that the source does not show in frame t + 1: exact, or where
            flow forth and back do not agree, as [`ClipFlow.forward_occlusion`] finds.

    Returns:
        Raw, in [0, 1]; papers print it times 1000. NaN for a single frame, or if no pixel is visible.

    Raises:
        ValueError: frames, flow or occlusion of another form.

    Source: Lai et al., "Learning Blind Video Temporal Consistency", ECCV 2018 (there the squared error is
    summed over the channels, three times as much), with the source's flow as in FLATTEN, arXiv:2310.05922.

    >>> import numpy as np
    >>> ramp = np.arange(0, 160, 10, dtype=np.uint8)
    >>> frames = np.stack([np.tile(ramp[4 - t : 12 - t, None], (8, 1, 3)) for t in range(3)])  # moves right by 1
    >>> flow = np.zeros((2, 2, 8, 8), dtype=np.float32)
    >>> seen = np.zeros((2, 8, 8), dtype=bool)
    >>> round(warp_error(frames, flow, seen) * 255**2, 3)
    100.0
    >>> flow[:, 0] = 1
    >>> warp_error(frames, flow, seen)
    0.0
    """
    check_frames(frames)
    num_pairs, height, width = len(frames) - 1, *frames.shape[1:3]
    if forward_flow.shape != (num_pairs, 2, height, width):
        raise ValueError(
            f"`forward_flow` has to be of shape {(num_pairs, 2, height, width)}, but is {forward_flow.shape}."
        )
    check_mask(occluded, (num_pairs, height, width), "occluded")
    if not num_pairs:
        return math.nan
    # In float64: float32 coordinates would miss pixel centres by enough to blur what moves by whole pixels.
    images = to_images(frames).double()
    flow = torch.from_numpy(np.ascontiguousarray(forward_flow, dtype=np.float64))
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    target_x, target_y = x + flow[:, 0], y + flow[:, 1]
    visible = (target_x >= 0) & (target_x <= width - 1) & (target_y >= 0) & (target_y <= height - 1)
    visible &= ~torch.from_numpy(occluded)
    # grid_sample's coordinates with align_corners=False: pixel centres at (2 i + 1) / size - 1.
    grid = torch.stack([(2 * target_x + 1) / width - 1, (2 * target_y + 1) / height - 1], dim=-1)
    warped = F.grid_sample(images[1:], grid, padding_mode="border", align_corners=False)
    error = (images[:-1] - warped).square().mean(dim=1)
    count = visible.sum(dim=(1, 2))
    if not count.any():
        return math.nan
    per_pair = torch.where(visible, error, 0.0).sum(dim=(1, 2))[count > 0] / count[count > 0]
    return per_pair.mean().item()
