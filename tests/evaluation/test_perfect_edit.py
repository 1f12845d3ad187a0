import math

import numpy as np
import pytest

from diffusers_groundavideo.evaluation import masked_psnr, perfect_edit_psnr
from evaluation.clips import noise_clip


def test_boxes_part_the_clip_in_two() -> None:
    perfect = noise_clip()
    edited = perfect // 2
    boxes = np.full((3, 1, 4), [0.25, 0.25, 0.75, 1.0], dtype=np.float32)
    inside = np.zeros((3, 24, 32), dtype=bool)
    inside[:, 6:, 8:24] = True
    assert perfect_edit_psnr(edited, perfect, boxes) == {
        "inside": masked_psnr(edited, perfect, inside),
        "outside": masked_psnr(edited, perfect, ~inside),
        "all": masked_psnr(edited, perfect),
    }


def test_absent_boxes_cover_nothing_and_several_are_united() -> None:
    perfect = noise_clip(num_frames=2)
    edited = perfect.copy()
    edited[0, :, :16] //= 2
    edited[1, :12] //= 2
    boxes = np.full((2, 2, 4), np.nan, dtype=np.float32)
    boxes[0, 0], boxes[1, 1] = [0, 0, 0.5, 1], [0, 0, 1, 0.5]
    psnr = perfect_edit_psnr(edited, perfect, boxes)
    assert psnr["outside"] == math.inf
    assert psnr["inside"] < psnr["all"]


def test_corners_are_rounded_outward() -> None:
    perfect = np.zeros((1, 10, 10, 3), dtype=np.uint8)
    edited = perfect.copy()
    edited[:, 3:7, 3:7] = 9
    boxes = np.full((1, 1, 4), [0.31, 0.31, 0.69, 0.69], dtype=np.float32)
    assert perfect_edit_psnr(edited, perfect, boxes)["outside"] == math.inf


def test_without_a_box_nothing_is_inside() -> None:
    clip = noise_clip()
    psnr = perfect_edit_psnr(clip, clip, np.full((3, 1, 4), np.nan))
    assert math.isnan(psnr["inside"])
    assert psnr["outside"] == psnr["all"] == math.inf


@pytest.mark.parametrize(
    "boxes", [np.zeros((3, 4)), np.zeros((2, 1, 4)), np.full((3, 1, 4), [0.5, 0, 0.4, 1]), np.full((3, 1, 4), 2.0)]
)
def test_boxes_of_another_form_are_refused(boxes: np.ndarray) -> None:
    clip = noise_clip()
    with pytest.raises(ValueError, match="`boxes` has to be"):
        perfect_edit_psnr(clip, clip, boxes)
