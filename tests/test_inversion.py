import functools
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from peft import LoraConfig

from diffusers_groundavideo import GroundAVideoPipeline, GroundedObject, InvertedClip, VideoGrounding
from diffusers_groundavideo.inversion import (
    DDIMGrid,
    StepCheckpoint,
    _replacing,
    ddim_inversion,
    ddim_step,
    differentiable_in_inputs_only,
    model_fingerprint,
    null_text_optimization,
    tensor_hash,
)
from small_checkpoint import NOISE_SCHEDULE, build_components


NUM_FRAMES, STEPS = 3, 3
# Of what runs a whole pipeline.
FEW_STEPS = 2
LATENTS = (NUM_FRAMES, 4, 4, 4)
TEXT = (2, 8)


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def scheduler() -> DDIMScheduler:
    return DDIMScheduler(**NOISE_SCHEDULE, clip_sample=False)


@pytest.fixture
def grid(scheduler: DDIMScheduler) -> DDIMGrid:
    return DDIMGrid.from_scheduler(scheduler, STEPS)


def text_noise(z: torch.Tensor, t: int, text: torch.Tensor, which: torch.Tensor) -> torch.Tensor:
    """Smooth noise that depends on the latents, the timestep, the frame's number and its text, for itself alone."""
    shift = text.mean(dim=1)[:, :4, None, None]
    return torch.tanh(0.5 * z + shift + t / 1000 + 0.1 * which[:, None, None, None])


def straight_noise(z: torch.Tensor, t: int, text: torch.Tensor, which: torch.Tensor) -> torch.Tensor:
    """Noise that does not depend on the latents: DDIM is then exact in both directions."""
    return text.mean(dim=1)[:, :4, None, None] + t / 1000 + 0.1 * which[:, None, None, None] + torch.zeros_like(z)


def test_the_grid_is_that_of_the_scheduler(scheduler: DDIMScheduler) -> None:
    for steps in (1, 3, 7, 50):
        grid = DDIMGrid.from_scheduler(scheduler, steps)
        z, noise = random(*LATENTS), random(*LATENTS, seed=1)
        assert grid.timesteps == scheduler.timesteps.tolist() and len(grid.timesteps) == steps
        for t, alpha, previous_alpha in zip(grid.timesteps, grid.alphas, grid.previous_alphas, strict=True):
            expected = scheduler.step(noise, t, z).prev_sample
            torch.testing.assert_close(ddim_step(z, noise, alpha, previous_alpha), expected, atol=1e-6, rtol=1e-5)


def test_a_ddim_step_undoes_itself() -> None:
    z, noise = random(*LATENTS).double(), random(*LATENTS, seed=1).double()
    low, high = torch.tensor(0.2).double(), torch.tensor(0.9).double()
    assert not torch.allclose(ddim_step(z, noise, high, low), z, atol=0.1)
    torch.testing.assert_close(ddim_step(ddim_step(z, noise, high, low), noise, low, high), z, atol=1e-12, rtol=0)
    assert torch.allclose(ddim_step(z, noise, low, low), z)


def test_inversion_of_known_noise_is_undone_by_the_schedulers_denoising(
    scheduler: DDIMScheduler, grid: DDIMGrid
) -> None:
    latents, text = random(*LATENTS), random(*TEXT, seed=1)
    trajectory = ddim_inversion(straight_noise, latents, text, grid)
    assert trajectory.shape == (STEPS + 1, *LATENTS) and torch.equal(trajectory[0], latents)
    z = trajectory[-1]
    assert not torch.allclose(z, latents, atol=0.1)
    texts = text.expand(NUM_FRAMES, -1, -1)
    for i, t in enumerate(grid.timesteps):
        z = scheduler.step(straight_noise(z, t, texts, torch.arange(NUM_FRAMES)), t, z).prev_sample
        torch.testing.assert_close(z, trajectory[-2 - i], atol=1e-5, rtol=1e-5)


def test_inversion_predicts_noise_at_the_timestep_that_it_steps_to(grid: DDIMGrid) -> None:
    asked: list[int] = []

    def predict_noise(z: torch.Tensor, t: int, text: torch.Tensor, which: torch.Tensor) -> torch.Tensor:
        asked.append(t)
        return straight_noise(z, t, text, which)

    trajectory = ddim_inversion(predict_noise, random(*LATENTS), random(*TEXT), grid)
    assert asked == [1, 334, 667]
    noise = straight_noise(trajectory[1], 334, random(*TEXT).expand(NUM_FRAMES, -1, -1), torch.arange(NUM_FRAMES))
    expected = ddim_step(trajectory[1], noise, grid.alphas[2], grid.alphas[1])
    torch.testing.assert_close(trajectory[2], expected, atol=1e-6, rtol=1e-6)


