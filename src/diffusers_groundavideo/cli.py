"""The command line: `groundavideo edit` and `groundavideo invert`."""

import hashlib
import json
import platform
import secrets
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
from rich.text import Text
from typer.core import TyperGroup

from . import __version__
from .video import Clip, check_output_path, read_clip, write_clip
from .video import side_by_side as join_side_by_side


# torch, diffusers and what builds on them take seconds to import, and `--help` needs none of them: the functions that
# do import them.
if TYPE_CHECKING:
    import torch

    from .grounding import VideoGrounding
    from .pipeline import GroundAVideoPipeline


_console = Console(markup=False, highlight=False, soft_wrap=True)
_errors = Console(stderr=True, highlight=False, soft_wrap=True)


class _Commands(TyperGroup):
    """Says in one line what is wrong with the input or the disk, in place of a traceback."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except (ValueError, OSError) as error:
            _errors.print(Text(f"Error: {' '.join(str(error).split())}", style="red"))
            raise typer.Exit(2) from error


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    add_completion=False,
    # The boxes of the other mode cut long options short in a window of 80 columns.
    rich_markup_mode=None,
    help="Edits several objects of a video clip at once, each in its place, without training.",
)

ClipPath = Annotated[
    Path, typer.Argument(metavar="CLIP", help="A video, a gif, or a folder of frames (taken in numeric order).")
]
EditPath = Annotated[
    Path,
    typer.Option(
        "--edit", metavar="FILE", help="Objects with phrases and boxes, `source_prompt` and `target_prompt`."
    ),
]
Model = Annotated[
    str, typer.Option(metavar="MODEL", help="A GLIGEN checkpoint: a folder in diffusers' layout or a Hub id.")
]
SourcePrompt = Annotated[str | None, typer.Option(help="What the clip shows now, in place of the file's.")]
Height = Annotated[int | None, typer.Option(help="Height to work at, divisible by 8. By default about the clip's.")]
Width = Annotated[int | None, typer.Option(help="Width to work at, divisible by 8. By default about the clip's.")]
NumInferenceSteps = Annotated[int, typer.Option(help="Steps of inversion and denoising alike.")]
GuidanceScale = Annotated[float, typer.Option(help="Of classifier-free guidance; at most 1 turns it off.")]
InversionMethod = Annotated[
    Literal["negative-prompt", "null-text", "ddim"],
    typer.Option(metavar="METHOD", help="negative-prompt, ddim, or null-text, which takes longest."),
]
NumNullTextSteps = Annotated[int, typer.Option(help="Optimisation steps a timestep at most, with null-text.")]
FrameBatchSize = Annotated[
    int | None, typer.Option(help="Frames at once wherever they are independent, to save memory. By default all.")
]
Device = Annotated[str | None, typer.Option(help="By default the accelerator if there is one, else the CPU.")]
Dtype = Annotated[
    Literal["float32", "float16", "bfloat16"] | None,
    typer.Option(metavar="TYPE", help="float32, float16 or bfloat16; by default float16 on CUDA, else float32."),
]
Variant = Annotated[str | None, typer.Option(help='Of the files of the model, such as "fp16".')]
MaxFrames = Annotated[int | None, typer.Option(help="Take only so many frames from the start of the clip.")]


@app.command(
    "edit", epilog="To invert a clip once for several edits, call `groundavideo invert` and then edit with --inverted."
)
def edit_clip(
    ctx: typer.Context,
    clip: ClipPath,
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            metavar="PATH",
            help="The result: .mp4, .gif, or a new folder of PNG frames. Its run record is written beside it.",
        ),
    ],
    edit: EditPath,
    model: Model,
    controlnet: Annotated[
        list[str] | None,
        typer.Option(metavar="MODEL", help="A ControlNet; may be repeated. By default that of the model."),
    ] = None,
    depth: Annotated[
        list[Path] | None,
        typer.Option(metavar="CLIP", help="What the ControlNet sees, a clip too; once for each ControlNet."),
    ] = None,
    flow: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="`flow` and optionally `backward_flow`, of shape (frames - 1, 2, height, width).",
        ),
    ] = None,
    prompt: Annotated[
        str | None, typer.Option(help="What the clip shall show, in place of the file's `target_prompt`.")
    ] = None,
    source_prompt: SourcePrompt = None,
    negative_prompt: Annotated[str | None, typer.Option(help="With ddim inversion only.")] = None,
    height: Height = None,
    width: Width = None,
    num_inference_steps: NumInferenceSteps = 50,
    guidance_scale: GuidanceScale = 12.5,
    inversion_method: InversionMethod = "negative-prompt",
    num_null_text_steps: NumNullTextSteps = 10,
    frame_batch_size: FrameBatchSize = None,
    flow_threshold: Annotated[
        float | None, typer.Option(help="Motion above which latents are left unsmoothed, in latent cells (0.25).")
    ] = None,
    relative_flow_threshold: Annotated[
        bool, typer.Option("--relative-flow-threshold", help="The threshold is a share of the largest motion (0.2).")
    ] = False,
    open_all_boxes: Annotated[
        bool, typer.Option("--open-all-boxes", help="Open the boxes of kept objects too, as published.")
    ] = False,
    paste_back: Annotated[bool, typer.Option(help="Take pixels that were not opened from the clip itself.")] = True,
    controlnet_conditioning_scale: Annotated[
        list[float] | None, typer.Option(help="Weight of the ControlNet (1.0); once, or once for each.")
    ] = None,
    gligen_scheduled_sampling_beta: Annotated[
        float, typer.Option(help="Share of the steps in which the boxes are heeded.")
    ] = 1.0,
    inverted: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A saved inversion of this clip, in place of inverting.")
    ] = None,
    save_inverted: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Where to keep the inversion for other edits.")
    ] = None,
    side_by_side: Annotated[
        Path | None, typer.Option("--side-by-side", metavar="PATH", help="Also write the clip beside its edit.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="By default a random one, said in the run record.")] = None,
    device: Device = None,
    dtype: Dtype = None,
    variant: Variant = None,
    max_frames: MaxFrames = None,
) -> None:
    """Edits CLIP, at its own size and rate."""
    for path in filter(None, (output, side_by_side)):
        check_output_path(path)
        if path.resolve() == clip.resolve():
            raise ValueError(f"{path} is the clip itself: write the result elsewhere.")
    if save_inverted is not None:
        _check_inversion_path(save_inverted, "--save-inverted")
        if inverted is not None:
            raise ValueError("--save-inverted and --inverted exclude each other: nothing is inverted here.")
    record_path = _record_path(output)
    source = read_clip(clip, max_frames=max_frames)
    objects = _read_edit(edit)
    prompt = objects.target_prompt if prompt is None else prompt
    source_prompt = objects.source_prompt if source_prompt is None else source_prompt
    if prompt is None:
        raise ValueError(f"There is no 'target_prompt' in {edit} and no --prompt.")
    objects.grounding.frame_boxes(len(source.frames))
    conditioning_clips = [_read_depth(path, source, max_frames) for path in depth or []]
    flows = _read_flow(flow, source, max_frames)

    from .inversion import InvertedClip

    inverted_clip: Any = None if inverted is None else InvertedClip.load(inverted)
    if seed is None:
        seed = secrets.randbelow(2**32)
    run = _Run(ctx.params, _choose_device(device))
    _describe(objects.grounding, source, source_prompt, prompt)
    _console.print(f"Seed {seed}, on {run.device}.")

    with run.stage("load"):
        pipe = _load_pipeline(model, run.device, dtype, variant, controlnet)
    _check_number_of_conditions(pipe, controlnet, depth)
    scales = controlnet_conditioning_scale or [1.0]
    for_inversion: dict[str, Any] = {
        "source_prompt": source_prompt,
        "num_inference_steps": num_inference_steps,
        "guidance_scale": guidance_scale,
        "inversion_method": inversion_method,
        "num_null_text_steps": num_null_text_steps,
        "frame_batch_size": frame_batch_size,
    }
    for_edit: dict[str, Any] = for_inversion | {
        "prompt": prompt,
        "negative_prompt": negative_prompt,
        "flow_threshold": flow_threshold,
        "relative_flow_threshold": relative_flow_threshold,
        "controlnet_conditioning_scale": scales if len(scales) > 1 else scales[0],
        "gligen_scheduled_sampling_beta": gligen_scheduled_sampling_beta,
    }
    if inverted_clip is None:
        _check_before_inverting(pipe, source, objects.grounding, flows, for_edit)
        with run.stage("invert"):
            inverted_clip = pipe.invert(source.frames, objects.grounding, height=height, width=width, **for_inversion)
    if save_inverted is not None:
        # Kept whatever happens next: it is whole, and took longest.
        save_inverted.parent.mkdir(parents=True, exist_ok=True)
        inverted_clip.save(save_inverted)

    import torch

    with run.stage("edit"):
        clips, opened_shares = pipe(
            source.frames,
            objects.grounding,
            inverted=inverted_clip,
            conditioning_frames=_one_or_all(conditioning_clips),
            height=height,
            width=width,
            open_all_boxes=open_all_boxes,
            paste_back=paste_back,
            restore_size=True,
            generator=torch.Generator().manual_seed(seed),
            return_dict=False,
            **flows,
            **for_edit,
        )
    frames = np.stack([np.asarray(frame) for frame in clips[0]])
    _console.print(f"Open to the edit: {opened_shares[0]:.1%} of the clip.")

    with run.stage("write"):
        write_clip(output, frames, source.fps)
        if side_by_side is not None:
            write_clip(side_by_side, join_side_by_side([source.frames, frames], ["before", "after"]), source.fps)
    run.write_record(record_path, source, seed=seed, opened_share=opened_shares[0], result_sha256=_frames_hash(frames))
    _console.print(f"Wrote {output} and {record_path}.")


@app.command("invert")
def invert_clip(
    ctx: typer.Context,
    clip: ClipPath,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE", help="For --inverted of `groundavideo edit`.")
    ],
    edit: EditPath,
    model: Model,
    source_prompt: SourcePrompt = None,
    height: Height = None,
    width: Width = None,
    num_inference_steps: NumInferenceSteps = 50,
    guidance_scale: GuidanceScale = 12.5,
    inversion_method: InversionMethod = "negative-prompt",
    num_null_text_steps: NumNullTextSteps = 10,
    frame_batch_size: FrameBatchSize = None,
    checkpoint_dir: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Keeps finished steps: a killed run goes on from the last.")
    ] = None,
    device: Device = None,
    dtype: Dtype = None,
    variant: Variant = None,
    max_frames: MaxFrames = None,
) -> None:
    """Inverts CLIP once, for any number of edits of the same objects (size, steps and model have to be the same)."""
    _check_inversion_path(output, "--output")
    source = read_clip(clip, max_frames=max_frames)
    objects = _read_edit(edit)
    source_prompt = objects.source_prompt if source_prompt is None else source_prompt
    objects.grounding.frame_boxes(len(source.frames))

    run = _Run(ctx.params, _choose_device(device))
    _describe(objects.grounding, source, source_prompt, None)
    with run.stage("load"):
        pipe = _load_pipeline(model, run.device, dtype, variant, controlnet=None)
    with run.stage("invert"):
        inverted = pipe.invert(
            source.frames,
            objects.grounding,
            source_prompt=source_prompt,
            height=height,
            width=width,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            inversion_method=inversion_method,
            num_null_text_steps=num_null_text_steps,
            frame_batch_size=frame_batch_size,
            checkpoint_dir=None if checkpoint_dir is None else str(checkpoint_dir),
        )
    assert not isinstance(inverted, list)
    with run.stage("write"):
        output.parent.mkdir(parents=True, exist_ok=True)
        inverted.save(output)
    run.write_record(_record_path(output), source)
    _console.print(f"Wrote {output} and {_record_path(output)}.")


@dataclass(frozen=True)
class _Objects:
    """An edit file: what is in the clip, and the two prompts if it holds them."""

    grounding: "VideoGrounding"
    source_prompt: str | None
    target_prompt: str | None


def _read_edit(path: Path) -> _Objects:
    from .grounding import VideoGrounding

    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"--edit {path} could not be read as JSON: {error}") from error
    try:
        grounding = VideoGrounding.from_dict(data)
    except ValueError as error:
        raise ValueError(f"--edit {path}: {error}") from error
    return _Objects(grounding, data.get("source_prompt"), data.get("target_prompt"))


def _read_depth(path: Path, source: Clip, max_frames: int | None) -> np.ndarray:
    """(F, H', W', 3) uint8."""
    frames = read_clip(path, max_frames=max_frames).frames
    if len(frames) != len(source.frames):
        raise ValueError(f"--depth {path} has {len(frames)} frames, but the clip has {len(source.frames)}.")
    return frames


def _read_flow(path: Path | None, source: Clip, max_frames: int | None) -> dict[str, Any]:
    """`flow` and, where the file has it, `backward_flow`: (F - 1, 2, H', W') each."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from .inputs import flow_to_tensors

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


