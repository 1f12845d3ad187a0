"""A clip of a camera that moves sideways past a real scene, with its exact flow."""

from dataclasses import dataclass

import numpy as np
import skimage.data


# Neighbours whose disparities differ by more belong to two surfaces.
SURFACE_GAP = 1.0


@dataclass(frozen=True, eq=False)
class ParallaxClip:
    """Attributes:

    frames: (F, H, W, 3) uint8.
    flow: (F - 1, 2, H, W) float32, pixels from frame i to i + 1.
    visible: (F - 1, H, W) bool, pixels of frame i that frame i + 1 shows.
    nearness: (F, H, W) float32, the disparity.
    """

    frames: np.ndarray
    flow: np.ndarray
    visible: np.ndarray
    nearness: np.ndarray


def parallax_clip(num_frames: int, baseline: float) -> ParallaxClip:
    """The photograph of the motorcycle of skimage, seen from the left camera and then further and further right.

    Args:
        num_frames: F.
        baseline: Between two frames, as a share of the distance between the two cameras of the photograph.
    """
    left, _, disparity = skimage.data.stereo_motorcycle()
    disparity = _without_holes(disparity.astype(np.float64))
    views = [_view(left, disparity, index * baseline) for index in range(num_frames)]
    frames, nearness = (np.stack(arrays) for arrays in zip(*views))
    horizontal = -baseline * nearness[:-1]
    flow = np.stack([horizontal, np.zeros_like(horizontal)], axis=1)
    width = frames.shape[2]
    target = np.arange(width) + horizontal
    column = np.clip(np.rint(target).astype(int), 0, width - 1)
    same_surface = abs(np.take_along_axis(nearness[1:], column, axis=2) - nearness[:-1]) < SURFACE_GAP
    inside = (target >= 0) & (target <= width - 1)
    return ParallaxClip(frames, flow.astype(np.float32), same_surface & inside, nearness.astype(np.float32))


def _without_holes(disparity: np.ndarray) -> np.ndarray:
    """What was not measured gets the disparity of its neighbour in the row that is farther away."""
    filled = disparity.copy()
    for row in filled:
        known = np.flatnonzero(np.isfinite(row))
        place = np.searchsorted(known, np.arange(len(row)))
        before, after = known[np.clip(place - 1, 0, None)], known[np.clip(place, None, len(known) - 1)]
        row[:] = np.where(np.isfinite(row), row, np.minimum(row[before], row[after]))
    return filled


def _view(picture: np.ndarray, disparity: np.ndarray, shift: float) -> tuple[np.ndarray, np.ndarray]:
    """What a camera sees that moved by `shift`: (H, W, 3) uint8 and its disparity (H, W)."""
    width = picture.shape[1]
    seen, nearness = np.empty(picture.shape), np.full(disparity.shape, -np.inf)
    for y in range(len(picture)):
        position = np.arange(width) - shift * disparity[y]
        start, end = position[:-1], position[1:]
        first = np.ceil(np.minimum(start, end)).astype(int)
        count = np.maximum(np.floor(np.maximum(start, end)).astype(int) - first + 1, 0)
        # Between two neighbouring pixels of the picture lie `count` pixels of the view.
        segment = np.repeat(np.arange(width - 1), count)
        x = np.repeat(first, count) + np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
        inside = (x >= 0) & (x < width)
        segment, x = segment[inside], x[inside]
        length = end[segment] - start[segment]
        share = np.where(length == 0, 0, (x - start[segment]) / np.where(length == 0, 1, length))
        near, far = disparity[y, segment], disparity[y, segment + 1]
        edge = abs(far - near) > SURFACE_GAP
        # Between two surfaces the one behind goes on; where they fold over, there is none.
        share = np.where(edge, np.where(near < far, 0.0, 1.0), share)
        between = near + (far - near) * share
        between = np.where(edge & (length < 0), -1.0, between)
        colour = picture[y, segment] * (1 - share)[:, None] + picture[y, segment + 1] * share[:, None]
        order = np.argsort(between, kind="stable")
        nearness[y, x[order]], seen[y, x[order]] = between[order], colour[order]
        hole = ~np.isfinite(nearness[y])
        if hole.any():
            known = np.flatnonzero(~hole)
            nearest = known[abs(np.flatnonzero(hole)[:, None] - known).argmin(axis=1)]
            nearness[y, hole], seen[y, hole] = disparity[y].min(), seen[y, nearest]
    return (seen + 0.5).clip(0, 255).astype(np.uint8), nearness
