"""How far an edit is from the perfect one, which sprite scenes know."""

import numpy as np

from .inputs import box_region, check_boxes, check_pair
from .psnr import masked_psnr


def perfect_edit_psnr(edited: np.ndarray, perfect: np.ndarray, boxes: np.ndarray) -> dict[str, float]:
    """PSNR of an edit to the perfect edit, inside the boxes, outside of them, and in all.

    Args:
        edited, perfect: (F, H, W, 3) uint8.
        boxes: (F, N, 4) xyxy in [0, 1] of what is edited, NaN where absent. Corners are rounded outward to pixels.

    Returns:
        `inside`, `outside`, `all`: [`masked_psnr`] in decibels, within the union of the boxes, its complement, and the
        whole clip. `inf` where nothing differs, NaN where there is no pixel.

    Raises:
        ValueError: clips or boxes of another form.

    Source: ours; the perfect edit is the scene rendered with its target sprites.

    >>> from diffusers_groundavideo.spriteworld import random_scene, random_targets, render
    >>> scene = random_scene(0, num_objects=1)
    >>> source, perfect = render(scene), render(random_targets(scene, 0))
    >>> psnr = perfect_edit_psnr(source.frames, perfect.frames, source.boxes)
    >>> psnr["inside"] < psnr["all"] < psnr["outside"]
    True
    """
    check_pair(edited, perfect, ("edited", "perfect"))
    check_boxes(boxes, len(edited))
    inside = box_region(boxes, *edited.shape[1:3])
    return {
        "inside": masked_psnr(edited, perfect, inside),
        "outside": masked_psnr(edited, perfect, ~inside),
        "all": masked_psnr(edited, perfect),
    }
