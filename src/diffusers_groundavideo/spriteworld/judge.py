"""Judges of edits: a small classifier of sprites, trained apart, that shares nothing with the generative models, and
the mean colours of the backgrounds."""

from functools import cache
from importlib.resources import files
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn

from .backgrounds import BACKGROUND_NAMES, background_texture
from .sprites import SPRITE_NAMES


# The last class stands for a box that holds no sprite.
JUDGE_CLASSES: tuple[str, ...] = SPRITE_NAMES + ("nothing",)
CROP_SIZE = 32


def crop_boxes(frames: torch.Tensor, boxes: torch.Tensor, crop_size: int = CROP_SIZE) -> torch.Tensor:
    """Cut boxes out of frames and resample them to squares, bilinearly.

    Args:
        frames: (B, 3, H, W) RGB in [-1, 1].
        boxes: (B, 4) one box a frame, xyxy in units of the frame.
        crop_size: side of the crops, pixels.

    Returns:
        (B, 3, crop_size, crop_size).
    """
    theta = torch.zeros(len(boxes), 2, 3, dtype=frames.dtype, device=frames.device)
    theta[:, 0, 0] = boxes[:, 2] - boxes[:, 0]
    theta[:, 1, 1] = boxes[:, 3] - boxes[:, 1]
    # Centres, from [0, 1] to the [-1, 1] of grid_sample.
    theta[:, 0, 2] = boxes[:, 0] + boxes[:, 2] - 1
    theta[:, 1, 2] = boxes[:, 1] + boxes[:, 3] - 1
    grid = F.affine_grid(theta, [len(boxes), 3, crop_size, crop_size], align_corners=False)
    return F.grid_sample(frames, grid, padding_mode="border", align_corners=False)


class SpriteJudge(nn.Module):
    """A convolutional classifier of 32x32 crops."""

    def __init__(self, channels: tuple[int, int, int] = (24, 48, 96)) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        previous = 3
        for width in channels:
            for _ in range(2):
                layers += [nn.Conv2d(previous, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
                previous = width
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        # Position within the crop is kept: what stands where is half of what tells sprites apart.
        self.classifier = nn.Linear(previous * (CROP_SIZE // 8) ** 2, len(JUDGE_CLASSES))

    def forward(self, crops: torch.Tensor) -> torch.Tensor:
        """Crops (B, 3, 32, 32) in [-1, 1] to logits (B, 21) over `JUDGE_CLASSES`."""
        return self.classifier(self.features(crops).flatten(1))

    @torch.no_grad()
    def names(self, frames: torch.Tensor, boxes: torch.Tensor) -> list[str]:
        """What each box holds: frames (B, 3, H, W) in [-1, 1], boxes (B, 4) xyxy in [0, 1], a name of
        `JUDGE_CLASSES` for each."""
        return [JUDGE_CLASSES[index] for index in self(crop_boxes(frames, boxes)).argmax(-1).tolist()]

    @classmethod
    def from_pretrained(cls, path: str | Path | None = None) -> "SpriteJudge":
        """The trained judge, in evaluation mode; from the package if no safetensors file is given."""
        if path is None:
            path = str(files("diffusers_groundavideo.spriteworld").joinpath("judge.safetensors"))
        judge = cls()
        judge.load_state_dict(load_file(path))
        return judge.eval()


@cache
def _background_colours() -> np.ndarray:
    """Mean RGB of each of `BACKGROUND_NAMES`: (6, 3) in [0, 255]. The seed moves them by a few units only."""
    return np.stack([np.asarray(background_texture(name, 0, 64)).mean((0, 1)) for name in BACKGROUND_NAMES])


def background_names(frames: np.ndarray, regions: np.ndarray) -> list[str]:
    """The background of each frame, by its mean colour: the one of `BACKGROUND_NAMES` whose own is nearest.

    Args:
        frames: (F, H, W, 3) uint8 RGB.
        regions: (F, H, W) bool, where the background is seen; not empty in any frame.
    """
    colours = np.stack([frame[region].mean(0) for frame, region in zip(frames, regions)])
    distances = np.linalg.norm(colours[:, None] - _background_colours()[None], axis=-1)
    return [BACKGROUND_NAMES[index] for index in distances.argmin(-1)]