def optimize(grid: DDIMGrid, frames: list[int] | None = None, **arguments: Any) -> torch.Tensor:
    """Null embeddings of some frames of a clip, with their own noise whatever frames come with them."""
    frames = list(range(NUM_FRAMES)) if frames is None else frames
    # Frames that are differently far from their goal, so they stop early at different steps.
    trajectory = random(STEPS + 1, *LATENTS) * 0.01 * torch.tensor([0.03, 1.0, 8.0])[:, None, None, None]

    def predict_noise(z: torch.Tensor, t: int, text: torch.Tensor, which: torch.Tensor) -> torch.Tensor:
        return text_noise(z, t, text, torch.tensor(frames)[which])

    settings: dict[str, Any] = {"predict_noise": predict_noise, "num_inner_steps": 5, "guidance_scale": 7.5}
    return null_text_optimization(
        trajectory=trajectory[:, frames],
        source_text=random(*TEXT, seed=2),
        null_text=random(*TEXT, seed=3),
        grid=grid,
        **(settings | arguments),
    )


def guided_loss(grid: DDIMGrid, step: int, z: torch.Tensor, target: torch.Tensor, null: torch.Tensor) -> torch.Tensor:
    """The squared error of the guided step, (F,)."""
    which, t = torch.arange(NUM_FRAMES), grid.timesteps[step]
    noise_source = text_noise(z, t, random(*TEXT, seed=2).expand(NUM_FRAMES, -1, -1), which)
    noise_null = text_noise(z, t, null, which)
    noise = noise_null + 7.5 * (noise_source - noise_null)
    return (ddim_step(z, noise, grid.alphas[step], grid.previous_alphas[step]) - target).square().flatten(1).mean(1)


@torch.no_grad()
def test_null_text_lowers_the_loss_of_every_frame(grid: DDIMGrid) -> None:
    trajectory = ddim_inversion(text_noise, random(*LATENTS), random(*TEXT, seed=2), grid)
    null_text = random(*TEXT, seed=3)
    arguments: dict[str, Any] = {"guidance_scale": 7.5, "early_stop_epsilon": None}
    null = null_text_optimization(
        text_noise, trajectory, random(*TEXT, seed=2), null_text, grid, num_inner_steps=10, **arguments
    )
    assert null.shape == (STEPS, NUM_FRAMES, *TEXT) and null.dtype == torch.float32
    z, target = trajectory[-1], trajectory[-2]
    before = guided_loss(grid, 0, z, target, null_text.expand(NUM_FRAMES, -1, -1))
    after = guided_loss(grid, 0, z, target, null[0])
    assert (after < 0.9 * before).all()


@torch.no_grad()
def test_null_text_is_adam_with_a_falling_learning_rate(grid: DDIMGrid) -> None:
    null = optimize(grid, early_stop_epsilon=None)
    trajectory = random(STEPS + 1, *LATENTS) * 0.01 * torch.tensor([0.03, 1.0, 8.0])[:, None, None, None]
    z, embedding = trajectory[-1], random(*TEXT, seed=3).expand(NUM_FRAMES, -1, -1)
    for i in range(STEPS):
        with torch.enable_grad():
            parameter = embedding.clone().requires_grad_()
            adam = torch.optim.Adam([parameter], lr=1e-2 * (1 - i / 100), eps=1e-4)
            for _ in range(5):
                adam.zero_grad()
                guided_loss(grid, i, z, trajectory[-2 - i], parameter).sum().backward()
                adam.step()
        embedding = parameter.detach()
        torch.testing.assert_close(null[i], embedding, atol=1e-5, rtol=1e-5)
        which, t = torch.arange(NUM_FRAMES), grid.timesteps[i]
        noise_source = text_noise(z, t, random(*TEXT, seed=2).expand(NUM_FRAMES, -1, -1), which)
        noise_null = text_noise(z, t, embedding, which)
        noise = noise_null + 7.5 * (noise_source - noise_null)
        z = ddim_step(z, noise, grid.alphas[i], grid.previous_alphas[i])


@torch.no_grad()
def test_null_text_past_the_hundredth_step_moves_no_embedding(scheduler: DDIMScheduler) -> None:
    grid = DDIMGrid.from_scheduler(scheduler, 110)
    trajectory = random(111, 1, 4, 2, 2)
    null = null_text_optimization(
        text_noise, trajectory, random(*TEXT, seed=2), random(*TEXT, seed=3), grid, 7.5, 1, early_stop_epsilon=None
    )
    assert not torch.equal(null[99], null[98])
    assert all(torch.equal(null[i], null[99]) for i in range(100, 110))


