"""Does each box hold what it should, in the eyes of a judge that shares nothing with the models that edited?"""

import math
from collections.abc import Sequence

import numpy as np
import torch

from ..spriteworld.judge import JUDGE_CLASSES, SpriteJudge
from ..video import check_frames
from .inputs import check_boxes, check_phrases, to_images


# What the judge calls a box without a sprite.
NOTHING = JUDGE_CLASSES[-1]


def found_sprites(frames: np.ndarray, boxes: np.ndarray, judge: SpriteJudge) -> list[list[str | None]]:
    """What a judge sees in each box.

    Args:
        frames: (F, H, W, 3) uint8.
        boxes: (F, N, 4) xyxy in [0, 1], NaN where absent.
        judge: [`SpriteJudge`].

    Returns:
        F lists of N names out of `JUDGE_CLASSES`, "nothing" among them; None where there is no box.

    Raises:
        ValueError: frames or boxes of another form.

    >>> from diffusers_groundavideo.spriteworld import random_scene, render
    >>> from diffusers_groundavideo.spriteworld.judge import SpriteJudge
    >>> scene = random_scene(4, num_objects=2, motion="leaving", names=["cat", "car"])
    >>> rendered = render(scene)
    >>> found = found_sprites(rendered.frames, rendered.boxes, SpriteJudge.from_pretrained())
    >>> [item.name for item in scene.objects], found[0], found[-1]
    (['cat', 'car'], ['cat', 'car'], [None, 'car'])
    """
    check_frames(frames)
    check_boxes(boxes, len(frames))
    found: list[list[str | None]] = [[None] * boxes.shape[1] for _ in frames]
    rows, columns = np.nonzero(~np.isnan(boxes).any(axis=-1))
    if not rows.size:
        return found
    crops_of = to_images(frames)[rows] * 2 - 1
    names = judge.names(crops_of, torch.from_numpy(boxes[rows, columns]).float())
    for row, column, name in zip(rows, columns, names):
        found[row][column] = name
    return found


def found_and_wanted(
    frames: np.ndarray, boxes: np.ndarray, wanted: Sequence[str | None], judge: SpriteJudge
) -> tuple[np.ndarray, np.ndarray]:
    """`found_sprites` as an array (F, N) of str, "" where there is no box; and what is wanted, (N,) of str.

    Raises:
        ValueError: frames or boxes of another form, or something wanted that the judge does not know.
    """
    check_phrases(wanted, "wanted")
    unknown = sorted({name for name in wanted if name is not None} - set(JUDGE_CLASSES))
    if unknown:
        raise ValueError(f"`wanted` has to hold names of sprites or None, but holds {unknown}.")
    check_frames(frames)
    check_boxes(boxes, len(frames), len(wanted))
    found = [[name or "" for name in of_frame] for of_frame in found_sprites(frames, boxes, judge)]
    return (
        np.array(found, dtype=np.str_).reshape(boxes.shape[:2]),
        np.array([NOTHING if name is None else name for name in wanted], dtype=np.str_),
    )


def edit_accuracy(frames: np.ndarray, boxes: np.ndarray, wanted: Sequence[str | None], judge: SpriteJudge) -> float:
    """Share of the boxes, over frames and objects, in which the judge finds what is wanted there.

    `#{(f, n): judge(frames[f] in boxes[f, n]) = wanted[n]} / #{(f, n): boxes[f, n] is there}`. Boxes that show too
    little of an object to be told apart are for the caller to set to NaN. The judge has a ceiling: see it on the
    perfect edit, taken through the autoencoder if the edit was.

    Args:
        frames: (F, H, W, 3) uint8, of a sprite scene.
        boxes: (F, N, 4) xyxy in [0, 1], NaN where absent.
        wanted: N names of sprites; None where nothing should be left, which is right if the judge finds "nothing".
        judge: [`SpriteJudge`].

    Returns:
        In [0, 1]; NaN if there is no box.

    Raises:
        ValueError: frames or boxes of another form, not one name an object, or a name that is no sprite's.

    Source: ours; of the kind of the classifier accuracy of Ravuri & Vinyals, "Classification Accuracy Score for
    Conditional Generative Models", NeurIPS 2019.

    >>> from diffusers_groundavideo.spriteworld import random_scene, render
    >>> from diffusers_groundavideo.spriteworld.judge import SpriteJudge
    >>> scene = random_scene(1, num_objects=2, motion="linear", names=["cat", "car"])
    >>> edited = render(scene.with_targets([scene.objects[0].name, "tree"]))
    >>> judge = SpriteJudge.from_pretrained()
    >>> first = scene.objects[0].name
    >>> edit_accuracy(edited.frames, edited.boxes, [first, "tree"], judge)
    1.0
    >>> edit_accuracy(edited.frames, edited.boxes, [first, "bus"], judge)
    0.5
    """
    found, right = found_and_wanted(frames, boxes, wanted, judge)
    present = found != ""
    return float((found == right)[present].mean()) if present.any() else math.nan
