"""One figure for how well a clip follows the text and how steady it is."""

import math


def q_edit(text_alignment: float, warp_error: float) -> float:
    """Q-edit: text alignment over warp error.

    `Q = (100 * text_alignment) / (1000 * warp_error)`, the scales in which papers print the two. It rewards a clip
    that is steady because nothing was edited: read it beside its parts.

    Args:
        text_alignment: mean cosine of frames and target prompt, [`ClipScorer.text_alignment`].
        warp_error: raw, in [0, 1], of the edited clip, [`warp_error`].

    Returns:
        More is better; `inf` without any warp error, NaN if one of the two is.

    Raises:
        ValueError: a negative warp error.

    Source: Yang et al., "VideoGrain", ICLR 2025, arXiv:2502.17258 (`Q-edit = CLIP-T / Warp-Err`), after the editing
    score of FLATTEN, Cong et al., ICLR 2024, arXiv:2310.05922. Warp errors depend on flow, size and occlusion rule:
    values compare only if these are the same.

    >>> round(q_edit(text_alignment=0.3656, warp_error=0.00142), 2)
    25.75
    """
    if warp_error < 0:
        raise ValueError(f"`warp_error` has to be at least 0, but is {warp_error}.")
    if math.isnan(text_alignment) or math.isnan(warp_error):
        return math.nan
    return 0.1 * text_alignment / warp_error if warp_error else math.inf
