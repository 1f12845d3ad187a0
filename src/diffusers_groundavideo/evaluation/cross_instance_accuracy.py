"""Is each instance more like its own caption than like those of the others?"""

import math
from collections.abc import Sequence

import numpy as np

from .clip_score import ClipScorer


def cross_instance_accuracy(
    frames: np.ndarray, boxes: np.ndarray, captions: Sequence[str | None], scorer: ClipScorer
) -> float:
    """Cross-Instance Accuracy (CIA): share of the instances whose crop is most like their own caption.

    `mean over (t, n) of [cos(image(V[t] in box n), text(n)) = max over m of cos(image(V[t] in box n), text(m))]`, over
    the boxes that are there and the instances that have a caption. Less than 1 is leakage between edits, or an edit
    that failed. Instances of the same caption cannot be told apart and are right with either.

    Args:
        frames: (F, H, W, 3) uint8.
        boxes: (F, N, 4) xyxy in [0, 1], NaN where absent.
        captions: N texts of what the boxes should hold; None for an instance that is left out.
        scorer: the CLIP.

    Returns:
        In [0, 1]; a CLIP that knows nothing finds 1 / N. NaN with fewer than two different captions, or without boxes.

    Raises:
        ValueError: frames or boxes of another form, or not one caption an instance.

    Source: Teodoro et al., "MIVE" (later "PRIMEdit"), arXiv:2412.12877: the mean diagonal of the matrix of crops and
    captions with 1 where a row is largest and 0 elsewhere; here frame by frame.

    >>> import numpy as np
    >>> scorer = ClipScorer.from_pretrained("openai/clip-vit-base-patch32")  # doctest: +SKIP
    >>> frames = np.zeros((2, 64, 64, 3), dtype=np.uint8)
    >>> boxes = np.tile(np.float32([[0, 0, 0.5, 1], [0.5, 0, 1, 1]]), (2, 1, 1))
    >>> cross_instance_accuracy(frames, boxes, ["a cat", "a car"], scorer)  # both look the same
    0.5
    """
    similarity, objects = scorer.box_similarities(frames, boxes, captions)
    captioned = np.array([caption is not None for caption in captions], dtype=bool)
    counted = captioned[objects]
    if len({caption for caption in captions if caption is not None}) < 2 or not counted.any():
        return math.nan
    similarity = similarity[counted]
    own = np.take_along_axis(similarity, objects[counted][:, None], axis=1)[:, 0]
    return float((own >= np.nanmax(similarity, axis=1)).mean())
