"""What was read off a clip, kept on disk: a second run of the same clip and settings reads it there."""

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from .objects import Detection, FrameDetections


# Part of every key: results in files of another form, or made in another way, are not found any more.
_FORMAT = 1


def default_folder() -> Path:
    """`groundavideo` in the user's folder for caches (`$XDG_CACHE_HOME`, else `~/.cache`)."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "groundavideo"


class AnnotationCache:
    """Results of annotators in a folder, one file a result, found by the pixels of the clip and the settings.

    Args:
        folder: Where the files are; made with the first one. It may be emptied at any time.
    """

    def __init__(self, folder: str | Path | None = None) -> None:
        self.folder = default_folder() if folder is None else Path(folder)

    def get(
        self,
        kind: str,
        frames: np.ndarray,
        settings: Mapping[str, Any],
        compute: Callable[[], dict[str, torch.Tensor]],
    ) -> tuple[dict[str, torch.Tensor], bool]:
        """The result kept for a clip and settings; if there is none, it is computed and kept.

        Args:
            kind: What it is, such as "depth": the start of the file's name.
            frames: (F, H, W, 3) uint8.
            settings: All else that the result depends on, as JSON knows it.
            compute: Gives the result, tensors by name.

        Returns:
            The result, and whether it had been kept.
        """
        path = self.folder / f"{kind}-{_key(frames, settings)}.safetensors"
        if path.exists():
            return load_file(path), True
        result = compute()
        self.folder.mkdir(parents=True, exist_ok=True)
        # Under its name only when it is whole, whoever else writes it at the same time.
        unfinished = path.with_suffix(f".{os.getpid()}")
        save_file({name: tensor.contiguous() for name, tensor in result.items()}, unfinished)
        unfinished.replace(path)
        return result, False


def _key(frames: np.ndarray, settings: Mapping[str, Any]) -> str:
    digest = hashlib.sha256(json.dumps([_FORMAT, frames.shape, settings], sort_keys=True).encode())
    digest.update(np.ascontiguousarray(frames).data)
    return digest.hexdigest()[:32]


def model_identity(name_or_path: str) -> Any:
    """What tells a model from another, without reading its weights: the name on the Hub, or the files of a folder.

    Returns:
        The name; of a file or a folder the names, sizes and times of change of the files in it.
    """
    path = Path(name_or_path)
    if not path.exists() and ":" in name_or_path:
        # controlnet-aux's models come with the name of the annotator in front.
        path = Path(name_or_path.partition(":")[2])
    if not path.exists():
        return name_or_path
    files = sorted(file for file in path.rglob("*") if file.is_file()) or [path]
    return [name_or_path, *((str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files)]


def detections_to_tensors(detections: Sequence[FrameDetections]) -> dict[str, torch.Tensor]:
    """Detections in a form that can be kept: for D of them `place` (D, 2), frame and phrase; and `box` (D, 5).

    The last number of a box is its score.
    """
    rows = [
        (frame, number, *one.box, one.score)
        for frame, found in enumerate(detections)
        for number, ones in enumerate(found.values())
        for one in ones
    ]
    table = torch.tensor(rows, dtype=torch.float64).reshape(len(rows), 7)
    return {"place": table[:, :2].long(), "box": table[:, 2:]}


def detections_from_tensors(
    tensors: Mapping[str, torch.Tensor], phrases: Sequence[str], num_frames: int
) -> list[dict[str, list[Detection]]]:
    """What `detections_to_tensors` made, back again."""
    detections: list[dict[str, list[Detection]]] = [{phrase: [] for phrase in phrases} for _ in range(num_frames)]
    for (frame, number), (x0, y0, x1, y1, score) in zip(tensors["place"].tolist(), tensors["box"].tolist()):
        detections[frame][phrases[number]].append(Detection((x0, y0, x1, y1), score))
    return detections