def _check_inversion_path(path: Path, option: str) -> None:
    if path.suffix != ".safetensors" or path.is_dir():
        raise ValueError(f"{option} has to be a file that ends in .safetensors, but is {path}.")


def _record_path(output: Path) -> Path:
    return output.with_name(f"{output.stem}.run.json")


def _check_number_of_conditions(
    pipe: "GroundAVideoPipeline", controlnet: list[str] | None, depth: list[Path] | None
) -> None:
    from diffusers import MultiControlNetModel

    nets = len(pipe.controlnet.nets) if isinstance(pipe.controlnet, MultiControlNetModel) else bool(pipe.controlnet)
    if (controlnet or depth) and len(depth or []) != nets:
        raise ValueError(
            f"--depth has to be given once for each ControlNet: {int(nets)} times, but was given {len(depth or [])}."
        )


def _check_before_inverting(
    pipe: "GroundAVideoPipeline",
    source: Clip,
    grounding: "VideoGrounding",
    flows: dict[str, Any],
    arguments: dict[str, Any],
) -> None:
    """Has what is wrong with the edit said before hours of inversion, not after them."""
    pipe.check_inputs(
        pixels=pipe.preprocess_video(source.frames),
        groundings=[grounding],
        size=(source.frames.shape[1], source.frames.shape[2]),
        has_flow="flow" in flows,
        has_backward_flow="backward_flow" in flows,
        inverted=None,
        latents=None,
        prompt_embeds=None,
        negative_prompt_embeds=None,
        phrase_embeds=None,
        num_videos_per_prompt=1,
        eta=0.0,
        generator=None,
        control_guidance_start=0.0,
        control_guidance_end=1.0,
        cross_attention_kwargs=None,
        output_type="pil",
        callback_on_step_end_tensor_inputs=["latents"],
        **arguments,
    )


