"""Ground-A-Video for diffusers: several edits of one clip at once, without training."""

import importlib
from typing import TYPE_CHECKING, Any


__version__ = "0.1.0.dev0"

__all__ = [
    "EditPreset",
    "GroundAVideoPipeline",
    "GroundAVideoPipelineOutput",
    "GroundedObject",
    "Inflation",
    "InvertedClip",
    "VideoGrounding",
    "inflated",
]

_HOME = {
    "EditPreset": "presets",
    "GroundAVideoPipeline": "pipeline",
    "GroundAVideoPipelineOutput": "pipeline",
    "GroundedObject": "grounding",
    "Inflation": "attention",
    "InvertedClip": "inversion",
    "VideoGrounding": "grounding",
    "inflated": "attention",
}

if TYPE_CHECKING:
    from .attention import Inflation, inflated
    from .grounding import GroundedObject, VideoGrounding
    from .inversion import InvertedClip
    from .pipeline import GroundAVideoPipeline, GroundAVideoPipelineOutput
    from .presets import EditPreset


def __getattr__(name: str) -> Any:
    # Imported on first use, as in diffusers: `import diffusers_groundavideo` alone loads neither torch nor diffusers.
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
