"""From a clip to the noise it would have come from: DDIM inversion and null-text optimisation.

Both run on the plain image UNet, every frame for itself. Trajectories are `(steps + 1, F, C, h, w)` in float32, from
the clean latents to the noise; grids are in denoising order, from the noisiest timestep to the cleanest.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler, ModelMixin
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import nn


# (latents (n, C, h, w), timestep, text (n, tokens, channels), indices of the n frames) -> noise (n, C, h, w), float32.
PredictNoise = Callable[[torch.Tensor, int, torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class DDIMGrid:
    """The timesteps of a run, with the noise level at both ends of each step.

    Args:
        timesteps (`list[int]`): S timesteps, the noisiest first.
        alphas (`torch.Tensor` of shape (S,)): Cumulative alphas at these timesteps.
        previous_alphas (`torch.Tensor` of shape (S,)): Cumulative alphas at the timesteps that the denoising steps
            lead to.
    """

    timesteps: list[int]
    alphas: torch.Tensor
    previous_alphas: torch.Tensor

    @classmethod
    def from_scheduler(cls, scheduler: DDIMScheduler, num_inference_steps: int) -> "DDIMGrid":
        """The grid on which `scheduler` denoises; sets the timesteps of `scheduler`."""
        scheduler.set_timesteps(num_inference_steps)
        timesteps = scheduler.timesteps.cpu()
        previous = timesteps - scheduler.config.num_train_timesteps // num_inference_steps
        cumulative = scheduler.alphas_cumprod.cpu()
        return cls(
            timesteps.tolist(),
            cumulative[timesteps],
            torch.where(previous >= 0, cumulative[previous.clamp(min=0)], scheduler.final_alpha_cumprod.cpu()),
        )


def ddim_step(
    latents: torch.Tensor, noise_pred: torch.Tensor, alpha: torch.Tensor, next_alpha: torch.Tensor
) -> torch.Tensor:
    """The deterministic DDIM step between two noise levels, in either direction (DDIM, equation 12 with sigma 0).

    Args:
        latents (`torch.Tensor`): Latents at the cumulative alpha `alpha`.
        noise_pred (`torch.Tensor`): The noise predicted in them.
        alpha, next_alpha (`torch.Tensor` of shape ()): Cumulative alphas, in (0, 1], before and after the step.

    Returns:
        `torch.Tensor`: Latents at `next_alpha`.
    """
    clean = (latents - (1 - alpha) ** 0.5 * noise_pred) / alpha**0.5
    return next_alpha**0.5 * clean + (1 - next_alpha) ** 0.5 * noise_pred


class StepCheckpoint:
    """Keeps the finished steps of one inversion in a folder, so that a killed run goes on where it stopped.

    Every step is a file of its own, written beside and renamed. The folder belongs to one inversion, told by its key.

    Args:
        folder (`str` or `Path`, *optional*): `None` keeps nothing.
        key (`dict`): What the inversion depends on (see [`InvertedClip`]).

    Raises:
        `ValueError`: If the folder holds the steps of another inversion.
    """

    def __init__(self, folder: str | Path | None, key: dict[str, Any]) -> None:
        self.folder = None if folder is None else Path(folder)
        if self.folder is None:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        key_file = self.folder / "key.json"
        if key_file.exists():
            check_key(json.loads(key_file.read_text(encoding="utf-8")), key, f"`checkpoint_dir` {str(folder)!r}")
        else:
            with _replacing(key_file) as temporary:
                temporary.write_text(json.dumps(key), encoding="utf-8")

    def load(self, name: str, device: torch.device) -> dict[str, torch.Tensor] | None:
        """The tensors of the step `name`, or `None` if it was not finished before."""
        if self.folder is None or not (path := self.folder / f"{name}.safetensors").exists():
            return None
        return load_file(path, device=str(device))

    def save(self, name: str, tensors: dict[str, torch.Tensor]) -> None:
        """Keeps the tensors of the finished step `name`."""
        if self.folder is not None:
            with _replacing(self.folder / f"{name}.safetensors") as temporary:
                temporary.write_bytes(save({key: tensor.cpu().contiguous() for key, tensor in tensors.items()}))


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """A file beside `path` that takes its place when all went well, and is gone when not."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@torch.no_grad()
def ddim_inversion(
    predict_noise: PredictNoise,
    latents: torch.Tensor,
    text: torch.Tensor,
    grid: DDIMGrid,
    batch_size: int | None = None,
    checkpoint: StepCheckpoint | None = None,
    on_step: Callable[[], Any] = lambda: None,
) -> torch.Tensor:
    """DDIM run backwards, every frame for itself (Ground-A-Video, section 3.4; DDIM, section 4.3).

    The UNet is evaluated at the timestep that the step leads to.

    Args:
        predict_noise: The noise of some frames at a timestep under a text, with the source groundings.
        latents (`torch.Tensor` of shape (F, C, h, w)): Clean latents, float32.
        text (`torch.Tensor` of shape (tokens, channels)): The text of all frames.
        grid ([`DDIMGrid`]): The timesteps.
        batch_size (`int`, *optional*): Frames a forward; `None` for all.
        checkpoint ([`StepCheckpoint`], *optional*): Where finished steps are kept.
        on_step: Called after every step.

    Returns:
        `torch.Tensor` of shape (S + 1, F, C, h, w): the trajectory from the clean latents to the noise.
    """
    checkpoint = checkpoint or StepCheckpoint(None, {})
    batches = torch.arange(len(latents)).split(batch_size or len(latents))
    trajectory = [latents]
    for step in range(len(grid.timesteps)):
        timestep, alpha, previous_alpha = (
            grid.timesteps[-1 - step],
            grid.alphas[-1 - step],
            grid.previous_alphas[-1 - step],
        )
        state = checkpoint.load(f"ddim-{step:04d}", latents.device)
        if state is None:
            z = trajectory[-1]
            noise_pred = torch.cat(
                [predict_noise(z[frames], timestep, text.expand(len(frames), -1, -1), frames) for frames in batches]
            )
            state = {"latents": ddim_step(z, noise_pred, previous_alpha, alpha)}
            checkpoint.save(f"ddim-{step:04d}", state)
        trajectory.append(state["latents"])
        on_step()
    return torch.stack(trajectory)


