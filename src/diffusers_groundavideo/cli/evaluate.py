"""The command `groundavideo evaluate`."""

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import typer
from rich.table import Table

from ..video import Clip, read_clip
from .annotate import CacheDir, ClipReader
from .running import Device, Run, choose_device, console, read_edit_file, read_flow


# `--help` does not wait for torch: the functions that need it import it.
if TYPE_CHECKING:
    from ..evaluation import ClipScorer
    from ..grounding import VideoGrounding


# The metrics in the order of the table: what it calls them, what is better, and the scale in which papers print them.
_ROWS = {
    "outside_psnr": ("PSNR outside of what is opened, dB", "more", 1),
    "outside_ssim": ("SSIM outside", "more", 1),
    "outside_lpips": ("LPIPS outside, by area", "less", 1),
    "outside_change": ("mean absolute change outside, of 255", "less", 255),
    "warp_error": ("warp error, 1e-3", "less", 1000),
    "static_flicker": ("flicker where the source is still, 1e-3", "less", 1000),
    "text_alignment": ("CLIP text alignment, 1e-2", "more", 100),
    "frame_consistency_consecutive": ("CLIP consistency, consecutive, 1e-2", "more", 100),
    "frame_consistency_all": ("CLIP consistency, all pairs, 1e-2", "more", 100),
    "q_edit": ("Q-edit", "more", 1),
    "cross_instance_accuracy": ("Cross-Instance Accuracy", "more", 1),
    "pick_score": ("PickScore", "more", 1),
}


def evaluate_edit(
    ctx: typer.Context,
    source: Annotated[Path, typer.Argument(metavar="SOURCE", help="The clip before the edit: a file or a folder.")],
    edited: Annotated[
        Path,
        typer.Argument(metavar="EDITED", help="The clip after it. A video loses detail, a folder of PNGs does not."),
    ],
    preset: Annotated[
        str | None, typer.Option(metavar="PRESET", help="What was asked for: a preset's folder, file or Hub id.")
    ] = None,
    grounding: Annotated[
        Path | None,
        typer.Option("--grounding", "--edit", metavar="FILE", help="Or a .json with objects and `target_prompt`."),
    ] = None,
    clip_model: Annotated[
        str | None, typer.Option(metavar="MODEL", help="Any CLIP of transformers, a folder or a Hub id.")
    ] = None,
    pick_score_model: Annotated[
        str | None, typer.Option(metavar="MODEL", help="Such as yuvalkirstain/PickScore_v1, a folder or a Hub id.")
    ] = None,
    lpips: Annotated[
        Literal["squeeze", "alex", "vgg"] | None,
        typer.Option(metavar="NET", help="LPIPS too, with squeeze, alex or vgg, whose weights are downloaded."),
    ] = None,
    flow: Annotated[
        str,
        typer.Option(
            metavar="METHOD",
            help="Of the source: dis, raft-large, raft-small, or a .safetensors with `flow` and `backward_flow`.",
        ),
    ] = "dis",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="A .json for the figures.")
    ] = None,
    device: Device = None,
    cache_dir: CacheDir = None,
) -> None:
    """Measures how well EDITED does what was asked for with SOURCE, and leaves the rest alone.

    Beside each figure that one clip has by itself stands that of SOURCE: what doing nothing would score.
    """
    if output is not None and (output.suffix != ".json" or output.is_dir()):
        raise ValueError(f"--output has to be a file that ends in .json, but is {output}.")
    objects, prompt, open_all_boxes, num_frames = _read_request(preset, grounding)
    before, after = read_clip(source, max_frames=num_frames), read_clip(edited, max_frames=num_frames)
    if before.frames.shape != after.frames.shape:
        raise ValueError(
            f"SOURCE and EDITED have to be of one length and size, but are {before.frames.shape[:3]} and "
            f"{after.frames.shape[:3]} (frames, height, width)."
        )
    num_frames, height, width = before.frames.shape[:3]
    opened = objects.edit_mask(num_frames, height, width, open_all_boxes).numpy()[:, 0] == 0

    from ..evaluation import ClipScorer, PickScorer, static_region

    run = Run(ctx.params, choose_device(device))
    scorer = None if clip_model is None else ClipScorer.from_pretrained(clip_model, run.device)
    pick_scorer = None if pick_score_model is None else PickScorer.from_pretrained(pick_score_model, run.device)
    outside = _outside(before.frames, after.frames, ~opened, lpips)
    forward_flow, occluded = _source_flow(flow, before, run, cache_dir)
    still = static_region(forward_flow, occluded)
    figures: dict[str, dict[str, Any]] = {}
    for name, clip in (("edited", after), ("source", before)):
        figures[name] = _steadiness(clip.frames, forward_flow, occluded, still)
        if scorer is not None:
            figures[name] |= _seen_by_clip(clip.frames, objects, prompt, scorer, figures[name]["warp_error"])
        if pick_scorer is not None:
            figures[name]["pick_score"] = math.nan if prompt is None else pick_scorer.score(clip.frames, prompt)
    figures["edited"] |= outside

    phrases = objects.phrases("target")
    _print_table(figures["edited"], figures["source"], phrases)
    console.print(f"{opened.mean():.0%} of the clip were open to the edit.")
    if output is not None:
        report = {
            "arguments": ctx.params,
            "num_frames": num_frames,
            "size": [height, width],
            "opened_share": float(opened.mean()),
            "prompt": prompt,
            "phrases": phrases,
            **_for_json(figures),
        }
        output.parent.mkdir(parents=True, exist_ok=True)
        # Paths are the only arguments that JSON does not know.
        output.write_text(json.dumps(report, indent=1, default=str, allow_nan=False) + "\n", encoding="utf-8")
        console.print(f"Wrote {output}.")


