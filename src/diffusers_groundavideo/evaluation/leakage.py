"""What an edit does where it should not: to the rest of the clip, and from one object to another."""

import math
from collections.abc import Sequence

import numpy as np

from ..spriteworld.judge import SpriteJudge
from .edit_accuracy import NOTHING, found_and_wanted
from .inputs import check_mask, check_pair


def edit_leakage(source: np.ndarray, edited: np.ndarray, opened_region: np.ndarray) -> float:
    """Mean absolute change of what was not to be edited: kept objects and background.

    `mean |edited - source| / 255` over pixels and channels outside of the opened region.

    Args:
        source, edited: (F, H, W, 3) uint8.
        opened_region: (F, H, W) bool, True where the edit may change the clip.

    Returns:
        In [0, 1], 0 for none; NaN if the whole clip is opened.

    Raises:
        ValueError: clips or region of another form.

    Source: ours; the unmasked mean absolute error restricted to what is kept.

    >>> import numpy as np
    >>> source = np.zeros((1, 4, 4, 3), dtype=np.uint8)
    >>> edited = source + np.uint8(51)
    >>> opened = np.zeros((1, 4, 4), dtype=bool)
    >>> edit_leakage(source, edited, opened), edit_leakage(source, edited, ~opened)
    (0.2, nan)
    """
    check_pair(source, edited, ("source", "edited"))
    check_mask(opened_region, source.shape[:3], "opened_region")
    if opened_region.all():
        return math.nan
    change = np.abs(edited[~opened_region].astype(np.float64) - source[~opened_region])
    return float(change.mean() / 255)


def leaked_instances(frames: np.ndarray, boxes: np.ndarray, wanted: Sequence[str | None], judge: SpriteJudge) -> float:
    """Share of the boxes that show what is wanted for another object: leakage between edits.

    Only boxes of objects for which some other object's sprite would be wrong count: with one object, or the same
    sprite wanted everywhere, nothing can leak.

    Args:
        frames: (F, H, W, 3) uint8, of a sprite scene.
        boxes: (F, N, 4) xyxy in [0, 1], NaN where absent.
        wanted: N names of sprites; None where nothing should be left, which leaks nowhere.
        judge: [`SpriteJudge`].

    Returns:
        In [0, 1], 0 for none; NaN if there is no such box.

    Raises:
        ValueError: as [`edit_accuracy`].

    Source: ours; the editing leakage that Teodoro et al., "MIVE", arXiv:2412.12877, describe, as a judge sees it.

    >>> from diffusers_groundavideo.spriteworld import random_scene, render
    >>> from diffusers_groundavideo.spriteworld.judge import SpriteJudge
    >>> scene = random_scene(1, num_objects=2, motion="linear")
    >>> edited = render(scene.with_targets(["tree", "tree"]))
    >>> leaked_instances(edited.frames, edited.boxes, ["tree", "bus"], SpriteJudge.from_pretrained())
    0.5
    """
    found, right = found_and_wanted(frames, boxes, wanted, judge)
    leaked, countable = np.zeros(found.shape, dtype=bool), np.zeros(found.shape, dtype=bool)
    for index, own in enumerate(right):
        others = sorted(set(right) - {own, NOTHING})
        leaked[:, index] = np.isin(found[:, index], others)
        countable[:, index] = (found[:, index] != "") & bool(others)
    return float(leaked[countable].mean()) if countable.any() else math.nan