@torch.no_grad()
def null_text_optimization(
    predict_noise: PredictNoise,
    trajectory: torch.Tensor,
    source_text: torch.Tensor,
    null_text: torch.Tensor,
    grid: DDIMGrid,
    guidance_scale: float,
    num_inner_steps: int = 10,
    early_stop_epsilon: float | None = 1e-5,
    batch_size: int | None = None,
    checkpoint: StepCheckpoint | None = None,
    on_step: Callable[[], Any] = lambda: None,
) -> torch.Tensor:
    """Null-text optimisation (Mokady et al., CVPR 2023, algorithm 1), all frames in one batch.

    At every timestep the null embedding of each frame is moved by Adam (eps 1e-4, learning rate `1e-2 (1 - i / 100)`
    at step i) until the guided step from the current latents lands on the inverted trajectory. A frame whose loss has
    fallen below `early_stop_epsilon + 2e-5 i` after an Adam step is left alone from then on, its Adam moments too.
    Embeddings, gradients and moments are float32 whatever the UNet computes in.

    Args:
        predict_noise: The noise of some frames at a timestep under a text, with the source groundings; differentiable
            in the text.
        trajectory (`torch.Tensor` of shape (S + 1, F, C, h, w)): From [`ddim_inversion`].
        source_text (`torch.Tensor` of shape (tokens, channels)): Embedding of the source prompt.
        null_text (`torch.Tensor` of shape (tokens, channels)): Where the null embeddings start.
        grid ([`DDIMGrid`]): The timesteps of the trajectory.
        guidance_scale (`float`): The scale of classifier-free guidance to optimise for.
        num_inner_steps (`int`): Adam steps a timestep at most.
        early_stop_epsilon (`float`, *optional*): `None` never stops early.
        batch_size (`int`, *optional*): Frames a forward; `None` for all.
        checkpoint ([`StepCheckpoint`], *optional*): Where finished steps are kept.
        on_step: Called after every timestep.

    Returns:
        `torch.Tensor` of shape (S, F, tokens, channels), float32: the null embedding of every timestep and frame.
    """
    checkpoint = checkpoint or StepCheckpoint(None, {})
    num_frames = trajectory.shape[1]
    batches = torch.arange(num_frames).split(batch_size or num_frames)
    z, null = trajectory[-1], null_text.float().expand(num_frames, -1, -1)
    optimized = []
    for i, timestep in enumerate(grid.timesteps):
        state = checkpoint.load(f"null-text-{i:04d}", trajectory.device)
        if state is None:
            noise_source = torch.cat(
                [
                    predict_noise(z[frames], timestep, source_text.expand(len(frames), -1, -1), frames)
                    for frames in batches
                ]
            )

            def guided_step(null: torch.Tensor, frames: torch.Tensor) -> torch.Tensor:
                noise_null = predict_noise(z[frames], timestep, null, frames)  # noqa: B023
                noise_pred = noise_null + guidance_scale * (noise_source[frames] - noise_null)  # noqa: B023
                return ddim_step(z[frames], noise_pred, grid.alphas[i], grid.previous_alphas[i])  # noqa: B023

            null = _optimize_null_embeddings(
                guided_step,
                null,
                target=trajectory[-2 - i],
                learning_rate=1e-2 * max(0.0, 1 - i / 100),
                num_steps=num_inner_steps,
                stop_below=None if early_stop_epsilon is None else early_stop_epsilon + 2e-5 * i,
                batch_size=batch_size,
            )
            z = torch.cat([guided_step(null[frames], frames) for frames in batches])
            state = {"latents": z, "null_embeddings": null}
            checkpoint.save(f"null-text-{i:04d}", state)
        z, null = state["latents"], state["null_embeddings"]
        optimized.append(null)
        on_step()
    return torch.stack(optimized)


