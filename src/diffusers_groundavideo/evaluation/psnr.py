"""Peak signal-to-noise ratio within a region."""

import math

import numpy as np

from .inputs import compared_region


def masked_psnr(a: np.ndarray, b: np.ndarray, region: np.ndarray | None = None) -> float:
    """Peak signal-to-noise ratio of two clips within a region.

    `10 log10(255^2 / MSE)`, with the mean squared error over all pixels and channels of the region in all frames
    together: a frame of which the region covers more has more weight.

    Args:
        a, b: (F, H, W, 3) uint8; the order makes no difference.
        region: (F, H, W) bool, the pixels that count; None: all.

    Returns:
        Decibels; `inf` for clips that are equal within the region, NaN for a region without pixels.

    Raises:
        ValueError: clips or region of another form.

    Source: ITU-T J.340 (2010), for the peak of 255 of 8-bit pictures.

    >>> import numpy as np
    >>> a = np.full((2, 8, 8, 3), 100, dtype=np.uint8)
    >>> b = a.copy()
    >>> b[:, :, :4] += 10
    >>> round(masked_psnr(a, b), 3)
    31.141
    >>> left = np.zeros((2, 8, 8), dtype=bool)
    >>> left[:, :, :4] = True
    >>> round(masked_psnr(a, b, left), 3), masked_psnr(a, b, ~left)
    (28.131, inf)
    """
    region = compared_region(a, b, region)
    if not region.any():
        return math.nan
    error = float(np.mean((a[region].astype(np.float64) - b[region]) ** 2))
    return 10 * math.log10(255**2 / error) if error else math.inf
