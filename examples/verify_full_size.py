"""Checks a real edit on your machine, and writes a report to attach to an issue:

python examples/verify_full_size.py clip.mp4 edit.json report/ --depth depth/ --flow flow.safetensors

The edit of README.md is run twice with one seed. Checked are the shape of the result, that its picture is one (half
precision can end in NaN), that both runs agree, that what was not opened is the clip itself, that memory does not grow
from run to run, and that the models are left as they were found. `report/` receives report.md, report.json and the
edit beside the clip; the first two hold your prompts and phrases, but no paths. The exit code is 1 if a check fails.
"""

import argparse
import json
import platform
import sys
import time
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import ControlNetModel
from safetensors.torch import load_file

from diffusers_groundavideo import GroundAVideoPipeline, VideoGrounding
from diffusers_groundavideo.inversion import model_fingerprint
from diffusers_groundavideo.video import Clip, read_clip, side_by_side, to_uint8, write_clip


@dataclass
class Run:
    """One of the two edits: frames (F, H, W, 3) in [0, 1], and what it took. Memory is None without CUDA."""

    frames: np.ndarray
    opened_share: float
    seconds: float
    peak_memory_bytes: int | None
    kept_memory_bytes: int | None


@dataclass
class Check:
    name: str
    passed: bool
    detail: str


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clip", help="a video, a gif or a folder of frames")
    parser.add_argument("edit", help="JSON file with `source_prompt`, `target_prompt` and `objects`")
    parser.add_argument("report", type=Path, help="folder for the report")
    parser.add_argument("--depth", help="what the ControlNet sees, near is bright: as many frames as the clip has")
    parser.add_argument("--flow", help="safetensors file with `flow` and optionally `backward_flow`")
    parser.add_argument("--model", default="masterful/gligen-1-4-inpainting-text-box", help="folder or Hub id")
    parser.add_argument("--variant", default="fp16", help='of the files of the model; "" for none')
    parser.add_argument("--controlnet", default="lllyasviel/control_v11f1p_sd15_depth", help="used with --depth")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", default="float16", choices=["float16", "bfloat16", "float32"])
    parser.add_argument("--height", type=int, help="to work at; by default the clip's")
    parser.add_argument("--width", type=int, help="to work at; by default the clip's")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def load_pipeline(args: argparse.Namespace) -> Any:
    dtype = getattr(torch, args.dtype)
    controlnet = ControlNetModel.from_pretrained(args.controlnet, dtype=dtype) if args.depth else None
    return GroundAVideoPipeline.from_pretrained(
        args.model, controlnet=controlnet, variant=args.variant or None, dtype=dtype
    ).to(args.device)


def edit_once(pipe: Any, args: argparse.Namespace, clip: Clip, edit: dict[str, Any]) -> Run:
    on_cuda = pipe.device.type == "cuda"
    if on_cuda:
        torch.cuda.reset_peak_memory_stats(pipe.device)
    start = time.perf_counter()
    result = pipe(
        video=clip.frames,
        source_prompt=edit["source_prompt"],
        prompt=edit["target_prompt"],
        grounding=VideoGrounding.from_dict(edit),
        conditioning_frames=read_clip(args.depth).frames if args.depth else None,
        height=args.height,
        width=args.width,
        restore_size=True,
        num_inference_steps=args.steps,
        generator=torch.Generator().manual_seed(args.seed),
        output_type="np",
        **(load_file(args.flow) if args.flow else {}),
    )
    return Run(
        frames=result.frames[0],
        opened_share=result.opened_share[0],
        seconds=time.perf_counter() - start,
        peak_memory_bytes=torch.cuda.max_memory_allocated(pipe.device) if on_cuda else None,
        kept_memory_bytes=torch.cuda.memory_allocated(pipe.device) if on_cuda else None,
    )


def models_state(pipe: Any) -> dict[str, Any]:
    models = {"unet": pipe.unet, "vae": pipe.vae, "text_encoder": pipe.text_encoder}
    if pipe.controlnet is not None:
        models["controlnet"] = pipe.controlnet
    state: dict[str, Any] = {name: model_fingerprint(model) for name, model in models.items()}
    return state | {"processors": dict(pipe.unet.attn_processors)}


def opened_pixels(clip: Clip, edit: dict[str, Any], args: argparse.Namespace, scale_factor: int) -> np.ndarray:
    """(F, H, W) bool, at the clip's size: the latent cells that the edit opens, upsampled nearest."""
    num_frames, height, width = clip.frames.shape[:3]
    latent_height = (args.height or max(1, round(height / scale_factor)) * scale_factor) // scale_factor
    latent_width = (args.width or max(1, round(width / scale_factor)) * scale_factor) // scale_factor
    mask = VideoGrounding.from_dict(edit).edit_mask(num_frames, latent_height, latent_width)
    return F.interpolate(mask, (height, width), mode="nearest-exact")[:, 0].numpy() == 0


