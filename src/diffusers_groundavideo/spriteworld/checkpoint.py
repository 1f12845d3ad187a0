"""The mini checkpoint: the whole stack at small size, trained on sprite scenes and shipped in the package."""

from pathlib import Path
from typing import Any

from .captions import grounding_dict
from .rendering import render
from .scenes import Scene


# The arguments of a call that suit the miniature, for `pipe(..., **MINI_SETTINGS)`. Guidance as strong as at full size
# (12.5) burns out its colours.
MINI_SETTINGS: dict[str, Any] = {"num_inference_steps": 20, "guidance_scale": 2.0}


def mini_checkpoint() -> Path:
    """Folder of the miniature pipeline, for `GroundAVideoPipeline.from_pretrained(mini_checkpoint())`.

    It edits clips of 64x64 pixels with the sprites and backgrounds of `SPRITE_NAMES` and `BACKGROUND_NAMES`. Its model
    card, `README.md` in the folder, has the recipe, the figures and the settings that suit it.
    """
    return Path(__file__).with_name("checkpoint")


def mini_detector() -> Path:
    """Folder of the small detector beside it, for `ObjectDetector.from_pretrained(mini_detector())`.

    An OWL-ViT of transformers with the mini checkpoint's text tower. It finds the sprites of `SPRITE_NAMES`, and the
    backgrounds of `BACKGROUND_NAMES` as boxes of the whole frame, by the phrases that the checkpoint knows.
    """
    return Path(__file__).with_name("detector")


def mini_depth_model() -> Path:
    """Folder of the small depth model beside it, for `DepthEstimator.from_pretrained(mini_depth_model())`.

    A Depth Anything of transformers, trained on the true depth of sprite scenes.
    """
    return Path(__file__).with_name("depth")


def edit_arguments(scene: Scene, target: Scene) -> dict[str, Any]:
    """The edit from `scene` to `target` (made by `scene.with_targets`) as arguments of the pipeline.

    Boxes, depth and flow are exact, as rendered.

    Returns:
        `video`, `grounding`, `source_prompt`, `prompt`, `conditioning_frames` (F, H, W, 3), `flow` and
        `backward_flow` (F - 1, 2, H, W), for `pipe(**edit_arguments(scene, target), **MINI_SETTINGS)`.
    """
    rendered, edit = render(scene), grounding_dict(scene, target)
    return {
        "video": rendered.frames,
        "grounding": edit,
        "source_prompt": edit["source_prompt"],
        "prompt": edit["target_prompt"],
        **rendered.conditions,
    }
