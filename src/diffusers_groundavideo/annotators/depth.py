"""Depth of a clip as the depth ControlNets want it: near is bright, on one scale for the whole clip."""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from ..extras import import_from_extra
from .frames import Frames, frames_to_array


# The shares of the clip's metric depths between which controlnet-aux's Zoe annotator, of which the depth ControlNets
# learned, spreads the greys: what is farther than the second is black.
METRIC_PERCENTILES = (2, 85)
# The size MiDaS and ZoeDepth were trained at, for the shorter side; and what controlnet-aux has both divisible by.
_CONTROLNET_AUX_SIDE, _CONTROLNET_AUX_MULTIPLE = 384, 64


class DepthEstimator(ABC):
    """Estimates the depth of a clip; made by [`~DepthEstimator.from_pretrained`].

    Example:
    ```py
    >>> from diffusers_groundavideo.annotators import DepthEstimator

    >>> estimator = DepthEstimator.from_pretrained("depth-anything/Depth-Anything-V2-Small-hf", device="cuda")
    >>> depth = estimator(frames)  # frames: (F, H, W, 3) uint8
    >>> result = pipe(video=frames, conditioning_frames=depth_to_frames(depth), ...)
    ```
    """

    # Whether the model's values are distances, large where it is far; else they are large where it is near.
    _metric: bool

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path = "depth-anything/Depth-Anything-V2-Small-hf",
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> "DepthEstimator":
        """Loads an estimator.

        Args:
            name_or_path: A folder or a Hub id with a Depth Anything, DPT or ZoeDepth of transformers and its image
                processor; or `"zoe:…"` or `"midas:…"` with a folder or Hub id that holds the weights of that annotator
                of controlnet-aux, such as `"zoe:lllyasviel/Annotators"`.
            device, dtype: Where and in which precision it runs; controlnet-aux's run in float32.

        Raises:
            `ValueError`: If nothing can be loaded from there, or it is a model of another kind.
            `ImportError`: If a package that the estimator needs is not installed.
        """
        kind, _, source = str(name_or_path).partition(":")
        try:
            if kind in _CONTROLNET_AUX:
                return _CONTROLNET_AUX[kind](source, torch.device(device))
            return _TransformersDepth(str(name_or_path), torch.device(device), dtype)
        except (OSError, ValueError) as error:
            raise ValueError(
                f"`name_or_path`: no depth estimator can be loaded from {str(name_or_path)!r}: {error}"
            ) from error

    @torch.no_grad()
    def __call__(self, frames: Frames, batch_size: int = 4) -> torch.Tensor:
        """Estimates the depth of all frames, on one scale: a frame's greys do not depend on what else is in it.

        Equal frames get equal depth, bit by bit.

        Args:
            frames: (F, H, W, 3) uint8 RGB, or a list of RGB images; at least 8 pixels a side.
            batch_size: Frames in one forward.

        Returns:
            `torch.Tensor` of shape (F, H, W), float32 in [0, 1] on the CPU: 1 is nearest. Inverse depth (MiDaS, DPT,
            Depth Anything) is spread from its least to its largest value in the clip; metric depth (ZoeDepth, metric
            Depth Anything) is reversed and spread between percentiles 2 and 85, as for the depth ControlNets. A clip
            of one depth is 0 everywhere.

        Raises:
            `ValueError`: If the frames are of another form.
        """
        array = frames_to_array(frames)
        # A forward of another batch size may differ in the last bit: that is all the flicker of a still clip.
        position: dict[bytes, int] = {}
        place = [position.setdefault(frame.tobytes(), len(position)) for frame in array]
        distinct = array[[place.index(number) for number in range(len(position))]]
        estimated = torch.cat(
            [self._estimate(distinct[start : start + batch_size]) for start in range(0, len(distinct), batch_size)]
        )
        return self._normalised(estimated[place])

    def _normalised(self, depth: torch.Tensor) -> torch.Tensor:
        if self._metric:
            low, high = np.percentile(depth.numpy(), METRIC_PERCENTILES)
        else:
            low, high = float(depth.min()), float(depth.max())
        if high <= low:
            return torch.zeros_like(depth)
        spread = ((depth - low) / (high - low)).clamp(0, 1)
        return 1 - spread if self._metric else spread

    @abstractmethod
    def _estimate(self, frames: np.ndarray) -> torch.Tensor:
        """What the model says of frames (B, H, W, 3) uint8: (B, H, W) float32 on the CPU, in units of its own."""


