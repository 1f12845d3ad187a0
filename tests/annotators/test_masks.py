"""Boxes to masks: real classes at small size."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from annotators.small_models import SEGMENTERS
from diffusers_groundavideo.annotators import BoxToMask, Track, grounding_from_tracks


SavedModel = Callable[[str], Path]
STAYS = Track("rabbit", [(0.1, 0.1, 0.6, 0.8)] * 4, [0.5] * 4)
COMES_BACK = Track("dog", [None, (0.5, 0.2, 0.9, 0.7), None, (0.1, 0.1, 0.5, 0.5)], [None, 0.5, None, 0.5])


@pytest.fixture(scope="module")
def frames(real_frames: np.ndarray) -> np.ndarray:
    return real_frames[[0, 1, 2, 0], :90, :160]


@pytest.mark.parametrize("kind", SEGMENTERS)
def test_masks_of_tracks(saved_model: SavedModel, frames: np.ndarray, kind: str) -> None:
    segmenter = BoxToMask.from_pretrained(saved_model(kind))
    masks = segmenter(frames, [STAYS, COMES_BACK])
    assert [(one.shape, one.dtype) for one in masks] == [(frames.shape[:3], np.dtype(bool))] * 2
    # Out of the frame there is nothing.
    assert not masks[1][[0, 2]].any()
    # An object's masks do not depend on what else is followed, nor on when it came before.
    np.testing.assert_array_equal(segmenter(frames, [COMES_BACK])[0], masks[1])
    once = Track("dog", [*[None] * 3, COMES_BACK.boxes[3]], [*[None] * 3, 0.5])
    np.testing.assert_array_equal(segmenter(frames, [once])[0][3], masks[1][3])
    grounding = grounding_from_tracks([STAYS, COMES_BACK], masks=masks)
    assert grounding.edit_mask(4, 9, 16).shape == (4, 1, 9, 16)


def test_the_box_decides(saved_model: SavedModel, frames: np.ndarray) -> None:
    segmenter = BoxToMask.from_pretrained(saved_model("sam2-video"))
    other = Track("rabbit", [(0.5, 0.5, 0.6, 0.6)] * 4, [0.5] * 4)
    first, second = segmenter(frames, [STAYS, other])
    assert (first != second).any()


def test_what_does_not_fit_is_refused(saved_model: SavedModel, frames: np.ndarray) -> None:
    with pytest.raises(ValueError, match="'dpt'.*sam2_video, edgetam_video"):
        BoxToMask.from_pretrained(saved_model("dpt"))
    with pytest.raises(ValueError, match="4 boxes, but the clip has 3 frames"):
        BoxToMask.from_pretrained(saved_model("sam2-video"))(frames[:3], [STAYS])