@torch.no_grad()
def test_a_frame_stops_by_itself_and_is_left_alone_from_then_on(grid: DDIMGrid) -> None:
    asked: list[list[int]] = []

    def predict_noise(z: torch.Tensor, t: int, text: torch.Tensor, which: torch.Tensor) -> torch.Tensor:
        if torch.is_grad_enabled():
            asked.append(which.tolist())
        return text_noise(z, t, text, which)

    # Between the losses of the frames at the first timestep, so some stop and some do not.
    trajectory = random(STEPS + 1, *LATENTS) * 0.01 * torch.tensor([0.03, 1.0, 8.0])[:, None, None, None]
    losses = guided_loss(grid, 0, trajectory[-1], trajectory[-2], random(*TEXT, seed=3).expand(NUM_FRAMES, -1, -1))
    epsilon = float(losses.sort().values[:2].mean())
    together = optimize(grid, predict_noise=predict_noise, early_stop_epsilon=epsilon)
    assert asked[0] == [0, 1, 2] and 1 <= len(asked[1]) < 3

    for frame in range(NUM_FRAMES):
        alone = optimize(grid, frames=[frame], early_stop_epsilon=epsilon)
        torch.testing.assert_close(together[:, [frame]], alone, atol=1e-6, rtol=0)
    # And it makes a difference.
    assert (together - optimize(grid, early_stop_epsilon=None)).abs().max() > 1e-3


@torch.no_grad()
def test_the_threshold_of_the_early_stop_rises_by_2e_minus_5_a_timestep(grid: DDIMGrid) -> None:
    asked: list[int] = []

    def predict_noise(z: torch.Tensor, t: int, text: torch.Tensor, which: torch.Tensor) -> torch.Tensor:
        if torch.is_grad_enabled():
            asked.append(t)
        # The guided step misses its goal by sqrt(1.5e-5) at every timestep, whatever the embedding.
        return torch.zeros_like(z) + 0 * text.sum()

    z = torch.ones(1, 4, 2, 2)
    trajectory = [z]
    for alpha, previous_alpha in zip(grid.alphas, grid.previous_alphas):
        z = ddim_step(z, torch.zeros_like(z), alpha, previous_alpha)
        trajectory.insert(0, z + 1.5e-5**0.5)
    null_text_optimization(predict_noise, torch.stack(trajectory), random(*TEXT), random(*TEXT), grid, 7.5, 4)
    assert [asked.count(t) for t in grid.timesteps] == [4, 1, 1]


@torch.no_grad()
def test_frames_a_forward_change_nothing(grid: DDIMGrid) -> None:
    latents, text = random(*LATENTS), random(*TEXT, seed=1)
    seen: list[int] = []

    def predict_noise(z: torch.Tensor, t: int, text: torch.Tensor, which: torch.Tensor) -> torch.Tensor:
        assert len(z) == len(text) == len(which)
        seen.append(len(z))
        return text_noise(z, t, text, which)

    expected = ddim_inversion(predict_noise, latents, text, grid)
    assert set(seen) == {3}
    torch.testing.assert_close(
        ddim_inversion(predict_noise, latents, text, grid, batch_size=2), expected, atol=1e-6, rtol=0
    )
    assert set(seen) == {1, 2, 3}
    for batch_size in (1, 2, 5):
        torch.testing.assert_close(optimize(grid, batch_size=batch_size), optimize(grid), atol=1e-6, rtol=0)


class Killed(Exception):
    pass


def killed_after(steps: int) -> Callable[[], None]:
    left = iter([None] * steps)

    def on_step() -> None:
        next(left, None)
        if not left.__length_hint__():  # type: ignore[attr-defined]
            raise Killed

    return on_step


def invert_counted(
    grid: DDIMGrid, checkpoint: StepCheckpoint | None, on_step: Callable[[], Any] = lambda: None
) -> tuple[torch.Tensor, torch.Tensor, list[int], list[int]]:
    """Inversion and null-text, and the timesteps at which each asked for noise."""
    inverting: list[int] = []
    optimizing: list[int] = []
    asked = inverting

    def predict_noise(z: torch.Tensor, t: int, text: torch.Tensor, which: torch.Tensor) -> torch.Tensor:
        asked.append(t)
        return text_noise(z, t, text, which)

    text, null = random(*TEXT, seed=2), random(*TEXT, seed=3)
    with torch.no_grad():
        trajectory = ddim_inversion(
            predict_noise, random(*LATENTS), text, grid, checkpoint=checkpoint, on_step=on_step
        )
        asked = optimizing
        embeddings = null_text_optimization(
            predict_noise, trajectory, text, null, grid, 7.5, 3, checkpoint=checkpoint, on_step=on_step
        )
    return trajectory, embeddings, inverting, optimizing


@pytest.mark.parametrize("finished", range(1, 2 * STEPS + 1))
def test_a_stopped_run_goes_on_after_its_last_finished_step(tmp_path: Path, grid: DDIMGrid, finished: int) -> None:
    trajectory, embeddings, _, _ = invert_counted(grid, None)
    with pytest.raises(Killed):
        invert_counted(grid, StepCheckpoint(tmp_path, {}), killed_after(finished))
    result = invert_counted(grid, StepCheckpoint(tmp_path, {}))
    assert torch.equal(result[0], trajectory) and torch.equal(result[1], embeddings)
    assert result[2] == grid.timesteps[::-1][finished:]
    assert sorted(set(result[3]), reverse=True) == grid.timesteps[max(0, finished - STEPS) :]
    assert not any(invert_counted(grid, StepCheckpoint(tmp_path, {}))[2:])


