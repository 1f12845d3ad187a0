"""Each example runs as a user runs it, on a small checkpoint."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from safetensors.torch import save_file
from typer.testing import CliRunner

from diffusers_groundavideo.cli import app
from diffusers_groundavideo.video import read_clip
from small_checkpoint import save_checkpoint
from small_edit import make_frames, opened_pixels, write_edit, write_frames


EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def run(script: str, *arguments: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, EXAMPLES / script, *arguments]
    environment = dict(os.environ, OMP_NUM_THREADS="1")
    return subprocess.run([str(part) for part in command], env=environment, capture_output=True, text=True)


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    write_frames(tmp_path / "clip", make_frames())
    write_frames(tmp_path / "depth", make_frames()[::-1])
    write_edit(tmp_path / "edit.json")
    save_file({"flow": torch.linspace(0, 2, 64).expand(3, 2, 48, 64).contiguous()}, tmp_path / "flow.safetensors")
    return tmp_path


def edited_by_command_line(inputs: Path, model: Path, *options: Any) -> np.ndarray:
    arguments = ["edit", inputs / "clip", "-o", inputs / "expected", "--edit", inputs / "edit.json", "--model", model]
    arguments += ["--num-inference-steps", 2, "--seed", 0, "--dtype", "float32", *options]
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return read_clip(inputs / "expected").frames


def test_edit_a_clip(inputs: Path, small_checkpoint: Path) -> None:
    output = inputs / "edited"
    done = run(
        "edit_a_clip.py", inputs / "clip", inputs / "edit.json", output, "--model", small_checkpoint, "--steps", 2
    )
    assert done.returncode == 0, done.stderr
    np.testing.assert_array_equal(read_clip(output).frames, edited_by_command_line(inputs, small_checkpoint))


def test_invert_once_edit_many(inputs: Path, small_checkpoint: Path) -> None:
    write_edit(inputs / "other.json", target_prompt="a blue star on a ramp")

    def edit(*names: str) -> list[float]:
        edits = [inputs / name for name in names]
        arguments = [inputs / "clip", inputs / "out", *edits, "--model", small_checkpoint, "--steps", 2]
        done = run("invert_once_edit_many.py", *arguments)
        assert done.returncode == 0, done.stderr
        return [(inputs / "out" / name).stat().st_mtime for name in ("inverted.safetensors", "edit.mp4")]

    inverted, edited = edit("edit.json")
    inverted_again, edited_again = edit("edit.json", "other.json")
    assert inverted_again == inverted
    assert edited_again > edited
    first, second = (read_clip(inputs / "out" / name).frames for name in ("edit.mp4", "other.mp4"))
    assert first.shape == second.shape == (4, 48, 64, 3)
    assert (first != second).any()


def full_size_options(full_size_layout: Path, small_checkpoint: Path) -> list[Any]:
    """The options with which the scripts for a GPU run anywhere."""
    models = ["--model", full_size_layout, "--controlnet", small_checkpoint / "controlnet"]
    return [*models, "--device", "cpu", "--dtype", "float32", "--steps", 2, "--height", 48, "--width", 64]


def test_edit_full_size_on_gpu(inputs: Path, full_size_layout: Path, small_checkpoint: Path) -> None:
    arguments: list[Any] = [inputs / "clip", inputs / "edit.json", inputs / "depth", inputs / "edited"]
    arguments += ["--flow", inputs / "flow.safetensors", *full_size_options(full_size_layout, small_checkpoint)]
    done = run("edit_full_size_on_gpu.py", *arguments)
    assert done.returncode == 0, done.stderr
    options = ["--controlnet", small_checkpoint / "controlnet", "--depth", inputs / "depth"]
    options += ["--flow", inputs / "flow.safetensors", "--variant", "fp16"]
    np.testing.assert_array_equal(
        read_clip(inputs / "edited").frames, edited_by_command_line(inputs, full_size_layout, *options)
    )


def test_verify_full_size(inputs: Path, full_size_layout: Path, small_checkpoint: Path) -> None:
    arguments: list[Any] = [inputs / "clip", inputs / "edit.json", inputs / "report"]
    arguments += ["--depth", inputs / "depth", "--flow", inputs / "flow.safetensors"]
    done = run("verify_full_size.py", *arguments, *full_size_options(full_size_layout, small_checkpoint))
    assert done.returncode == 0, done.stderr
    report = json.loads((inputs / "report" / "report.json").read_text())
    assert [check["name"] for check in report["checks"]] == ["shape", "picture", "determinism", "background", "models"]
    assert all(check["passed"] for check in report["checks"])
    assert f"0 of {(~opened_pixels()).sum()} pixels" in report["checks"][3]["detail"]
    assert report["settings"]["opened share"] == pytest.approx(opened_pixels().mean())
    assert [set(one) for one in report["runs"]] == [{"seconds", "peak_memory_bytes"}] * 2
    text = (inputs / "report" / "report.md").read_text()
    assert "All checks passed." in text
    # It is to be shown to others.
    assert str(inputs) not in text + json.dumps(report)
    assert len(read_clip(inputs / "report" / "edit.mp4").frames) == 4


def test_verify_full_size_tells_a_broken_edit(inputs: Path, tmp_path: Path) -> None:
    model = save_checkpoint(tmp_path / "broken")
    vae = AutoencoderKL.from_pretrained(model / "vae")
    # What too large activations become in half precision.
    vae.decoder.conv_out.bias.data.fill_(float("nan"))
    vae.save_pretrained(model / "vae")
    arguments = [inputs / "clip", inputs / "edit.json", inputs / "report", "--model", model, "--steps", 1]
    done = run("verify_full_size.py", *arguments, "--variant", "", "--device", "cpu", "--dtype", "float32")
    assert done.returncode == 1, done.stderr
    text = (inputs / "report" / "report.md").read_text()
    assert "**Failed: picture, determinism" in text
    assert "| background | ok |" in text
