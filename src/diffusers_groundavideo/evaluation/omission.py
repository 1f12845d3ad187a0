"""Edits that were asked for and never happened."""

import math
from collections.abc import Sequence

import numpy as np

from ..spriteworld.judge import SpriteJudge
from .edit_accuracy import found_and_wanted


def omission_rate(frames: np.ndarray, boxes: np.ndarray, wanted: Sequence[str | None], judge: SpriteJudge) -> float:
    """Share of the requested changes that show in no frame.

    Args:
        frames: (F, H, W, 3) uint8, of a sprite scene.
        boxes: (F, N, 4) xyxy in [0, 1] of the objects that were to change (and of no others), NaN where absent.
        wanted: N names of sprites; None where nothing should be left, which shows where the judge finds "nothing".
        judge: [`SpriteJudge`].

    Returns:
        In [0, 1], 0 if each change shows somewhere; objects that are in no frame do not count, and NaN is for none
        that is.

    Raises:
        ValueError: as [`edit_accuracy`].

    Source: ours.

    >>> from diffusers_groundavideo.spriteworld import random_scene, render
    >>> from diffusers_groundavideo.spriteworld.judge import SpriteJudge
    >>> scene = random_scene(1, num_objects=2, motion="linear")
    >>> edited = render(scene.with_targets(["tree", None]))
    >>> judge = SpriteJudge.from_pretrained()
    >>> omission_rate(edited.frames, edited.boxes, ["tree", None], judge)
    0.0
    >>> omission_rate(edited.frames, edited.boxes, ["tree", "bus"], judge)
    0.5
    """
    found, right = found_and_wanted(frames, boxes, wanted, judge)
    present = (found != "").any(axis=0)
    shows = (found == right).any(axis=0)
    return float((~shows)[present].mean()) if present.any() else math.nan
