from pathlib import Path

import pytest
import torch
from torchvision.models import squeezenet1_1

from diffusers_groundavideo.spriteworld.judge import SpriteJudge
from evaluation.small_clip import save_random_clip, save_sprite_clip


@pytest.fixture(scope="session")
def random_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder. Not to be written to."""
    return save_random_clip(tmp_path_factory.mktemp("random_clip"))


@pytest.fixture(scope="session")
def sprite_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder. Not to be written to."""
    return save_sprite_clip(tmp_path_factory.mktemp("sprite_clip"))


@pytest.fixture(scope="session")
def judge() -> SpriteJudge:
    return SpriteJudge.from_pretrained()


@pytest.fixture(scope="session")
def _torch_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("torch_home")
    torch.manual_seed(0)
    checkpoints = folder / "hub" / "checkpoints"
    checkpoints.mkdir(parents=True)
    torch.save(squeezenet1_1(weights=None).state_dict(), checkpoints / "squeezenet1_1-b8a52dc0.pth")
    return folder


@pytest.fixture
def lpips_backbone(_torch_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Random weights where torchvision keeps those of SqueezeNet that it has downloaded; other backbones are not
    there."""
    monkeypatch.setenv("TORCH_HOME", str(_torch_home))