# Each child dies between the file of a step and its final name, after `written` steps.
KILLED_WHILE_WRITING = """
import os, sys
import test_inversion
from diffusers_groundavideo import inversion

replace = os.replace
scheduler = test_inversion.DDIMScheduler(**test_inversion.NOISE_SCHEDULE, clip_sample=False)
grid = test_inversion.DDIMGrid.from_scheduler(scheduler, test_inversion.STEPS)
for written in sys.argv[2:]:
    if child := os.fork():
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
        continue
    done = []
    def dying(source, target):
        if str(target).endswith(".safetensors"):
            done.append(target)
            if len(done) > int(written):
                os._exit(9)
        replace(source, target)
    inversion.os.replace = dying
    test_inversion.invert_counted(grid, inversion.StepCheckpoint(f"{sys.argv[1]}/{written}", {"clip": "one"}))
"""


def test_a_run_killed_while_it_writes_goes_on(tmp_path: Path, grid: DDIMGrid) -> None:
    written_steps = (0, 1, STEPS, STEPS + 1)
    arguments = [sys.executable, "-c", KILLED_WHILE_WRITING, str(tmp_path), *map(str, written_steps)]
    subprocess.run(arguments, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}, check=True)
    trajectory, embeddings, _, _ = invert_counted(grid, None)
    for written in written_steps:
        names = sorted(path.name for path in (tmp_path / str(written)).iterdir())
        assert len([name for name in names if name.endswith(".safetensors")]) == written
        assert any(name.endswith(".tmp") for name in names)
        result = invert_counted(grid, StepCheckpoint(tmp_path / str(written), {"clip": "one"}))
        assert torch.equal(result[0], trajectory) and torch.equal(result[1], embeddings)
        assert len(result[2]) == max(0, STEPS - written)


def test_half_written_files_are_not_looked_at(tmp_path: Path, grid: DDIMGrid) -> None:
    for name in ("key.json.1.tmp", "ddim-0000.safetensors.1.tmp", "null-text-0001.safetensors.77.tmp"):
        (tmp_path / name).write_bytes(b"\x00garbage")
    trajectory, embeddings, _, _ = invert_counted(grid, None)
    result = invert_counted(grid, StepCheckpoint(tmp_path, {}))
    assert torch.equal(result[0], trajectory) and torch.equal(result[1], embeddings)


