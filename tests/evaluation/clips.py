"""Clips and regions that several tests of metrics take."""

import numpy as np


def noise_clip(seed: int = 0, num_frames: int = 3, height: int = 24, width: int = 32) -> np.ndarray:
    """(F, H, W, 3) uint8 of independent pixels."""
    return np.random.default_rng(seed).integers(0, 256, (num_frames, height, width, 3), dtype=np.uint8)


def left_part(clip: np.ndarray, columns: int) -> np.ndarray:
    """(F, H, W) bool, True in the first columns."""
    region = np.zeros(clip.shape[:3], dtype=bool)
    region[:, :, :columns] = True
    return region
