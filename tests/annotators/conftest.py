import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from annotators.parallax import parallax_clip
from annotators.small_models import DEPTH_MODELS, DETECTORS, SEGMENTERS
from diffusers_groundavideo.video import read_clip


@pytest.fixture(autouse=True)
def offline(no_network: None) -> None:
    """No annotator needs the network for a model that lies in a folder."""


@pytest.fixture(scope="session")
def saved_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a small model by its kind; saved when it is first asked for. Not to be written to."""
    folder = tmp_path_factory.mktemp("models")
    savers = {**DETECTORS, **DEPTH_MODELS, **SEGMENTERS}

    def save(kind: str) -> Path:
        if not (folder / kind).exists():
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                savers[kind](folder / kind)
        return folder / kind

    return save


@pytest.fixture(scope="session")
def real_frames() -> np.ndarray:
    """(3, 300, 512, 3) uint8: photographs, of a real clip where there are any."""
    if not os.environ.get("GROUNDAVIDEO_CLIPS_DIR"):
        return parallax_clip(num_frames=3, baseline=0.1).frames[:, :300, :512]
    clip = Path(os.environ["GROUNDAVIDEO_CLIPS_DIR"], "cases", "rabbit_watermelon", "frames")
    return read_clip(clip, max_frames=3).frames[:, :300]