def test_an_exception_leaves_what_was_there(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("before")
    with pytest.raises(KeyError), _replacing(tmp_path / "file") as temporary:
        temporary.write_text("half")
        raise KeyError
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_text() == "before"


def test_a_folder_belongs_to_one_inversion(tmp_path: Path) -> None:
    StepCheckpoint(tmp_path / "folder", {"video": "a", "height": 64, "boxes": [(0.1, 0.2)]})
    StepCheckpoint(tmp_path / "folder", {"video": "a", "height": 64, "boxes": [(0.1, 0.2)]})
    with pytest.raises(ValueError, match="`checkpoint_dir` .*folder.* height: made for 64, called with 32"):
        StepCheckpoint(tmp_path / "folder", {"video": "a", "height": 32, "boxes": [(0.1, 0.2)]})


def test_gradients_are_of_the_text_alone_and_flags_are_as_found(components: dict[str, Any]) -> None:
    unet = components["unet"]
    unet.conv_in.requires_grad_(False)
    unet.conv_in.weight.grad = torch.ones_like(unet.conv_in.weight)
    unet.down_blocks[1].gradient_checkpointing = True
    required = [parameter.requires_grad for parameter in unet.parameters()]
    flags = [dict(vars(module)).get("gradient_checkpointing") for module in unet.modules()]
    attributes = [set(vars(module)) for module in unet.modules()]

    def check_as_found() -> None:
        assert [parameter.requires_grad for parameter in unet.parameters()] == required
        assert [dict(vars(module)).get("gradient_checkpointing") for module in unet.modules()] == flags
        assert [set(vars(module)) for module in unet.modules()] == attributes

    for gradient_checkpointing in (False, True):
        with differentiable_in_inputs_only(unet, gradient_checkpointing):
            assert not any(parameter.requires_grad for parameter in unet.parameters())
            assert unet.mid_block.gradient_checkpointing == gradient_checkpointing
            assert unet.is_gradient_checkpointing
        check_as_found()
        with pytest.raises(KeyError), differentiable_in_inputs_only(unet, gradient_checkpointing):
            raise KeyError
        check_as_found()
    assert [parameter is unet.conv_in.weight for parameter in unet.parameters() if parameter.grad is not None] == [
        True
    ]
    assert (unet.conv_in.weight.grad == 1).all()


def grounding_of(target: str | None = "squirrel", **changes: Any) -> VideoGrounding:
    return VideoGrounding(
        [
            GroundedObject(
                **{"source_phrase": "rabbit", "target_phrase": target, "box": (0.1, 0.2, 0.7, 0.8), **changes}
            ),
            GroundedObject("table", "table", boxes=[(0.5, 0.5, 1, 1), None, (0.4, 0.5, 1, 1)]),
        ]
    )


VIDEO = np.random.default_rng(0).integers(0, 256, (NUM_FRAMES, 32, 48, 3), dtype=np.uint8)


@pytest.fixture
def pipe(components: dict[str, Any]) -> GroundAVideoPipeline:
    pipe = GroundAVideoPipeline(**components)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def invert(pipe: GroundAVideoPipeline, method: str = "null-text", **changes: Any) -> Any:
    arguments: dict[str, Any] = {
        "video": VIDEO,
        "grounding": grounding_of(),
        "source_prompt": "a rabbit at a table",
        "num_inference_steps": FEW_STEPS,
        "num_null_text_steps": 2,
        "guidance_scale": 5.0,
        "inversion_method": method,
    }
    return pipe.invert(**(arguments | changes))


def edit(pipe: GroundAVideoPipeline, inverted: Any, **changes: Any) -> torch.Tensor:
    arguments: dict[str, Any] = {
        "video": VIDEO,
        "grounding": grounding_of(),
        "prompt": "a squirrel at a table",
        "num_inference_steps": FEW_STEPS,
        "guidance_scale": 5.0,
        "generator": torch.Generator().manual_seed(0),
        "output_type": "latent",
    }
    return pipe(inverted=inverted, return_dict=False, **(arguments | changes))[0]


def assert_same_inversion(first: InvertedClip, second: InvertedClip, atol: float = 0.0) -> None:
    torch.testing.assert_close(first.trajectory, second.trajectory, atol=atol, rtol=0)
    assert (first.null_embeddings is None) == (second.null_embeddings is None)
    if first.null_embeddings is not None:
        torch.testing.assert_close(first.null_embeddings, second.null_embeddings, atol=atol, rtol=0)


@functools.cache
def inverted_once(method: str) -> InvertedClip:
    """By a pipeline of the same weights as `pipe`."""
    pipe = GroundAVideoPipeline(**build_components())
    pipe.set_progress_bar_config(disable=True)
    return invert(pipe, method)


@pytest.mark.parametrize("method", ["negative-prompt", "null-text", "ddim"])
def test_an_inversion_has_the_shapes_of_its_method(pipe: GroundAVideoPipeline, method: str) -> None:
    inverted = invert(pipe, method)
    assert inverted.inversion_method == method
    assert (
        inverted.trajectory.shape == (FEW_STEPS + 1, NUM_FRAMES, 4, 4, 6)
        and inverted.trajectory.dtype == torch.float32
    )
    assert torch.equal(inverted.noise_latents, inverted.trajectory[-1])
    assert inverted.trajectory.isfinite().all()
    assert not inverted.trajectory.requires_grad
    # The last timestep is as clean as the latents: the first step of the inversion moves nothing.
    assert not torch.equal(inverted.trajectory[1], inverted.trajectory[2])
    shapes = {"negative-prompt": (1, 1, 77, 32), "null-text": (FEW_STEPS, NUM_FRAMES, 77, 32), "ddim": None}
    if shapes[method] is None:
        assert inverted.null_embeddings is None
    else:
        assert inverted.null_embeddings.shape == shapes[method] and inverted.null_embeddings.dtype == torch.float32


def test_the_three_methods_invert_with_their_own_text(pipe: GroundAVideoPipeline) -> None:
    trajectories = {method: invert(pipe, method).trajectory for method in ("negative-prompt", "null-text", "ddim")}
    assert torch.equal(trajectories["null-text"], trajectories["ddim"])
    assert (trajectories["negative-prompt"] - trajectories["ddim"]).abs().max() > 1e-3
    other = invert(pipe, "negative-prompt", source_prompt="a train at night").trajectory
    assert (trajectories["negative-prompt"] - other).abs().max() > 1e-3


def test_an_inversion_does_not_depend_on_what_becomes_of_the_objects(pipe: GroundAVideoPipeline) -> None:
    expected = invert(pipe, "negative-prompt")
    for target in ("train", "rabbit", None):
        inverted = invert(pipe, "negative-prompt", grounding=grounding_of(target))
        assert_same_inversion(inverted, expected)
        assert inverted.key == expected.key


@pytest.mark.parametrize("method", ["negative-prompt", "null-text", "ddim"])
def test_file_round_trip(tmp_path: Path, pipe: GroundAVideoPipeline, method: str) -> None:
    inverted = invert(pipe, method)
    inverted.save(tmp_path / "inverted.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["inverted.safetensors"]
    loaded = InvertedClip.load(tmp_path / "inverted.safetensors")
    assert_same_inversion(loaded, inverted)
    assert loaded.key == json.loads(json.dumps(inverted.key))
    assert torch.equal(edit(pipe, loaded), edit(pipe, inverted))


@pytest.mark.parametrize("method", ["negative-prompt", "null-text", "ddim"])
def test_inverting_before_is_inverting_in_the_call(pipe: GroundAVideoPipeline, method: str) -> None:
    inverted = invert(pipe, method)
    source: dict[str, Any] = {"source_prompt": "a rabbit at a table", "num_null_text_steps": 2}
    in_the_call = edit(pipe, None, inversion_method=method, **source)
    assert torch.equal(edit(pipe, inverted), in_the_call)


@pytest.mark.parametrize("content", ["missing", "text", "truncated", "no key", "other tensors", "folder"])
def test_a_file_that_is_no_inversion(tmp_path: Path, pipe: GroundAVideoPipeline, content: str) -> None:
    path = tmp_path / "inverted.safetensors"
    if content == "text":
        path.write_text("not this")
    elif content == "folder":
        path.mkdir()
    elif content == "truncated":
        invert(pipe, "ddim").save(path)
        path.write_bytes(path.read_bytes()[:-10])
    elif content in ("no key", "other tensors"):
        from safetensors.torch import save_file

        name, metadata = ("trajectory", None) if content == "no key" else ("other", {"key": "{}"})
        save_file({name: torch.zeros(2)}, path, metadata=metadata)
    with pytest.raises(ValueError, match="`path`: '.*inverted.safetensors' is not a saved InvertedClip"):
        InvertedClip.load(path)


def load_lora(pipe: GroundAVideoPipeline, name: str = "style") -> None:
    unet = pipe.unet
    unet.add_adapter(LoraConfig(r=2, lora_alpha=2, target_modules=["to_k", "to_v"], init_lora_weights=False), name)


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"video": 255 - VIDEO}, "video"),
        ({"video": VIDEO[:2], "grounding": VideoGrounding([grounding_of().objects[0]])}, "num_frames"),
        ({"height": 64}, "height"),
        ({"width": 64}, "width"),
        ({"grounding": grounding_of(box=(0.1, 0.2, 0.7, 0.9))}, "boxes"),
        ({"grounding": grounding_of(source_phrase="hare")}, "source_phrases"),
        ({"grounding": grounding_of(source_phrase=None)}, "source_phrases"),
        ({"grounding": VideoGrounding(grounding_of().objects[::-1])}, "source_phrases"),
        ({"source_prompt": "a hare"}, "source_prompt"),
        ({"num_inference_steps": FEW_STEPS + 1}, "timesteps"),
        ({"guidance_scale": 6.0}, "guidance_scale"),
        ({"cross_attention_kwargs": {"scale": 0.5}}, "lora_scale"),
        ({"clip_skip": 1}, "clip_skip"),
    ],
)
def test_an_inversion_for_another_call_is_refused(
    pipe: GroundAVideoPipeline, changes: dict[str, Any], name: str
) -> None:
    with pytest.raises(
        ValueError, match=f"`inverted` was made for another inversion.*{name}: made for .*, called with"
    ):
        edit(pipe, inverted_once("null-text"), **changes)


