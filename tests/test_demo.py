"""The demo runs from the package alone, and its clips and table say what became of the clip."""

import sys
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from diffusers_groundavideo.cli import app
from diffusers_groundavideo.spriteworld import MINI_SETTINGS
from diffusers_groundavideo.video import read_clip


def test_the_demo_writes_its_clips_side_by_side_and_says_what_was_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Fewer than make a picture: what is tested here is the way there.
    monkeypatch.setitem(MINI_SETTINGS, "num_inference_steps", 2)
    result = CliRunner().invoke(app, ["demo", "--output", str(tmp_path)], terminal_width=200)
    assert result.exit_code == 0, result.output
    for text in (
        "rabbit",
        "(8 of 8 frames)",
        "squirrel",
        "snow",
        "strawberry",
        "grass, as it was",
        "dB",
        "invert",
        "seconds",
    ):
        assert text in result.output

    source = read_clip(tmp_path / "demo_source.gif").frames
    assert source.shape == (8, 64, 64, 3)
    edits = sorted(tmp_path.glob("demo_*_*.gif"))
    assert len(edits) >= 2 and all(path.with_suffix(".mp4").exists() for path in edits)
    for path in edits:
        frames = read_clip(path).frames
        assert len(frames) == 8
        # Four panels with a line of 2 pixels between them, under a line of text; the first is the source, enlarged.
        side = (frames.shape[2] - 6) // 4
        assert side % 64 == 0 and frames.shape[1] > side
        panel = frames[:, -side:, :side].astype(float)
        enlarged = source.repeat(side // 64, axis=1).repeat(side // 64, axis=2)
        assert np.abs(panel - enlarged).mean() < 6


def test_without_the_packages_that_read_clips_the_demo_takes_what_it_knows_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(MINI_SETTINGS, "num_inference_steps", 1)
    # How a package that is not installed looks.
    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    result = CliRunner().invoke(app, ["demo", "--output", str(tmp_path)], terminal_width=200)
    assert result.exit_code == 0, result.output
    assert "diffusers-groundavideo[annotators]" in result.output and "taken from the scene" in result.output
    assert len(list(tmp_path.glob("demo_*_*.gif"))) >= 2
