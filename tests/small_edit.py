"""A clip of a few small frames, and an edit of it, for tests of what works on files."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


SIZE = (48, 64)
# An opened object away from the borders, on the grid of the latents: 4 x 4 of 6 x 8 cells.
OPENED_BOX = [0.25, 1 / 6, 0.75, 5 / 6]
SMALL_EDIT: dict[str, Any] = {
    "source_prompt": "a yellow square on a ramp",
    "target_prompt": "a red circle on a ramp",
    "objects": [
        {"source_phrase": "yellow square", "target_phrase": "red circle", "box": OPENED_BOX},
        {"source_phrase": "ramp", "target_phrase": "ramp", "box": [0, 5 / 6, 1, 1]},
    ],
}


def make_frames(num_frames: int = 4) -> np.ndarray:
    """(F, 48, 64, 3) uint8: a square that moves over a ramp whose brightness tells the frame."""
    frames = np.empty((num_frames, *SIZE, 3), dtype=np.uint8)
    frames[..., 0] = np.linspace(40, 200, SIZE[1], dtype=np.uint8)
    frames[..., 1] = np.linspace(30, 180, SIZE[0], dtype=np.uint8)[:, None]
    for index, frame in enumerate(frames):
        frame[..., 2] = 90 + 10 * index
        frame[12:28, 18 + index : 34 + index] = (250, 240, 60)
    return frames


def opened_pixels(num_frames: int = 4) -> np.ndarray:
    """(F, 48, 64) bool: where `OPENED_BOX` is."""
    opened = np.zeros((num_frames, *SIZE), dtype=bool)
    opened[:, 8:40, 16:48] = True
    return opened


def write_frames(folder: Path, frames: np.ndarray) -> Path:
    """PNG files 1.png, 2.png, …, whose order by name is not that by number from ten frames on."""
    folder.mkdir(parents=True)
    for index, frame in enumerate(frames, start=1):
        Image.fromarray(frame).save(folder / f"{index}.png")
    return folder


def write_edit(path: Path, **changes: Any) -> Path:
    """`SMALL_EDIT` as a file, with other values for some of its keys; a key set to None is left out."""
    edit = {key: value for key, value in {**SMALL_EDIT, **changes}.items() if value is not None}
    path.write_text(json.dumps(edit))
    return path
