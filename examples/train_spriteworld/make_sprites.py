"""Render the sprites of `diffusers_groundavideo.spriteworld` from the Noto Color Emoji font, once.

The package ships the result, so only a change of sprites needs the font (Debian: fonts-noto-color-emoji).
Run: `python examples/train_spriteworld/make_sprites.py --output-dir src/diffusers_groundavideo/spriteworld/sprites`
"""

import argparse
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont


EMOJI = {
    "dog": "\N{DOG}",
    "cat": "\N{CAT}",
    "rabbit": "\N{RABBIT}",
    "squirrel": "\N{CHIPMUNK}",
    "sheep": "\N{SHEEP}",
    "pig": "\N{PIG}",
    "cow": "\N{COW}",
    "swan": "\N{SWAN}",
    "duck": "\N{DUCK}",
    "turtle": "\N{TURTLE}",
    "fish": "\N{FISH}",
    "car": "\N{AUTOMOBILE}",
    "bus": "\N{BUS}",
    "apple": "\N{RED APPLE}",
    "orange": "\N{TANGERINE}",
    "watermelon": "\N{WATERMELON}",
    "strawberry": "\N{STRAWBERRY}",
    "sunflower": "\N{SUNFLOWER}",
    "tree": "\N{DECIDUOUS TREE}",
    "ball": "\N{SOCCER BALL}",
}
# The only size in which the font stores its bitmaps.
STRIKE_SIZE = 109
LONGER_SIDE = 72


def render_emoji(character: str, font: ImageFont.FreeTypeFont) -> Image.Image:
    """One emoji, RGBA, cropped to its opaque extent and scaled so that its longer side is `LONGER_SIDE` pixels."""
    canvas = Image.new("RGBA", (160, 160), (0, 0, 0, 0))
    ImageDraw.Draw(canvas).text((8, 8), character, font=font, embedded_color=True)
    # Faint halos would make the box larger than what one sees.
    extent = canvas.getchannel("A").point(lambda alpha: 255 if alpha >= 64 else 0).getbbox()
    if extent is None:
        raise ValueError(f"The font has no picture for {character!r}.")
    sprite = canvas.crop(extent)
    scale = LONGER_SIDE / max(sprite.size)
    size = (max(1, round(sprite.width * scale)), max(1, round(sprite.height * scale)))
    return sprite.convert("RGBa").resize(size, Image.Resampling.LANCZOS).convert("RGBA")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--font", type=Path, default=Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf"))
    parser.add_argument("--output-dir", type=Path, required=True)
    args = parser.parse_args()
    args.output_dir.mkdir(parents=True, exist_ok=True)
    font = ImageFont.truetype(str(args.font), STRIKE_SIZE)
    for name, character in EMOJI.items():
        render_emoji(character, font).save(args.output_dir / f"{name}.png", optimize=True)


if __name__ == "__main__":
    main()
