"""What the training scripts share: arguments, learning rate, log, checkpoints, weight average, and the data."""

import argparse
import json
import math
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from diffusers_groundavideo.spriteworld import RenderedScene, Scene, random_scene, random_targets, render


# Scenes for evaluation are drawn from seeds no training run reaches.
FRESH_SEED = 10**12


def training_parser(description: str | None, steps: int, batch_size: int, learning_rate: float) -> Any:
    """The arguments every script takes; the defaults are the recipe of the shipped weights."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run-dir", type=Path, required=True, help="all parts write below this folder and resume")
    parser.add_argument("--steps", type=int, default=steps, help="training steps in all, resumed ones included")
    parser.add_argument("--batch-size", type=int, default=batch_size)
    parser.add_argument("--learning-rate", type=float, default=learning_rate)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of torch")
    parser.add_argument("--save-minutes", type=float, default=3.0, help="minutes between two checkpoints")
    parser.add_argument("--smoke", action="store_true", help="a few tiny steps, to see that everything runs")
    return parser


def start(args: argparse.Namespace) -> None:
    """Threads, seed, and the sizes of a smoke run."""
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    if args.smoke:
        args.steps, args.batch_size = 3, 4


def learning_rate_at(step: int, steps: int, peak: float, warmup: int = 100, decay_share: float = 0.3) -> float:
    """Linear warm-up, a plateau, and a linear decay over the last `decay_share` of the steps.

    The plateau lets a run be resumed with a larger number of steps without having been cooled down for nothing.
    """
    rising = min(1.0, (step + 1) / warmup)
    falling = min(1.0, (steps - step) / max(1.0, decay_share * steps))
    return peak * min(rising, max(falling, 0.02))


class WeightAverage:
    """Exponential moving average of a module's parameters and buffers."""

    def __init__(self, module: nn.Module, decay: float = 0.999) -> None:
        self.decay = decay
        self.average = {key: value.detach().clone() for key, value in module.state_dict().items()}

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        # A young average forgets faster, or it would ship the random initialisation of a short run.
        decay = min(self.decay, (1 + step) / (10 + step))
        for key, value in module.state_dict().items():
            if value.is_floating_point():
                self.average[key].lerp_(value, 1 - decay)
            else:
                self.average[key].copy_(value)


class TrainingRun:
    """The folder of one part: `log.jsonl` (step, loss, seconds) and `state.pt`, from which it resumes."""

    def __init__(self, folder: Path, save_minutes: float) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.save_seconds = 60 * save_minutes
        self.seconds_before = 0.0
        self.started = self.saved = time.monotonic()

    @property
    def seconds(self) -> float:
        """Wall time of training, earlier runs included."""
        return self.seconds_before + time.monotonic() - self.started

    def log(self, step: int, **values: float | str) -> None:
        # A share of nothing is NaN, which JSON does not know.
        finite = {key: value for key, value in values.items() if isinstance(value, str) or math.isfinite(value)}
        record = {"step": step, **finite, "seconds": round(self.seconds, 1)}
        with (self.folder / "log.jsonl").open("a") as file:
            file.write(json.dumps(record) + "\n")
        print(self.folder.name, json.dumps(record), flush=True)

    def save(self, step: int, **state: Any) -> None:
        """Write the state after `step` steps; atomically, so that an interrupted write costs nothing."""
        temporary = self.folder / "state.pt.new"
        torch.save({"step": step, "seconds": self.seconds, **state}, temporary)
        os.replace(temporary, self.folder / "state.pt")
        self.saved = time.monotonic()

    def due(self) -> bool:
        return time.monotonic() - self.saved > self.save_seconds

    def resume(self) -> dict[str, Any] | None:
        """The last state written, or None."""
        path = self.folder / "state.pt"
        if not path.exists():
            return None
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        self.seconds_before = state["seconds"]
        return state


def single_frame_scene(seed: int, *, edited_share: float = 0.5, num_objects: int | None = None) -> Scene:
    """One frame of a random clip; in `edited_share` of the cases the sprites are other than the boxes were made for,
    as they are after an edit."""
    rng = np.random.default_rng((seed, 1))
    scene = random_scene(seed, num_objects=num_objects)
    if rng.random() < edited_share:
        scene = random_targets(scene, int(rng.integers(2**31)))
    return scene.frame(int(rng.integers(scene.num_frames)))


def frames_to_tensor(frames: np.ndarray) -> torch.Tensor:
    """Frames (B, H, W, 3) uint8 to (B, 3, H, W) float32 in [-1, 1]."""
    return torch.from_numpy(frames).permute(0, 3, 1, 2).contiguous().float() / 127.5 - 1


def render_batch(seeds: list[int]) -> tuple[list[Scene], list[RenderedScene], torch.Tensor]:
    """Single-frame scenes, what was rendered of them, and their frames (B, 3, H, W) in [-1, 1]."""
    scenes = [single_frame_scene(seed) for seed in seeds]
    rendered = [render(scene) for scene in scenes]
    return scenes, rendered, frames_to_tensor(np.concatenate([item.frames for item in rendered]))


def with_noise(frames: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Frames (B, 3, H, W) in [-1, 1] with noise of another strength on each, up to 0.1: clips come compressed, and
    edited ones are noisier than rendered ones."""
    strength = 0.1 * torch.rand(len(frames), 1, 1, 1, generator=generator)
    return frames + strength * torch.randn(frames.shape, generator=generator)


def batch_seeds(run_seed: int, step: int, batch_size: int) -> list[int]:
    """The scene seeds of a training step: every step its own, the same after a resume."""
    first = run_seed * 10**9 + step * batch_size
    return list(range(first, first + batch_size))


def psnr(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Peak signal-to-noise ratio in dB of each picture: (B, 3, H, W) in [-1, 1] -> (B,)."""
    error = (a - b).square().flatten(1).mean(1)
    return 10 * torch.log10(4 / error.clamp_min(1e-10))