def _one_or_all(clips: list[np.ndarray]) -> Any:
    """What the pipeline takes for no ControlNet, for a single one, or for several."""
    return clips if len(clips) > 1 else clips[0] if clips else None


def _choose_device(name: str | None) -> "torch.device":
    import torch

    if name is None:
        accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        return accelerator or torch.device("cpu")
    try:
        return torch.empty(0, device=name).device
    # How torch says that it was built without this device.
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device {name} cannot be used: {error}") from error


def _load_pipeline(
    model: str,
    device: "torch.device",
    dtype: Literal["float32", "float16", "bfloat16"] | None,
    variant: str | None,
    controlnet: list[str] | None,
) -> "GroundAVideoPipeline":
    import torch
    from diffusers import ControlNetModel, MultiControlNetModel

    from .pipeline import GroundAVideoPipeline

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


def _describe(grounding: "VideoGrounding", source: Clip, source_prompt: str | None, prompt: str | None) -> None:
    num_frames, height, width = source.frames.shape[:3]
    _console.print(f"Clip: {num_frames} frames of {width}x{height} at {source.fps:g} frames a second.")
    if source_prompt is not None:
        _console.print(f"Now: {source_prompt}")
    if prompt is not None:
        _console.print(f"To be: {prompt}")
    for grounded in grounding.objects:
        phrases = [phrase for phrase in (grounded.source_phrase, grounded.target_phrase) if phrase is not None]
        if prompt is None or grounded.role == "kept":
            phrases = phrases[:1]
        _console.print(f"  {'object' if prompt is None else grounded.role:8} {' -> '.join(phrases)}")


def _frames_hash(frames: np.ndarray) -> str:
    """SHA-256 of the pixels, (F, H, W, 3) uint8."""
    return hashlib.sha256(frames.tobytes()).hexdigest()


@dataclass
class _Run:
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
        _console.print(f"{name}: {self.seconds[name]:.1f} s")

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
                "sha256": _frames_hash(source.frames),
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
