"""What is read off a clip: objects and their tracks, masks, depth and optical flow.

Everything here takes frames as (F, H, W, 3) uint8 RGB, or as a list of RGB images, and knows nothing of diffusion.
"""

import importlib
from typing import TYPE_CHECKING, Any


__all__ = [
    "AnnotationCache",
    "BoxToMask",
    "ClipFlow",
    "DepthEstimator",
    "Detection",
    "FlowEstimator",
    "ObjectDetector",
    "ObjectQuery",
    "PhraseNotFoundError",
    "Track",
    "find_objects",
    "grounding_from_tracks",
    "track_detections",
]

_HOME = {
    "AnnotationCache": "cache",
    "BoxToMask": "masks",
    "ClipFlow": "flow",
    "DepthEstimator": "depth",
    "Detection": "objects",
    "FlowEstimator": "flow",
    "ObjectDetector": "objects",
    "ObjectQuery": "finding",
    "PhraseNotFoundError": "finding",
    "Track": "tracking",
    "find_objects": "finding",
    "grounding_from_tracks": "tracking",
    "track_detections": "tracking",
}

if TYPE_CHECKING:
    from .cache import AnnotationCache
    from .depth import DepthEstimator
    from .finding import ObjectQuery, PhraseNotFoundError, find_objects
    from .flow import ClipFlow, FlowEstimator
    from .masks import BoxToMask
    from .objects import Detection, ObjectDetector
    from .tracking import Track, grounding_from_tracks, track_detections


def __getattr__(name: str) -> Any:
    # Imported on first use: the tracker alone needs neither transformers nor OpenCV.
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