def change_a_weight(pipe: GroundAVideoPipeline, model: str) -> None:
    with torch.no_grad():
        next(getattr(pipe, model).parameters()).add_(1e-3)


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (lambda pipe: change_a_weight(pipe, "unet"), "unet"),
        (lambda pipe: change_a_weight(pipe, "vae"), "vae"),
        (lambda pipe: change_a_weight(pipe, "text_encoder"), "text_encoder"),
        (lambda pipe: pipe.to(torch.bfloat16), "unet"),
        (load_lora, "unet"),
        (
            lambda pipe: pipe.register_modules(
                scheduler=DDIMScheduler.from_config(pipe.scheduler.config, beta_end=0.02)
            ),
            "alphas",
        ),
        (
            lambda pipe: pipe.register_modules(
                scheduler=DDIMScheduler.from_config(pipe.scheduler.config, steps_offset=0)
            ),
            "timesteps",
        ),
    ],
    ids=["unet", "vae", "text encoder", "dtype", "LoRA", "betas", "offset"],
)
def test_an_inversion_by_another_model_is_refused(
    pipe: GroundAVideoPipeline, change: Callable[[GroundAVideoPipeline], Any], name: str
) -> None:
    inverted = inverted_once("negative-prompt")
    change(pipe)
    with pytest.raises(ValueError, match=f"`inverted` was made for another inversion.*{name}: made for"):
        edit(pipe, inverted)


@pytest.mark.filterwarnings("ignore:Already found a `peft_config` attribute")
def test_an_inversion_with_another_lora_is_refused(pipe: GroundAVideoPipeline) -> None:
    load_lora(pipe, "style")
    load_lora(pipe, "other")
    pipe.set_adapters(["style"])
    inverted = invert(pipe, "negative-prompt")
    edit(pipe, inverted)
    for change, undo in (
        (lambda: pipe.set_adapters(["other"]), lambda: pipe.set_adapters(["style"])),
        (lambda: pipe.set_adapters(["style"], [0.5]), lambda: pipe.set_adapters(["style"])),
        (pipe.unet.disable_adapters, pipe.unet.enable_adapters),
    ):
        change()
        with pytest.raises(ValueError, match="`inverted` was made for another inversion. unet"):
            edit(pipe, inverted)
        undo()
        edit(pipe, inverted)


