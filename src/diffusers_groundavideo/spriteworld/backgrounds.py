"""The backgrounds: seeded textures, smooth enough for a small autoencoder and busy enough to show motion."""

from collections.abc import Callable

import numpy as np
from PIL import Image


BACKGROUND_NAMES: tuple[str, ...] = ("grass", "sand", "snow", "lake", "road", "night")

# A texture covers this part of the world, xyxy in units of the frame: a camera at rest sees (0, 0, 1, 1), and half a
# frame to every side is left for it to pan and zoom into.
WORLD_EXTENT: tuple[float, float, float, float] = (-0.5, -0.5, 1.5, 1.5)


def _smooth_noise(rng: np.random.Generator, side: int, cells_x: int, cells_y: int) -> np.ndarray:
    """Bicubic noise with the given number of cells along each axis: (side, side) float32, about [0, 1]."""
    coarse = Image.fromarray(rng.random((cells_y, cells_x), dtype=np.float32))
    return np.asarray(coarse.resize((side, side), Image.Resampling.BICUBIC))


def _blend(weight: np.ndarray, low: tuple[int, int, int], high: tuple[int, int, int]) -> np.ndarray:
    """Colours between `low` (weight 0) and `high` (weight 1): (side, side, 3) float32 in [0, 255]."""
    low_colour, high_colour = np.array(low, dtype=np.float32), np.array(high, dtype=np.float32)
    return low_colour + np.clip(weight, 0, 1)[..., None] * (high_colour - low_colour)


def _grass(rng: np.random.Generator, side: int) -> np.ndarray:
    return _blend(
        0.6 * _smooth_noise(rng, side, 12, 12) + 0.4 * _smooth_noise(rng, side, 22, 16), (62, 128, 46), (128, 186, 84)
    )


def _sand(rng: np.random.Generator, side: int) -> np.ndarray:
    return _blend(
        0.5 * _smooth_noise(rng, side, 6, 14) + 0.5 * _smooth_noise(rng, side, 9, 22), (206, 172, 112), (246, 222, 166)
    )


def _snow(rng: np.random.Generator, side: int) -> np.ndarray:
    return _blend(_smooth_noise(rng, side, 9, 9), (196, 210, 232), (244, 248, 255))


def _lake(rng: np.random.Generator, side: int) -> np.ndarray:
    return _blend(
        0.7 * _smooth_noise(rng, side, 7, 20) + 0.3 * _smooth_noise(rng, side, 6, 6), (30, 96, 168), (98, 172, 224)
    )


def _road(rng: np.random.Generator, side: int) -> np.ndarray:
    asphalt = _blend(_smooth_noise(rng, side, 14, 14), (84, 84, 90), (128, 126, 130))
    # Dashed lane markings; sines rather than steps, so that they stay smooth when the camera moves.
    across = np.cos(np.linspace(0, 8 * np.pi, side, dtype=np.float32) + rng.uniform(0, 2 * np.pi))
    along = np.cos(np.linspace(0, 10 * np.pi, side, dtype=np.float32) + rng.uniform(0, 2 * np.pi))
    marking = np.clip((across - 0.85) * 6, 0, 1)[:, None] * np.clip(along * 3 + 1, 0, 1)[None, :]
    return asphalt + marking[..., None] * (np.array([214, 206, 170], dtype=np.float32) - asphalt)


def _night(rng: np.random.Generator, side: int) -> np.ndarray:
    sky = _blend(_smooth_noise(rng, side, 8, 8), (14, 18, 48), (44, 48, 102))
    glow = np.clip(_smooth_noise(rng, side, 10, 5) - 0.55, 0, 1)
    return sky + glow[..., None] * np.array([40, 170, 120], dtype=np.float32)


_TEXTURES: dict[str, Callable[[np.random.Generator, int], np.ndarray]] = {
    "grass": _grass,
    "sand": _sand,
    "snow": _snow,
    "lake": _lake,
    "road": _road,
    "night": _night,
}


def background_texture(name: str, seed: int, size: int) -> Image.Image:
    """The texture over `WORLD_EXTENT`: an RGB image, square, at the resolution of a frame of side `size` pixels."""
    if name not in _TEXTURES:
        raise ValueError(f"There is no background called {name!r}; the names are {', '.join(BACKGROUND_NAMES)}.")
    side = round((WORLD_EXTENT[2] - WORLD_EXTENT[0]) * size)
    texture = _TEXTURES[name](np.random.default_rng(seed), side)
    return Image.fromarray(np.clip(texture + 0.5, 0, 255).astype(np.uint8))