def _optimize_null_embeddings(
    guided_step: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    null: torch.Tensor,
    target: torch.Tensor,
    learning_rate: float,
    num_steps: int,
    stop_below: float | None,
    batch_size: int | None,
) -> torch.Tensor:
    """Adam on the null embeddings (F, tokens, channels) of one timestep, towards `target` (F, C, h, w)."""
    null = null.clone()
    mean, variance = torch.zeros_like(null), torch.zeros_like(null)
    active = torch.arange(len(null))
    for step in range(1, num_steps + 1):
        losses = []
        for frames in active.split(batch_size or len(null)):
            with torch.enable_grad():
                candidate = null[frames].requires_grad_()
                # Summed here and divided in float32 below: under a float16 UNet the gradients of the mean would be
                # too small to be told from zero.
                loss = (guided_step(candidate, frames) - target[frames]).square().flatten(1).sum(dim=1)
                (gradient,) = torch.autograd.grad(loss.sum(), candidate)
            losses.append(loss.detach().cpu() / target[0].numel())
            gradient = gradient / target[0].numel()
            mean[frames] = 0.9 * mean[frames] + 0.1 * gradient
            variance[frames] = 0.999 * variance[frames] + 0.001 * gradient.square()
            corrected_mean = mean[frames] / (1 - 0.9**step)
            corrected_variance = variance[frames] / (1 - 0.999**step)
            null[frames] -= learning_rate * corrected_mean / (corrected_variance.sqrt() + 1e-4)
        if stop_below is not None:
            # Indexing only the others freezes a frame's embedding and its moments alike.
            active = active[torch.cat(losses) >= stop_below]
            if not len(active):
                break
    return null


@contextmanager
def differentiable_in_inputs_only(model: ModelMixin, gradient_checkpointing: bool) -> Iterator[None]:
    """Keeps gradients of the parameters of `model` from being prepared, and optionally checkpoints its activations.

    On leaving, every parameter and module is as it was found.

    Args:
        model (`ModelMixin`): The UNet.
        gradient_checkpointing (`bool`): Whether activations are computed again in the backward pass instead of kept.
    """
    required = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    names = ("gradient_checkpointing", "_gradient_checkpointing_func")
    flags = [
        (module, {name: module.__dict__[name] for name in names if name in module.__dict__})
        for module in model.modules()
        if hasattr(module, "gradient_checkpointing")
    ]
    try:
        for parameter, _ in required:
            parameter.requires_grad_(False)
        if gradient_checkpointing:
            model.enable_gradient_checkpointing()
        yield
    finally:
        for parameter, requires_grad in required:
            parameter.requires_grad_(requires_grad)
        for module, found in flags:
            for name in names:
                module.__dict__.pop(name, None)
            module.__dict__.update(found)