@pytest.mark.parametrize("weight", [0.7, 0.3])
@pytest.mark.parametrize("scale", [0.1, 0.3, 0.0])
def test_a_lora_scale_leaves_the_model_what_it_was(pipe: GroundAVideoPipeline, weight: float, scale: float) -> None:
    load_lora(pipe)
    pipe.set_adapters(["style"], [weight])
    inverted = invert(pipe, "negative-prompt", cross_attention_kwargs={"scale": scale})
    # A scale is multiplied in and divided out again at every forward, which may leave a rounding error.
    edit(pipe, inverted, cross_attention_kwargs={"scale": scale})
    edit(pipe, inverted, cross_attention_kwargs={"scale": scale})


@pytest.mark.parametrize(
    "changes",
    [
        {"grounding": grounding_of("train")},
        {"grounding": grounding_of("rabbit")},
        {"grounding": grounding_of(None)},
        {"prompt": "a train"},
        {"source_prompt": "a rabbit at a table"},
        {"eta": 0.5},
        {"gligen_scheduled_sampling_beta": 0.5},
        {"open_all_boxes": True},
        {"num_null_text_steps": 99},
        {"grounding": grounding_of(masks=np.ones((NUM_FRAMES, 8, 8), dtype=bool))},
        {"video": torch.from_numpy(VIDEO).permute(0, 3, 1, 2)},
        {"height": 32, "width": 48},
        {"conditioning_frames": VIDEO},
        {"flow": torch.zeros(NUM_FRAMES - 1, 2, 8, 8)},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_an_inversion_serves_any_edit_of_the_objects(pipe: GroundAVideoPipeline, changes: dict[str, Any]) -> None:
    assert edit(pipe, inverted_once("null-text"), **changes).isfinite().all()


def test_the_guidance_matters_to_null_text_alone(pipe: GroundAVideoPipeline) -> None:
    for method in ("negative-prompt", "ddim"):
        assert edit(pipe, invert(pipe, method), guidance_scale=6.0).isfinite().all()


@contextmanager
def killed_at_forward(model: torch.nn.Module, number: int) -> Iterator[None]:
    calls: list[int] = []

    def count(module: torch.nn.Module, args: Any) -> None:
        calls.append(len(calls))
        if len(calls) > number:
            raise Killed

    hook = model.register_forward_pre_hook(count)
    try:
        yield
    finally:
        hook.remove()


@contextmanager
def counted_forwards(model: torch.nn.Module) -> Iterator[list[int]]:
    calls: list[int] = []
    hook = model.register_forward_pre_hook(lambda module, args: calls.append(1))
    yield calls
    hook.remove()


# DDIM takes one forward a step; null-text one for the source, two for the Adam steps and one for the step itself.
@pytest.mark.parametrize("number", [1, FEW_STEPS, FEW_STEPS + 2, FEW_STEPS + 5])
def test_a_killed_inversion_goes_on_with_the_same_result(
    tmp_path: Path, pipe: GroundAVideoPipeline, number: int
) -> None:
    expected = invert(pipe)
    with pytest.raises(Killed), killed_at_forward(pipe.unet, number):
        invert(pipe, checkpoint_dir=tmp_path)
    with counted_forwards(pipe.unet) as calls:
        resumed = invert(pipe, checkpoint_dir=tmp_path)
    finished = number if number < FEW_STEPS else FEW_STEPS + 4 * ((number - FEW_STEPS) // 4)
    assert len(calls) == FEW_STEPS * (1 + 4) - finished
    assert_same_inversion(resumed, expected)
    with counted_forwards(pipe.unet) as calls:
        assert_same_inversion(invert(pipe, checkpoint_dir=str(tmp_path)), expected)
    assert not calls


def test_a_checkpoint_of_another_inversion_is_refused(tmp_path: Path, pipe: GroundAVideoPipeline) -> None:
    invert(pipe, checkpoint_dir=tmp_path, num_inference_steps=1)
    changes: list[dict[str, Any]] = [
        {"source_prompt": "a hare"},
        {"num_null_text_steps": 3},
        {"method": "ddim"},
        {"video": 255 - VIDEO},
        {"guidance_scale": 6.0},
        {"num_inference_steps": 2},
    ]
    for change in changes:
        with pytest.raises(ValueError, match="`checkpoint_dir` .* was made for another inversion"):
            invert(pipe, **{"checkpoint_dir": tmp_path, "num_inference_steps": 1, **change})


def test_clips_of_a_batch_are_kept_apart(tmp_path: Path, pipe: GroundAVideoPipeline) -> None:
    arguments: dict[str, Any] = {
        "video": np.stack([VIDEO, 255 - VIDEO]),
        "grounding": [grounding_of(), grounding_of(source_phrase="hare")],
        "source_prompt": ["a rabbit", "a hare"],
    }
    batch = invert(pipe, **arguments)
    with pytest.raises(Killed), killed_at_forward(pipe.unet, FEW_STEPS * 5 + 2):
        invert(pipe, checkpoint_dir=tmp_path, **arguments)
    for clip, resumed in zip(batch, invert(pipe, checkpoint_dir=tmp_path, **arguments), strict=True):
        assert_same_inversion(clip, resumed)
    for index, clip in enumerate(batch):
        alone = invert(pipe, **{name: value[index] for name, value in arguments.items()})
        assert_same_inversion(clip, alone)
        assert clip.key == alone.key


def test_frames_a_forward_and_gradient_checkpointing_change_nothing(pipe: GroundAVideoPipeline) -> None:
    expected = invert(pipe)
    assert_same_inversion(invert(pipe, gradient_checkpointing=True), expected, atol=1e-6)
    for frame_batch_size in (1, 2):
        assert_same_inversion(invert(pipe, frame_batch_size=frame_batch_size), expected, atol=1e-5)


def test_gradient_checkpointing_computes_activations_again_at_the_same_lora_scale(pipe: GroundAVideoPipeline) -> None:
    load_lora(pipe)
    arguments: dict[str, Any] = {"num_inference_steps": 1, "num_null_text_steps": 3}
    expected = invert(pipe, cross_attention_kwargs={"scale": 0.2}, **arguments)
    again = invert(pipe, cross_attention_kwargs={"scale": 0.2}, gradient_checkpointing=True, **arguments)
    assert_same_inversion(again, expected, atol=1e-6)
    with pytest.raises(AssertionError):
        assert_same_inversion(invert(pipe, **arguments), expected, atol=1e-4)


def test_gradient_checkpointing_computes_activations_again(pipe: GroundAVideoPipeline) -> None:
    calls = []
    for gradient_checkpointing in (False, True):
        with counted_forwards(pipe.unet.mid_block.resnets[1]) as forwards:
            invert(pipe, num_inference_steps=1, gradient_checkpointing=gradient_checkpointing)
        calls.append(len(forwards))
    assert calls == [5, 7]


@pytest.mark.parametrize("raises", [False, True])
def test_null_text_leaves_gradients_and_flags_as_found(pipe: GroundAVideoPipeline, raises: bool) -> None:
    unet = pipe.unet
    unet.conv_in.requires_grad_(False)
    marked = unet.conv_out.weight
    marked.grad = torch.ones_like(marked)
    required = {name: parameter.requires_grad for name, parameter in unet.named_parameters()}
    weights = {name: value.clone() for name, value in unet.state_dict().items()}
    attributes = [{name for name in vars(module) if "checkpointing" in name} for module in unet.modules()]
    if raises:
        with pytest.raises(Killed), killed_at_forward(unet, FEW_STEPS + 2):
            invert(pipe, gradient_checkpointing=True)
    else:
        invert(pipe, gradient_checkpointing=True)
    assert {name: parameter.requires_grad for name, parameter in unet.named_parameters()} == required
    assert [name for name, parameter in unet.named_parameters() if parameter.grad is not None] == ["conv_out.weight"]
    assert marked.grad is not None and (marked.grad == 1).all()
    assert all(torch.equal(value, weights[name]) for name, value in unet.state_dict().items())
    assert [{name for name in vars(module) if "checkpointing" in name} for module in unet.modules()] == attributes
    assert not unet.is_gradient_checkpointing and not unet.training


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_null_embeddings_are_float32_under_a_half_precision_unet(
    pipe: GroundAVideoPipeline, dtype: torch.dtype
) -> None:
    pipe.unet.to(dtype)
    seen: set[torch.dtype] = set()
    hook = pipe.unet.register_forward_pre_hook(
        lambda module, args, kwargs: seen.add(kwargs["encoder_hidden_states"].dtype), with_kwargs=True
    )
    inverted = invert(pipe)
    hook.remove()
    assert seen == {dtype}
    null = inverted.null_embeddings
    assert null.dtype == torch.float32 and null.isfinite().all()
    # Steps of about 1e-2, which half precision would round to other values.
    assert not torch.equal(null, null.to(dtype).float())
    assert (null[0] - null[-1]).abs().max() > 1e-3


def test_hashes_tell_values_apart() -> None:
    assert tensor_hash(torch.zeros(4)) != tensor_hash(torch.tensor([0, 0, 0, 1e-6]))
    assert tensor_hash(torch.arange(6).view(2, 3).T) == tensor_hash(torch.arange(6).view(2, 3).T.contiguous())
    first, second = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
    second.load_state_dict(first.state_dict())
    assert model_fingerprint(first) == model_fingerprint(second)
    with torch.no_grad():
        second.bias[1] += 1
    assert model_fingerprint(first) != model_fingerprint(second)
