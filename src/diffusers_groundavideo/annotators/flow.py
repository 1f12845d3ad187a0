"""Optical flow of a clip, there and back: OpenCV's DIS, which needs no weights, and torchvision's RAFT.

Flow is in pixels of the clip's own grid, x (to the right) before y (down). Forward flow `i` starts at the pixels of
frame i and leads to frame i + 1; backward flow `i` starts at those of frame i + 1 and leads to frame i.
"""

import math
import pickle
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from ..extras import import_from_extra
from ..smoothing import inconsistent
from .frames import Frames, frames_to_array


# Its patches have 8 pixels; OpenCV refuses frames with no side of at least 12.
_DIS_MIN_SIDE = 16
# RAFT correlates features at an eighth of the resolution, on a pyramid of four levels.
_RAFT_MULTIPLE, _RAFT_MIN_SIDE = 8, 128


@dataclass(frozen=True, eq=False)
class ClipFlow:
    """Optical flow between the neighbouring frames of a clip of F frames.

    Args:
        forward (`torch.Tensor` of shape (F - 1, 2, H, W)): float32, pixels (dx, dy) from frame i to i + 1.
        backward (`torch.Tensor` of shape (F - 1, 2, H, W)): float32, pixels (dx, dy) from frame i + 1 to i.
    """

    forward: torch.Tensor
    backward: torch.Tensor

    @property
    def forward_occlusion(self) -> torch.Tensor:
        """(F - 1, 1, H, W) boolean: pixels of frame i that frame i + 1 does not show, by disagreement of the flows."""
        return inconsistent(self.forward, self.backward)

    @property
    def backward_occlusion(self) -> torch.Tensor:
        """(F - 1, 1, H, W) boolean: pixels of frame i + 1 that frame i does not show."""
        return inconsistent(self.backward, self.forward)


class FlowEstimator(ABC):
    """Estimates the optical flow of a clip; made by [`~FlowEstimator.from_pretrained`].

    Example:
    ```py
    >>> from diffusers_groundavideo.annotators import FlowEstimator

    >>> flow = FlowEstimator.from_pretrained("dis")(frames)  # frames: (F, H, W, 3) uint8
    >>> result = pipe(video=frames, flow=flow.forward, backward_flow=flow.backward, ...)
    ```
    """

    @classmethod
    def from_pretrained(cls, name_or_path: str | Path = "dis", device: str | torch.device = "cpu") -> "FlowEstimator":
        """Makes an estimator.

        Args:
            name_or_path: `"dis"` needs no weights; `"raft-large"` and `"raft-small"` are torchvision's with its own
                weights (downloaded on first use); a file of weights of either is loaded into the RAFT it fits.
            device: Where RAFT runs. DIS runs on the CPU.

        Raises:
            `ValueError`: If it is neither such a name nor a file, or the weights in the file are of another model.
            `ImportError`: If the package of the method is not installed.
        """
        name = str(name_or_path)
        if name == "dis":
            return _DisFlow()
        if name not in ("raft-large", "raft-small") and not Path(name).is_file():
            raise ValueError(
                f"`name_or_path` has to be 'dis', 'raft-large', 'raft-small' or a file of RAFT's weights, but is "
                f"{name!r}."
            )
        return _RaftFlow(name, torch.device(device))

    def __call__(self, frames: Frames, batch_size: int = 4) -> ClipFlow:
        """Estimates the flow between all neighbouring frames.

        Args:
            frames: (F, H, W, 3) uint8 RGB, or a list of RGB images; at least 8 pixels a side, any size and any F >= 1.
            batch_size: Pairs of frames in one forward of RAFT.

        Returns:
            [`ClipFlow`] in pixels of the H x W grid; of no pair at all for a clip of one frame.

        Raises:
            `ValueError`: If the frames are of another form.
        """
        array = frames_to_array(frames)
        pairs = [(i, i + 1) for i in range(len(array) - 1)] + [(i + 1, i) for i in range(len(array) - 1)]
        flows = [torch.zeros(0, 2, *array.shape[1:3])]
        for start in range(0, len(pairs), batch_size):
            first, second = zip(*pairs[start : start + batch_size], strict=True)
            flows.append(self._estimate(array[list(first)], array[list(second)]))
        forward, backward = torch.cat(flows).split(len(array) - 1) if len(array) > 1 else (flows[0], flows[0])
        return ClipFlow(forward, backward)

    @abstractmethod
    def _estimate(self, first: np.ndarray, second: np.ndarray) -> torch.Tensor:
        """Flow from `first` to `second`, (B, H, W, 3) uint8 each: (B, 2, H, W) float32 on the CPU, in pixels."""


class _DisFlow(FlowEstimator):
    def __init__(self) -> None:
        self._cv2 = import_from_extra("cv2", "annotators")

    def _estimate(self, first: np.ndarray, second: np.ndarray) -> torch.Tensor:
        height, width = first.shape[1:3]
        return torch.from_numpy(np.stack([self._flow(*pair) for pair in zip(first, second)]))[..., :height, :width]

    def _flow(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """(2, H', W') float32 of two frames (H, W, 3), padded to the smallest size that DIS takes."""
        cv2 = self._cv2
        below, right = (max(0, _DIS_MIN_SIDE - side) for side in first.shape[:2])
        grey = [
            cv2.copyMakeBorder(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY), 0, below, 0, right, cv2.BORDER_REPLICATE)
            for frame in (first, second)
        ]
        # New for every pair: the object keeps buffers, and is cheap to make.
        dis = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
        # The preset stops at half the resolution, which costs a quarter to a half of the accuracy.
        dis.setFinestScale(0)
        return np.ascontiguousarray(dis.calc(*grey, None).transpose(2, 0, 1))


class _RaftFlow(FlowEstimator):
    def __init__(self, name: str, device: torch.device) -> None:
        models = import_from_extra("torchvision.models.optical_flow", "annotators")
        if name == "raft-large":
            model = models.raft_large(weights=models.Raft_Large_Weights.DEFAULT)
        elif name == "raft-small":
            model = models.raft_small(weights=models.Raft_Small_Weights.DEFAULT)
        else:
            model = _raft_from_file(name, models)
        self._model = model.eval().to(device)
        self._device = device

    @torch.no_grad()
    def _estimate(self, first: np.ndarray, second: np.ndarray) -> torch.Tensor:
        height, width = first.shape[1:3]
        below, right = (
            max(_RAFT_MIN_SIDE, math.ceil(side / _RAFT_MULTIPLE) * _RAFT_MULTIPLE) - side for side in (height, width)
        )
        images = [
            # What RAFT's own transforms do: to [-1, 1].
            F.pad(torch.from_numpy(one).to(self._device).movedim(-1, 1) / 127.5 - 1, (0, right, 0, below), "replicate")
            for one in (first, second)
        ]
        return self._model(*images)[-1][..., :height, :width].float().cpu()


def _raft_from_file(path: str, models: Any) -> torch.nn.Module:
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)
        # Only the large one learns how to upsample its flow.
        make = models.raft_large if "mask_predictor.conv.weight" in weights else models.raft_small
        model = make(weights=None)
        model.load_state_dict(weights)
    except (RuntimeError, pickle.UnpicklingError) as error:
        raise ValueError(f"`name_or_path`: {path!r} does not hold the weights of RAFT: {error}") from error
    return model
