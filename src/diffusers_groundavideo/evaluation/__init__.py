"""How good an edit is: one metric a file, each usable on any clip.

Clips are uint8 RGB (F, H, W, 3), regions boolean (F, H, W), boxes float (F, N, 4) as xyxy in [0, 1] with NaN where an
object is not in the frame, flow (F - 1, 2, H, W) in pixels. A metric that is not defined for what it is given, such as
that of a region without pixels, is NaN; what has the wrong form is a `ValueError`.

- Does the clip show what was asked for? [`ClipScorer`], [`PickScorer`].
- Each object in its own place? [`ClipScorer.object_alignment`], [`cross_instance_accuracy`].
- Is the rest as it was? [`masked_psnr`], [`masked_ssim`], [`masked_lpips`], [`edit_leakage`].
- Is it stable in time? [`warp_error`], [`static_flicker`], [`ClipScorer.frame_consistency`]; together with the text,
  [`q_edit`].
- On sprite scenes, whose perfect edit is known: [`perfect_edit_psnr`], [`edit_accuracy`], [`leaked_instances`],
  [`omission_rate`].
"""

# Not on first use, as elsewhere in the package: some functions have the name of their module, which would hide them.
from .clip_score import ClipScorer
from .cross_instance_accuracy import cross_instance_accuracy
from .edit_accuracy import edit_accuracy, found_sprites
from .flicker import static_flicker, static_region
from .leakage import edit_leakage, leaked_instances
from .lpips import masked_lpips
from .omission import omission_rate
from .perfect_edit import perfect_edit_psnr
from .pick_score import PickScorer
from .psnr import masked_psnr
from .q_edit import q_edit
from .structural_similarity import masked_ssim
from .warp_error import warp_error


__all__ = [
    "ClipScorer",
    "PickScorer",
    "cross_instance_accuracy",
    "edit_accuracy",
    "edit_leakage",
    "found_sprites",
    "leaked_instances",
    "masked_lpips",
    "masked_psnr",
    "masked_ssim",
    "omission_rate",
    "perfect_edit_psnr",
    "q_edit",
    "static_flicker",
    "static_region",
    "warp_error",
]