def _read_request(preset: str | None, edit_file: Path | None) -> tuple["VideoGrounding", str | None, bool, int | None]:
    """Objects, target prompt, whether all boxes were opened, and the number of frames if it is known."""
    if (preset is None) == (edit_file is None):
        raise ValueError("One of --preset and --grounding is needed, to know what was asked for.")
    if preset is not None:
        from ..presets import EditPreset

        loaded = EditPreset.from_pretrained(preset)
        return loaded.video_grounding(), loaded.prompt, loaded.open_all_boxes, loaded.clip.num_frames
    assert edit_file is not None
    edit = read_edit_file(edit_file)
    return edit.grounding, edit.target_prompt, False, None


def _source_flow(method: str, source: Clip, run: Run, cache_dir: Path | None) -> tuple[np.ndarray, np.ndarray]:
    """Forward flow, (F - 1, 2, H, W) in pixels, and where it is occluded, (F - 1, H, W)."""
    from ..annotators import ClipFlow

    if method.endswith(".safetensors"):
        flows = read_flow(Path(method), source, None)
        shape = (len(source.frames) - 1, 2, *source.frames.shape[1:3])
        if "backward_flow" not in flows or flows["flow"].shape != shape:
            raise ValueError(
                f"--flow {method} has to hold `flow` and `backward_flow` of shape {shape}, but holds "
                f"{ {name: tuple(tensor.shape) for name, tensor in flows.items()} }."
            )
        estimated = ClipFlow(flows["flow"], flows["backward_flow"])
    else:
        estimated = ClipReader(source, run, cache_dir).flow(method)
    return estimated.forward.numpy(), estimated.forward_occlusion.numpy()[:, 0]


def _outside(source: np.ndarray, edited: np.ndarray, outside: np.ndarray, lpips: Any) -> dict[str, float]:
    """How much changed where nothing was to change: clips (F, H, W, 3), `outside` (F, H, W) bool."""
    from ..evaluation import edit_leakage, masked_lpips, masked_psnr, masked_ssim

    figures = {
        "outside_psnr": masked_psnr(source, edited, outside),
        "outside_ssim": masked_ssim(source, edited, outside),
        "outside_change": edit_leakage(source, edited, ~outside),
    }
    if lpips is not None:
        figures["outside_lpips"] = masked_lpips(source, edited, outside, lpips)
    return figures


def _steadiness(
    frames: np.ndarray, forward_flow: np.ndarray, occluded: np.ndarray, still: np.ndarray
) -> dict[str, Any]:
    from ..evaluation import static_flicker, warp_error

    return {
        "warp_error": warp_error(frames, forward_flow, occluded),
        "static_flicker": static_flicker(frames, still),
    }


def _seen_by_clip(
    frames: np.ndarray, objects: "VideoGrounding", prompt: str | None, scorer: "ClipScorer", error: float
) -> dict[str, Any]:
    """What CLIP says of the frames, (F, H, W, 3) uint8; without a prompt, what needs one is NaN."""
    from ..evaluation import cross_instance_accuracy, q_edit

    frame_boxes, present = objects.frame_boxes(len(frames))
    boxes = np.where(present.numpy()[..., None], frame_boxes.numpy(), np.nan)
    phrases = objects.phrases("target")
    alignment = math.nan if prompt is None else scorer.text_alignment(frames, prompt)
    return {
        "text_alignment": alignment,
        "frame_consistency_consecutive": scorer.frame_consistency(frames, "consecutive"),
        "frame_consistency_all": scorer.frame_consistency(frames, "all"),
        "q_edit": q_edit(alignment, error),
        "cross_instance_accuracy": cross_instance_accuracy(frames, boxes, phrases, scorer),
        "object_alignment": scorer.object_alignment(frames, boxes, phrases),
    }


def _print_table(edited: dict[str, Any], source: dict[str, Any], phrases: list[str | None]) -> None:
    table = Table("", "better", "edited", "source")
    for name, (meaning, better, scale) in _ROWS.items():
        if name in edited:
            scores = (of_clip[name] for of_clip in (edited, source) if name in of_clip)
            table.add_row(meaning, better, *(_shown(scale * score) for score in scores))
    for phrase, *of_object in zip(phrases, edited.get("object_alignment", ()), source.get("object_alignment", ())):
        if phrase is not None:
            table.add_row(f"CLIP, {phrase} in its box, 1e-2", "more", *(_shown(100 * score) for score in of_object))
    console.print(table)


def _shown(value: float) -> str:
    return "undefined" if math.isnan(value) else f"{value:.5g}"


def _for_json(value: Any) -> Any:
    """JSON has no word for NaN and infinity: null for what is undefined, and "inf"."""
    if isinstance(value, dict):
        return {key: _for_json(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_for_json(item) for item in value]
    return None if math.isnan(value) else "inf" if math.isinf(value) else value
