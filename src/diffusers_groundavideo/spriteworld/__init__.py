"""Sprite scenes: clips whose boxes, masks, depth, flow and perfect edit are known exactly.

`random_scene(seed)` draws a scene, `render(scene)` renders it, `scene.with_targets(names)` is the scene after a
perfect edit and `grounding_dict(scene, target)` describes that edit as the pipeline wants it.
"""

from .backgrounds import BACKGROUND_NAMES, WORLD_EXTENT, background_texture
from .captions import (
    all_captions,
    background_phrase,
    caption_for,
    grounding_dict,
    phrase_for,
    random_caption,
    scene_caption,
)
from .checkpoint import MINI_SETTINGS, edit_arguments, mini_checkpoint, mini_depth_model, mini_detector
from .rendering import RenderedScene, fit_sprite, render
from .scenes import MOTIONS, Scene, SceneObject, clipped_boxes, ground_depth, random_scene, random_targets
from .sprites import SPRITE_NAMES, draw_sprite, load_sprite, sprite_aspect


__all__ = [
    "BACKGROUND_NAMES",
    "MINI_SETTINGS",
    "MOTIONS",
    "RenderedScene",
    "SPRITE_NAMES",
    "Scene",
    "SceneObject",
    "WORLD_EXTENT",
    "all_captions",
    "background_phrase",
    "background_texture",
    "caption_for",
    "clipped_boxes",
    "draw_sprite",
    "edit_arguments",
    "fit_sprite",
    "grounding_dict",
    "ground_depth",
    "load_sprite",
    "mini_checkpoint",
    "mini_depth_model",
    "mini_detector",
    "phrase_for",
    "random_caption",
    "random_scene",
    "random_targets",
    "render",
    "scene_caption",
    "sprite_aspect",
]