def depth_to_frames(depth: torch.Tensor) -> np.ndarray:
    """Depth (F, H, W) in [0, 1] as grey frames (F, H, W, 3) uint8, for `conditioning_frames` or a file."""
    grey = (depth * 255 + 0.5).to(torch.uint8)
    return grey[..., None].expand(*grey.shape, 3).numpy()


def _resized(depth: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Depth (B, h, w) brought to (B, height, width), without values beyond those it has."""
    return F.interpolate(depth[:, None], (height, width), mode="bilinear", align_corners=False, antialias=True)[:, 0]


class _TransformersDepth(DepthEstimator):
    def __init__(self, name: str, device: torch.device, dtype: torch.dtype) -> None:
        from transformers import AutoConfig, AutoImageProcessor, AutoModelForDepthEstimation

        config = AutoConfig.from_pretrained(name)
        if config.model_type not in ("depth_anything", "dpt", "zoedepth"):
            raise ValueError(
                f"it is of the type {config.model_type!r}, and the known ones are depth_anything, dpt, zoedepth."
            )
        self._metric = (
            config.model_type == "zoedepth" or getattr(config, "depth_estimation_type", "relative") == "metric"
        )
        self._processor = AutoImageProcessor.from_pretrained(name)
        self._model = AutoModelForDepthEstimation.from_pretrained(name, dtype=dtype).eval().to(device)

    def _estimate(self, frames: np.ndarray) -> torch.Tensor:
        size = frames.shape[1:3]
        images = self._processor(list(frames), input_data_format="channels_last", return_tensors="pt")
        outputs = self._model(images["pixel_values"].to(self._model.device, self._model.dtype))
        outputs.predicted_depth = outputs.predicted_depth.float().cpu()
        # ZoeDepth's processor pads the frame; its own function takes the padding off, and brings it to the size.
        if self._model.config.model_type == "zoedepth":
            done = self._processor.post_process_depth_estimation(outputs, source_sizes=[size] * len(frames))
            return torch.stack([one["predicted_depth"] for one in done])
        return _resized(outputs.predicted_depth, *size)


class _ControlNetAuxDepth(DepthEstimator):
    """The models of controlnet-aux, without what it does to their output: it normalises each frame by itself."""

    def __init__(self, model: Any, device: torch.device) -> None:
        self._model = model.to(device)
        self._device = device

    def _estimate(self, frames: np.ndarray) -> torch.Tensor:
        height, width = frames.shape[1:3]
        scale = _CONTROLNET_AUX_SIDE / min(height, width)
        size = [
            max(1, round(scale * side / _CONTROLNET_AUX_MULTIPLE)) * _CONTROLNET_AUX_MULTIPLE
            for side in (height, width)
        ]
        images = torch.from_numpy(frames).to(self._device).movedim(-1, 1).float()
        images = F.interpolate(images, size, mode="bicubic", align_corners=False, antialias=True).clamp(0, 255)
        return _resized(self._infer(images).cpu(), height, width)

    @abstractmethod
    def _infer(self, images: torch.Tensor) -> torch.Tensor:
        """Images (B, 3, h, w) in [0, 255] to (B, h, w)."""


class _Zoe(_ControlNetAuxDepth):
    _metric = True

    def __init__(self, source: str, device: torch.device) -> None:
        detector = import_from_extra("controlnet_aux.zoe", "annotators").ZoeDetector.from_pretrained(source)
        super().__init__(detector.model, device)

    def _infer(self, images: torch.Tensor) -> torch.Tensor:
        return self._model.infer(images / 255)[:, 0]


class _Midas(_ControlNetAuxDepth):
    _metric = False

    def __init__(self, source: str, device: torch.device) -> None:
        detector = import_from_extra("controlnet_aux.midas", "annotators").MidasDetector.from_pretrained(source)
        super().__init__(detector.model, device)

    def _infer(self, images: torch.Tensor) -> torch.Tensor:
        return self._model(images / 127.5 - 1)


_CONTROLNET_AUX: dict[str, type[Any]] = {"zoe": _Zoe, "midas": _Midas}
