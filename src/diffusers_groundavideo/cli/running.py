"""What the commands share: reading their files, loading the pipeline, timing the stages, the run record."""

import hashlib
import json
import platform
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import typer
from rich.console import Console

from .. import __version__
from ..video import Clip, check_output_path, read_clip, side_by_side, write_clip


# torch, diffusers and what builds on them take seconds to import, and `--help` needs none of them: the functions that
# do import them.
if TYPE_CHECKING:
    import torch

    from ..grounding import VideoGrounding
    from ..pipeline import GroundAVideoPipeline


console = Console(markup=False, highlight=False, soft_wrap=True)

# Options that mean the same in several commands.
ClipPath = Annotated[
    Path, typer.Argument(metavar="CLIP", help="A video, a gif, or a folder of frames (taken in numeric order).")
]
FrameBatchSize = Annotated[
    int | None, typer.Option(help="Frames at once wherever they are independent, to save memory. By default all.")
]
Device = Annotated[str | None, typer.Option(help="By default the accelerator if there is one, else the CPU.")]
Dtype = Annotated[
    Literal["float32", "float16", "bfloat16"] | None,
    typer.Option(metavar="TYPE", help="float32, float16 or bfloat16; by default float16 on CUDA, else float32."),
]
MaxFrames = Annotated[int | None, typer.Option(help="Take only so many frames from the start of the clip.")]


@dataclass(frozen=True)
class EditFile:
    """An edit file: what is in the clip, and the two prompts if it holds them."""

    grounding: "VideoGrounding"
    source_prompt: str | None
    target_prompt: str | None


def read_edit_file(path: Path) -> EditFile:
    from ..grounding import VideoGrounding

    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"--edit {path} could not be read as JSON: {error}") from error
    try:
        grounding = VideoGrounding.from_dict(data)
    except ValueError as error:
        raise ValueError(f"--edit {path}: {error}") from error
    return EditFile(grounding, data.get("source_prompt"), data.get("target_prompt"))


def read_depth(path: Path, source: Clip, max_frames: int | None) -> np.ndarray:
    """(F, H', W', 3) uint8."""
    frames = read_clip(path, max_frames=max_frames).frames
    if len(frames) != len(source.frames):
        raise ValueError(f"--depth {path} has {len(frames)} frames, but the clip has {len(source.frames)}.")
    return frames


def read_flow(path: Path | None, source: Clip, max_frames: int | None) -> dict[str, Any]:
    """`flow` and, where the file has it, `backward_flow`: (F - 1, 2, H', W') each."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from ..inputs import flow_to_tensors

    if path is None:
        return {}
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"--flow {path} could not be read as safetensors: {error}") from error
    if not {"flow"} <= set(tensors) <= {"flow", "backward_flow"}:
        raise ValueError(f"--flow {path} has to hold `flow`, and may hold `backward_flow`, but holds {list(tensors)}.")
    num_pairs = None if max_frames is None else max_frames - 1
    flows = {name: tensor[:num_pairs] for name, tensor in tensors.items()}
    for name, tensor in flows.items():
        flow_to_tensors(tensor, f"{name} of --flow {path}", 1, len(source.frames))
    return flows


def check_outputs(clip: Path, output: Path, comparison: Path | None) -> None:
    """Has a result that could not be written, or would replace the clip, said before anything runs."""
    for path in filter(None, (output, comparison)):
        check_output_path(path)
        if path.resolve() == clip.resolve():
            raise ValueError(f"{path} is the clip itself: write the result elsewhere.")


def write_result(source: Clip, edited: np.ndarray, output: Path, comparison: Path | None) -> None:
    """Writes the edited frames, (F, H, W, 3) uint8, at the clip's rate; beside the clip, too, to `comparison`."""
    write_clip(output, edited, source.fps)
    if comparison is not None:
        write_clip(comparison, side_by_side([source.frames, edited], ["before", "after"]), source.fps)


def record_path_of(output: Path) -> Path:
    return output.with_name(f"{output.stem}.run.json")


def check_number_of_conditions(pipe: "GroundAVideoPipeline", controlnet: list[str] | None, conditions: int) -> None:
    from diffusers import MultiControlNetModel

    nets = len(pipe.controlnet.nets) if isinstance(pipe.controlnet, MultiControlNetModel) else bool(pipe.controlnet)
    if (controlnet or conditions) and conditions != nets:
        raise ValueError(
            f"--depth has to be given once for each ControlNet: {int(nets)} times, but was given {conditions}."
        )