@dataclass(frozen=True, eq=False)
class InvertedClip:
    """An inverted clip, to be edited any number of times.

    Args:
        trajectory (`torch.Tensor` of shape (S + 1, F, C, h, w)): From the clean latents to the noise, float32.
        null_embeddings (`torch.Tensor`, *optional*): Of shape (S, F, tokens, channels) with null-text optimisation; of
            shape (1, 1, tokens, channels), the source prompt's embedding, with negative-prompt inversion; `None` with
            plain DDIM inversion.
        key (`dict`): Everything the inversion depends on, as JSON holds it.
    """

    trajectory: torch.Tensor
    null_embeddings: torch.Tensor | None
    key: dict[str, Any]

    @property
    def inversion_method(self) -> str:
        """`"ddim"`, `"negative-prompt"` or `"null-text"`."""
        return self.key["inversion_method"]

    @property
    def noise_latents(self) -> torch.Tensor:
        """The end of the trajectory, (F, C, h, w)."""
        return self.trajectory[-1]

    def save(self, path: str | Path) -> None:
        """Writes the inversion to a safetensors file, all of it or nothing."""
        path = Path(path)
        tensors = {"trajectory": self.trajectory.cpu().contiguous()}
        if self.null_embeddings is not None:
            tensors["null_embeddings"] = self.null_embeddings.cpu().contiguous()
        with _replacing(path) as temporary:
            # Not `save_file`, whose files only their owner may read.
            temporary.write_bytes(save(tensors, metadata={"key": json.dumps(self.key)}))

    @classmethod
    def load(cls, path: str | Path) -> "InvertedClip":
        """Reads what [`~InvertedClip.save`] wrote.

        Raises:
            `ValueError`: If the file does not exist or is not such a file.
        """
        try:
            with safe_open(path, framework="pt") as file:
                key = json.loads((file.metadata() or {})["key"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return cls(tensors["trajectory"], tensors.get("null_embeddings"), key)
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            raise ValueError(f"`path`: {str(path)!r} is not a saved InvertedClip: {error!r}") from error


def check_key(made_for: Mapping[str, Any], asked_for: Mapping[str, Any], what: str) -> None:
    """Raises a `ValueError` that lists where two inversion keys differ, if they do.

    Args:
        made_for (`dict`): The key of the inversion at hand.
        asked_for (`dict`): The key, or the part of it, that the call leads to.
        what (`str`): How the message calls the inversion at hand.
    """
    # Through JSON, since a stored key went through it: tuples become lists.
    asked_for = json.loads(json.dumps(asked_for))
    different = [name for name, value in asked_for.items() if made_for.get(name) != value]
    if different:
        details = "; ".join(
            f"{name}: made for {_short(made_for.get(name))}, called with {_short(asked_for[name])}"
            for name in different
        )
        raise ValueError(f"{what} was made for another inversion. {details}.")


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else text[:77] + "..."


def tensor_hash(tensor: torch.Tensor) -> str:
    """SHA-256 of a tensor's values, in float32."""
    return hashlib.sha256(tensor.detach().cpu().float().contiguous().numpy().tobytes()).hexdigest()


def model_fingerprint(model: nn.Module) -> str:
    """Tells one set of weights from another: SHA-256 over names, shapes, dtypes and up to 256 values a parameter.

    LoRA layers are parameters too; their scales and which of them are active count as well.
    """
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        values = parameter.detach().flatten()
        stride = max(1, values.numel() // 256)
        digest.update(f"{name} {tuple(parameter.shape)} {parameter.dtype}".encode())
        # Weights that sequential offloading keeps elsewhere are told by name and shape alone.
        if not parameter.is_meta:
            digest.update(values[::stride][:256].cpu().float().numpy().tobytes())
    for name, module in model.named_modules():
        if hasattr(module, "active_adapters") and hasattr(module, "scaling"):
            state = (sorted(module.scaling.items()), list(module.active_adapters), module.disable_adapters)
            digest.update(f"{name} {state}".encode())
    return digest.hexdigest()
