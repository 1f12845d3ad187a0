"""Edited sprite scenes whose right answer is known."""

from collections.abc import Sequence

from diffusers_groundavideo.spriteworld import RenderedScene, random_scene, render


def edited_scene(names: Sequence[str | None], seed: int = 1, motion: str = "linear") -> RenderedScene:
    """A scene of two or three objects, rendered with these names in their places."""
    return render(random_scene(seed, num_objects=len(names), motion=motion).with_targets(list(names)))