def checks_of(clip: Clip, opened: np.ndarray, runs: list[Run], models_unchanged: bool) -> list[Check]:
    first, second = runs
    pixels = (first.frames * 255).round()
    shape = Check("shape", pixels.shape == clip.frames.shape, f"{pixels.shape}, the clip is {clip.frames.shape}")
    if not shape.passed:
        return [shape]
    finite, spread = bool(np.isfinite(first.frames).all()), float(pixels[opened].std())
    num_closed, num_differing = int((~opened).sum()), int((pixels != clip.frames).any(axis=-1)[~opened].sum())
    largest = float(np.abs(first.frames - second.frames).max())
    checks = [
        shape,
        Check("picture", finite and spread > 1, f"finite: {finite}, spread of the opened pixels: {spread:.1f} of 255"),
        Check("determinism", largest == 0, f"largest difference of two runs: {255 * largest:g} of 255"),
        Check("background", num_differing == 0, f"{num_differing} of {num_closed} pixels that were not opened differ"),
        Check("models", models_unchanged, "weights and processors as before" if models_unchanged else "changed"),
    ]
    if first.peak_memory_bytes is None or second.peak_memory_bytes is None:
        return checks
    steady = second.peak_memory_bytes <= 1.01 * first.peak_memory_bytes
    steady = steady and second.kept_memory_bytes == first.kept_memory_bytes
    detail = f"peaks {in_gib(first.peak_memory_bytes)} and {in_gib(second.peak_memory_bytes)}"
    detail += f", kept {in_gib(first.kept_memory_bytes)} and {in_gib(second.kept_memory_bytes)}"
    return [*checks, Check("memory", steady, detail)]


def in_gib(num_bytes: int | None) -> str:
    return "not measured" if num_bytes is None else f"{num_bytes / 2**30:.2f} GiB"


def environment(args: argparse.Namespace) -> dict[str, Any]:
    packages = ("diffusers-groundavideo", "diffusers", "transformers", "torch")
    device = torch.device(args.device)
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine(),
        "device_memory_bytes": torch.cuda.get_device_properties(device).total_memory
        if device.type == "cuda"
        else None,
        "platform": platform.platform(),
        "python": platform.python_version(),
        "versions": {package: version(package) for package in packages},
    }


def as_markdown(report: dict[str, Any]) -> str:
    failed = [check["name"] for check in report["checks"] if not check["passed"]]
    lines = [
        "# Full-size verification",
        "",
        f"**{'Failed: ' + ', '.join(failed) if failed else 'All checks passed.'}**",
    ]
    lines += ["", "| check | | |", "| --- | --- | --- |"]
    lines += [
        f"| {one['name']} | {'ok' if one['passed'] else 'FAILED'} | {one['detail']} |" for one in report["checks"]
    ]
    lines += ["", "| run | seconds | peak memory |", "| --- | --- | --- |"]
    lines += [
        f"| {number} | {run['seconds']:.1f} | {in_gib(run['peak_memory_bytes'])} |"
        for number, run in enumerate(report["runs"], start=1)
    ]
    lines += ["", "| | |", "| --- | --- |"]
    for section in ("environment", "settings"):
        lines += [f"| {name} | {value} |" for name, value in report[section].items()]
    return "\n".join(lines) + "\n"


def main() -> int:
    args = parse_arguments()
    edit = json.loads(Path(args.edit).read_text(encoding="utf-8"))
    clip = read_clip(args.clip)
    pipe = load_pipeline(args)

    before = models_state(pipe)
    runs = [edit_once(pipe, args, clip, edit) for _ in range(2)]
    opened = opened_pixels(clip, edit, args, pipe.vae_scale_factor)
    checks = checks_of(clip, opened, runs, models_state(pipe) == before)

    num_frames, height, width = clip.frames.shape[:3]
    report = {
        "checks": [asdict(check) for check in checks],
        "runs": [{"seconds": run.seconds, "peak_memory_bytes": run.peak_memory_bytes} for run in runs],
        "environment": environment(args),
        "settings": {
            "model": Path(args.model).name if Path(args.model).is_dir() else args.model,
            "variant": args.variant,
            "dtype": args.dtype,
            "clip": f"{num_frames} frames of {width}x{height} at {clip.fps:g} fps",
            "working size": f"{args.width or width}x{args.height or height}",
            "opened share": runs[0].opened_share,
            "steps": args.steps,
            "seed": args.seed,
            "ControlNet": bool(args.depth),
            "flow": bool(args.flow),
            "source prompt": edit["source_prompt"],
            "prompt": edit["target_prompt"],
            "objects": [[item["source_phrase"], item["target_phrase"]] for item in edit["objects"]],
        },
    }
    args.report.mkdir(parents=True, exist_ok=True)
    (args.report / "report.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    (args.report / "report.md").write_text(as_markdown(report), encoding="utf-8")
    edited = to_uint8(np.nan_to_num(runs[0].frames))
    write_clip(args.report / "edit.mp4", side_by_side([clip.frames, edited], ["before", "after"]), clip.fps)
    print(as_markdown(report))
    return int(not all(check.passed for check in checks))


if __name__ == "__main__":
    sys.exit(main())