def one_or_all(clips: list[np.ndarray]) -> Any:
    """What the pipeline takes for no ControlNet, for a single one, or for several."""
    return clips if len(clips) > 1 else clips[0] if clips else None


def choose_device(name: str | None) -> "torch.device":
    import torch

    if name is None:
        accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        return accelerator or torch.device("cpu")
    try:
        return torch.empty(0, device=name).device
    # How torch says that it was built without this device.
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device {name} cannot be used: {error}") from error


def load_pipeline(
    model: str,
    device: "torch.device",
    dtype: Literal["float32", "float16", "bfloat16"] | None,
    variant: str | None,
    controlnet: list[str] | None,
) -> "GroundAVideoPipeline":
    import torch
    from diffusers import ControlNetModel, MultiControlNetModel

    from ..pipeline import GroundAVideoPipeline

    torch_dtype = getattr(torch, dtype or ("float16" if device.type == "cuda" else "float32"))
    components: dict[str, Any] = {}
    name = f"--model {model}"
    try:
        if controlnet:
            nets = []
            for one in controlnet:
                name = f"--controlnet {one}"
                nets.append(ControlNetModel.from_pretrained(one, dtype=torch_dtype))
            components["controlnet"] = MultiControlNetModel(nets) if len(nets) > 1 else nets[0]
        name = f"--model {model}"
        pipe = GroundAVideoPipeline.from_pretrained(model, variant=variant, dtype=torch_dtype, **components)
    except (ValueError, OSError) as error:
        raise ValueError(f"{name} could not be loaded: {error}") from error
    return pipe.to(device)


def describe_edit(grounding: "VideoGrounding", source: Clip, source_prompt: str | None, prompt: str | None) -> None:
    num_frames, height, width = source.frames.shape[:3]
    console.print(f"Clip: {num_frames} frames of {width}x{height} at {source.fps:g} frames a second.")
    if source_prompt is not None:
        console.print(f"Now: {source_prompt}")
    if prompt is not None:
        console.print(f"To be: {prompt}")
    for grounded in grounding.objects:
        phrases = [phrase for phrase in (grounded.source_phrase, grounded.target_phrase) if phrase is not None]
        if prompt is None or grounded.role == "kept":
            phrases = phrases[:1]
        console.print(f"  {'object' if prompt is None else grounded.role:8} {' -> '.join(phrases)}")


def frames_hash(frames: np.ndarray) -> str:
    """SHA-256 of the pixels, (F, H, W, 3) uint8."""
    return hashlib.sha256(frames.tobytes()).hexdigest()


@dataclass
class Run:
    """Times the stages of a command and writes its record.

    Args:
        arguments: Of the command, by name.
        device: Where the models are.
        seconds: Of each stage, as they end.
    """

    arguments: dict[str, Any]
    device: "torch.device"
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        import torch

        start = time.perf_counter()
        yield
        if self.device.type != "cpu":
            torch.accelerator.synchronize(self.device)
        self.seconds[name] = time.perf_counter() - start
        console.print(f"{name}: {self.seconds[name]:.1f} s")

    def write_record(self, path: Path, source: Clip, **facts: Any) -> None:
        """Writes everything that tells one run from another as JSON."""
        num_frames, height, width = source.frames.shape[:3]
        packages = ("diffusers", "transformers", "torch")
        record = {
            "versions": {
                "diffusers-groundavideo": __version__,
                **{package: version(package) for package in packages},
                "python": platform.python_version(),
            },
            "arguments": self.arguments,
            "device": str(self.device),
            "clip": {
                "sha256": frames_hash(source.frames),
                "num_frames": num_frames,
                "height": height,
                "width": width,
                "fps": source.fps,
            },
            **facts,
            "seconds": self.seconds,
            "peak_memory_bytes": self._peak_memory(),
        }
        # Paths are the only arguments that JSON does not know.
        path.write_text(json.dumps(record, indent=1, default=str) + "\n", encoding="utf-8")

    def _peak_memory(self) -> int | None:
        """Of the GPU with CUDA, else of the process; `None` on Windows, which keeps no such account."""
        import torch

        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        if sys.platform == "win32":
            return None
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else 1024 * peak
