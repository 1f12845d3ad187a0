"""Structural similarity within a region."""

import math

import numpy as np
import torch

from ..extras import import_from_extra
from .inputs import compared_region, pasted_outside


# Half the width of torchmetrics' window, by which it reflects the border.
_REACH = 5


def masked_ssim(a: np.ndarray, b: np.ndarray, region: np.ndarray | None = None) -> float:
    """Structural similarity (SSIM) of two clips within a region.

    The SSIM map of each frame and channel, with a Gaussian window of 11 pixels and sigma 1.5, K1 = 0.01 and K2 = 0.03,
    averaged over the pixels of the region in all frames together. Windows reach 5 pixels beyond the region: there `b`
    is replaced by `a`, so that nothing but the region is compared; at the border of the frame pictures are reflected.

    Args:
        a, b: (F, H, W, 3) uint8 with H, W >= 6; without a region the order makes no difference.
        region: (F, H, W) bool, the pixels that count; None: all.

    Returns:
        At most 1, which is for equal clips; NaN for a region without pixels.

    Raises:
        ValueError: clips or region of another form.
        ImportError: the extra `evaluation` is not installed.

    Source: Wang et al., "Image quality assessment: from error visibility to structural similarity", IEEE TIP 2004,
    equation 13; the map is torchmetrics'.

    >>> import numpy as np
    >>> a = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)
    >>> masked_ssim(a, a)
    1.0
    >>> left = np.zeros((2, 16, 16), dtype=bool)
    >>> left[:, :, :8] = True
    >>> b = np.where(left[..., None], a // 2, a)
    >>> masked_ssim(a, b, left) < 0.9, masked_ssim(a, b, ~left)
    (True, 1.0)
    """
    region = compared_region(a, b, region)
    if min(a.shape[1:3]) <= _REACH:
        raise ValueError(f"`a` and `b` have to be at least {_REACH + 1} pixels high and wide, but are {a.shape}.")
    if not region.any():
        return math.nan
    image = import_from_extra("torchmetrics.functional.image", "evaluation")
    # In float64: in float32 the variance of a bright flat patch drowns in the rounding of its square.
    pictures = [torch.from_numpy(clip).movedim(-1, 1).double() for clip in (pasted_outside(a, b, region), a)]
    _, similarity = image.structural_similarity_index_measure(*pictures, data_range=255.0, return_full_image=True)
    return float(similarity.mean(dim=1).numpy()[region].mean())
