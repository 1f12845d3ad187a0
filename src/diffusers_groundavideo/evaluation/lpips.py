"""Learned perceptual distance within a region."""

import math
from typing import Literal

import numpy as np

from ..extras import import_from_extra
from .inputs import compared_region, pasted_outside, to_images


# Below these, the last layers have no output.
_MIN_SIDE = {"squeeze": 17, "alex": 31, "vgg": 16}


def masked_lpips(
    a: np.ndarray,
    b: np.ndarray,
    region: np.ndarray | None = None,
    net: Literal["squeeze", "alex", "vgg"] = "squeeze",
    batch_size: int = 8,
) -> float:
    """LPIPS of two clips within a region, normalised by its area.

    `mean over frames of LPIPS(a, b pasted into a)  /  share of the clip that the region covers`. Outside of the region
    `b` is replaced by `a`, where LPIPS is then (nearly) 0; LPIPS averages over the frame, so the same damage would
    count less in a smaller region if it were not divided by its share. Features see beyond the edge of the region, so
    in small regions this is an approximation.

    Args:
        a, b: (F, H, W, 3) uint8; without a region the order makes no difference.
        region: (F, H, W) bool, the pixels that count; None: all, which is plain LPIPS.
        net: the backbone. Its weights are torchvision's, downloaded at the first use.
        batch_size: frames in one forward.

    Returns:
        0 for clips that are equal within the region, more for less alike ones; NaN for a region without pixels.

    Raises:
        ValueError: clips or region of another form, another backbone, or frames too small for it.
        ImportError: the extra `evaluation` is not installed.
        OSError: the weights of the backbone are not there and could not be downloaded.

    Source: Zhang et al., "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric", CVPR 2018; the
    implementation is torchmetrics'.

    >>> import numpy as np
    >>> a = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    >>> masked_lpips(a, a)
    0.0
    >>> left = np.zeros((2, 32, 32), dtype=bool)
    >>> left[:, :, :16] = True
    >>> b = np.where(left[..., None], 255 - a, a)
    >>> masked_lpips(a, b, left) > 0, masked_lpips(a, b, ~left)
    (True, 0.0)
    """
    region = compared_region(a, b, region)
    if net not in _MIN_SIDE:
        raise ValueError(f"`net` has to be one of {', '.join(_MIN_SIDE)}, but is {net!r}.")
    if min(a.shape[1:3]) < _MIN_SIDE[net]:
        raise ValueError(f"`a` and `b` have to be at least {_MIN_SIDE[net]} pixels high and wide, but are {a.shape}.")
    if not region.any():
        return math.nan
    image = import_from_extra("torchmetrics.image.lpip", "evaluation")
    try:
        distance = image.LearnedPerceptualImagePatchSimilarity(net_type=net, reduction="sum", normalize=True)
    except OSError as error:
        raise OSError(
            f"LPIPS needs torchvision's weights of its backbone {net!r}, which are not there and could not be "
            f"downloaded: {error}"
        ) from error
    pasted = pasted_outside(a, b, region)
    for start in range(0, len(a), batch_size):
        batch = slice(start, start + batch_size)
        distance.update(to_images(a[batch]), to_images(pasted[batch]))
    return distance.compute().item() / len(a) / float(region.mean())
