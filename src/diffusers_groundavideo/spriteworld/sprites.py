"""The sprites: small cut-out pictures with a name, shipped as PNG files beside this module."""

from functools import cache
from importlib.resources import files

import numpy as np
from PIL import Image


# Twenty names rather than more: every added name costs the miniature model training time, and these cover animals,
# vehicles, fruit and plants, with shapes and colours that remain apart at 20 pixels.
SPRITE_NAMES: tuple[str, ...] = (
    "dog",
    "cat",
    "rabbit",
    "squirrel",
    "sheep",
    "pig",
    "cow",
    "swan",
    "duck",
    "turtle",
    "fish",
    "car",
    "bus",
    "apple",
    "orange",
    "watermelon",
    "strawberry",
    "sunflower",
    "tree",
    "ball",
)

# Transparent border added around every sprite, in sprite pixels: the antialiasing filter reads a little past the
# sprite's edge, and PIL clamps instead of reading transparency when there is nothing beyond it.
SPRITE_MARGIN = 16


@cache
def load_sprite(name: str) -> Image.Image:
    """The sprite as an RGBA image, cropped to its opaque extent, its longer side 72 pixels. Do not modify it."""
    if name not in SPRITE_NAMES:
        raise ValueError(f"There is no sprite called {name!r}; the names are {', '.join(SPRITE_NAMES)}.")
    with files("diffusers_groundavideo.spriteworld").joinpath("sprites", f"{name}.png").open("rb") as file:
        return Image.open(file).convert("RGBA")


@cache
def sprite_aspect(name: str) -> float:
    """Width over height of the sprite."""
    sprite = load_sprite(name)
    return sprite.width / sprite.height


@cache
def _padded_sprite(name: str) -> Image.Image:
    """The sprite in premultiplied alpha ("RGBa") with `SPRITE_MARGIN` transparent pixels on every side."""
    sprite = load_sprite(name)
    padded = Image.new("RGBA", (sprite.width + 2 * SPRITE_MARGIN, sprite.height + 2 * SPRITE_MARGIN), (0, 0, 0, 0))
    padded.paste(sprite, (SPRITE_MARGIN, SPRITE_MARGIN))
    return padded.convert("RGBa")


def draw_sprite(
    name: str, rectangle: tuple[float, float, float, float], size: int
) -> tuple[np.ndarray, tuple[slice, slice]] | None:
    """Resample a sprite to a rectangle of a frame, with sub-pixel position and antialiasing.

    Args:
        name: one of `SPRITE_NAMES`.
        rectangle: where the sprite's edges come to lie, xyxy in frame pixels; may reach outside the frame.
        size: side of the square frame, pixels.

    Returns:
        None if nothing of it is inside the frame, otherwise `(patch, (rows, columns))`: the patch is float32
        (h, w, 4), premultiplied RGB and alpha in [0, 1], and the slices say which pixels of the frame it covers.
    """
    padded = _padded_sprite(name)
    x0, y0, x1, y1 = rectangle
    per_pixel_x = (padded.width - 2 * SPRITE_MARGIN) / (x1 - x0)
    per_pixel_y = (padded.height - 2 * SPRITE_MARGIN) / (y1 - y0)
    left, right = max(0, int(np.floor(x0)) - 1), min(size, int(np.ceil(x1)) + 1)
    top, bottom = max(0, int(np.floor(y0)) - 1), min(size, int(np.ceil(y1)) + 1)
    if left >= right or top >= bottom:
        return None
    source = (
        SPRITE_MARGIN + (left - x0) * per_pixel_x,
        SPRITE_MARGIN + (top - y0) * per_pixel_y,
        SPRITE_MARGIN + (right - x0) * per_pixel_x,
        SPRITE_MARGIN + (bottom - y0) * per_pixel_y,
    )
    if min(source[:2]) < 0 or source[2] > padded.width or source[3] > padded.height:
        raise ValueError(f"The sprite {name!r} cannot be drawn as small as {x1 - x0:.1f}x{y1 - y0:.1f} pixels.")
    resized = padded.resize((right - left, bottom - top), Image.Resampling.BICUBIC, box=source)
    patch = np.asarray(resized, dtype=np.float32) / 255.0
    return patch, (slice(top, bottom), slice(left, right))
