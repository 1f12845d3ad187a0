"""The cache of annotations: found again by the pixels and the settings, and by nothing else."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from diffusers_groundavideo.annotators import AnnotationCache, Detection
from diffusers_groundavideo.annotators.cache import (
    default_folder,
    detections_from_tensors,
    detections_to_tensors,
    model_identity,
)


FRAMES = np.arange(2 * 8 * 9 * 3, dtype=np.uint8).reshape(2, 8, 9, 3)


@pytest.fixture
def get(tmp_path: Path) -> Callable[..., tuple[dict[str, torch.Tensor], bool]]:
    def call(
        kind: str = "depth", frames: np.ndarray = FRAMES, **settings: Any
    ) -> tuple[dict[str, torch.Tensor], bool]:
        # A cache of its own each time, as a run of the command has.
        return AnnotationCache(tmp_path / "new" / "cache").get(
            kind, frames, settings, lambda: {"depth": torch.full((2, 2), float(frames.sum())).T}
        )

    return call


def test_a_result_is_computed_once(get: Callable[..., tuple[dict[str, torch.Tensor], bool]], tmp_path: Path) -> None:
    first, reused = get(model="a")
    assert not reused
    second, reused = get(model="a")
    assert reused
    assert first.keys() == second.keys() == {"depth"}
    assert torch.equal(first["depth"], second["depth"])
    # Whole files only.
    assert [path.suffix for path in (tmp_path / "new" / "cache").iterdir()] == [".safetensors"]


def test_other_pixels_settings_or_kinds_are_other_results(get: Callable[..., tuple[Any, bool]]) -> None:
    get(model="a", threshold=0.25)
    changed = FRAMES.copy()
    changed[1, 2, 3, 0] += 1
    for arguments in (
        {"frames": changed, "model": "a", "threshold": 0.25},
        {"frames": FRAMES.reshape(2, 9, 8, 3), "model": "a", "threshold": 0.25},
        {"frames": FRAMES[:1], "model": "a", "threshold": 0.25},
        {"model": "b", "threshold": 0.25},
        {"model": "a", "threshold": 0.3},
        {"kind": "flow", "model": "a", "threshold": 0.25},
    ):
        assert not get(**arguments)[1], arguments
    assert get(threshold=0.25, model="a")[1]


def test_a_result_that_fails_is_not_kept(tmp_path: Path) -> None:
    cache = AnnotationCache(tmp_path)

    def fail() -> dict[str, torch.Tensor]:
        raise ValueError("out of luck")

    with pytest.raises(ValueError, match="out of luck"):
        cache.get("depth", FRAMES, {}, fail)
    assert not cache.get("depth", FRAMES, {}, lambda: {"depth": torch.zeros(1)})[1]


def test_the_default_folder_is_the_users(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert AnnotationCache().folder == default_folder() == tmp_path / "groundavideo"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert default_folder() == Path.home() / ".cache" / "groundavideo"


def test_a_model_is_told_by_its_name_or_its_files(tmp_path: Path) -> None:
    assert model_identity("user/model") == "user/model"
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "weights").write_bytes(b"one")
    before = model_identity(str(tmp_path / "model"))
    assert before == model_identity(str(tmp_path / "model"))
    assert model_identity(f"zoe:{tmp_path / 'model'}") != before
    (tmp_path / "model" / "weights").write_bytes(b"three")
    assert model_identity(str(tmp_path / "model")) != before


def test_detections_come_back_as_they_were() -> None:
    detections: list[dict[str, list[Detection]]] = [
        {"dog": [Detection((0.1, 0.2, 0.30000001, 0.4), 0.7), Detection((0.0, 0.0, 1.0, 1.0), 0.2)], "cat": []},
        {"dog": [], "cat": [Detection((1 / 3, 0.2, 0.5, 0.4), 1 / 7)]},
        {"dog": [], "cat": []},
    ]
    tensors = detections_to_tensors(detections)
    assert detections_from_tensors(tensors, ["dog", "cat"], 3) == detections
    nothing: list[dict[str, list[Detection]]] = [{"dog": []}]
    assert detections_from_tensors(detections_to_tensors(nothing), ["dog"], 1) == nothing
