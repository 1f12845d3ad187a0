"""The figures of the mini checkpoint, as they stand in its model card.

    python benchmarks/mini_checkpoint.py --output figures
    python benchmarks/mini_checkpoint.py --output figures --only autoencoder generation --clips 4

All scenes are ones no training has drawn. What is measured of a clip is written at once, so that a run that was
interrupted goes on where it was; `figures.json` in the output folder holds the result.
"""

import argparse
import hashlib
import json
import logging
import time
from collections.abc import Callable
from copy import deepcopy
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from measuring import describe_machine
from scipy.stats import bootstrap

from diffusers_groundavideo import GroundAVideoPipeline, GroundedObject, Inflation, InvertedClip, VideoGrounding
from diffusers_groundavideo.annotators import ObjectDetector
from diffusers_groundavideo.annotators.tracking import box_iou
from diffusers_groundavideo.evaluation import found_sprites, masked_psnr, warp_error
from diffusers_groundavideo.evaluation.benchmark import checkpoint_hash
from diffusers_groundavideo.evaluation.inputs import box_region
from diffusers_groundavideo.evaluation.methods import autoencoded, decoded
from diffusers_groundavideo.evaluation.suite import KINDS, BenchmarkClip, benchmark_clip, clip_indices
from diffusers_groundavideo.inversion import DDIMGrid, ddim_step
from diffusers_groundavideo.pipeline import InversionMethod
from diffusers_groundavideo.spriteworld import (
    MINI_SETTINGS,
    background_phrase,
    clipped_boxes,
    mini_checkpoint,
    mini_detector,
    phrase_for,
    random_scene,
    render,
    scene_caption,
)
from diffusers_groundavideo.spriteworld.judge import SpriteJudge, background_names
from diffusers_groundavideo.video import to_uint8


SUITE_SEED = 2_000_000
# Of the scenes that are autoencoded and generated. The training scripts draw theirs from 0 and from 10**12 on.
SCENE_SEED = 2 * 10**12
SCENES_A_BATCH = 20
EDIT_KINDS = [kind for kind in KINDS if not kind.startswith("background")]
# With a source phrase for everything: what is not there cannot be kept as it is.
RECONSTRUCTION_KINDS = [kind for kind in EDIT_KINDS if kind != "addition"]
BACKGROUND_KINDS = [kind for kind in KINDS if kind.startswith("background")]

# What the default attention is compared with, on the clips of the edits.
OTHER_ATTENTION = {
    "per-frame gated": Inflation(gated_attention="per-frame"),
    "per-frame gated and self": Inflation(gated_attention="per-frame", self_attention="per-frame"),
    "published": Inflation.published(),
}
INVERSION_METHODS: tuple[InversionMethod, ...] = ("ddim", "null-text", "negative-prompt")

Record = dict[str, Any]


class Miniature(NamedTuple):
    """What is measured, and with what."""

    pipe: GroundAVideoPipeline
    judge: SpriteJudge
    detector: ObjectDetector
    settings: dict[str, Any]
    # Guidance of the reconstructions: the pipeline's default.
    reconstruction_guidance: float


@dataclass(frozen=True)
class Figure:
    """One line of the table; `value` is a share in [0, 1], decibels or what `name` says, None if there was nothing."""

    name: str
    value: float | None
    text: str
    aim: str
    measured_on: str


# Measuring one clip


def edit_clip(mini: Miniature, seed: int, edit: dict[str, Any], **others: Any) -> tuple[np.ndarray, np.ndarray]:
    """The edited clip as the pipeline returns it, and as it is without pasting back: (F, H, W, 3) uint8 both.

    Args:
        mini: what edits.
        seed: of the generator.
        edit: arguments of the pipeline, as of `edit_arguments`.
        others: further arguments.
    """
    last: dict[str, torch.Tensor] = {}

    def keep_latents(pipe: Any, step: int, timestep: Any, tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
        last.update(tensors)
        return tensors

    result: Any = mini.pipe(
        **edit,
        **mini.settings,
        generator=torch.Generator().manual_seed(seed),
        output_type="np",
        callback_on_step_end=keep_latents,
        **others,
    )
    return to_uint8(result.frames[0]), decoded(mini.pipe, last["latents"])


def count_right(judge: SpriteJudge, frames: np.ndarray, clip: BenchmarkClip, chosen: list[int]) -> tuple[int, int]:
    """Boxes of the chosen objects in which the judge finds what should be there after the edit, and all of them."""
    found = found_sprites(frames, clip.source.boxes, judge)
    pairs = [(names[index], clip.target_names[index]) for names in found for index in chosen if names[index]]
    return sum(name == wanted for name, wanted in pairs), len(pairs)


def drawn_ious(detector: ObjectDetector, frames: np.ndarray, boxes: np.ndarray, names: list[str]) -> list[float]:
    """IoU of each box, (F, N, 4), with the place where the detector finds what was asked for there; 0 if nowhere."""
    ious = []
    for detections, of_frame in zip(detector(frames, [phrase_for(name) for name in names]), boxes):
        for name, box in zip(names, of_frame):
            if not np.isnan(box).any():
                found = detections[phrase_for(name)]
                ious.append(float(box_iou(np.array(found[0].box), box)) if found else 0.0)
    return ious


def measure_autoencoder(mini: Miniature, index: int) -> Record:
    frames = render(random_scene(SCENE_SEED + index)).frames
    after = autoencoded(mini.pipe, frames)
    return {"psnr": [masked_psnr(frames[i : i + 1], after[i : i + 1]) for i in range(len(frames))]}


def measure_generation(mini: Miniature, index: int) -> Record:
    """Single frames from noise: every object and the background are new, and the whole frame is open."""
    scenes = []
    for seed in range(SCENE_SEED + index * SCENES_A_BATCH, SCENE_SEED + (index + 1) * SCENES_A_BATCH):
        scene = random_scene(seed)
        scenes.append(scene.frame(seed % scene.num_frames))
    groundings: list[VideoGrounding | dict[str, Any]] = []
    for scene in scenes:
        objects = [GroundedObject(None, background_phrase(scene.background), box=(0, 0, 1, 1))]
        for item in scene.objects:
            (box,) = clipped_boxes(item.slots)
            objects.append(GroundedObject(None, phrase_for(str(item.name)), boxes=[_box_or_none(box)]))
        groundings.append(VideoGrounding(objects))
    size, pipe = scenes[0].size, mini.pipe
    latent_size = size // pipe.vae_scale_factor
    shape = (len(scenes), 1, pipe.vae.config.latent_channels, latent_size, latent_size)
    result: Any = pipe(
        video=torch.zeros(len(scenes), 1, 3, size, size),
        grounding=groundings,
        prompt=[scene_caption(scene) for scene in scenes],
        latents=torch.randn(shape, generator=torch.Generator().manual_seed(index)),
        output_type="np",
        **mini.settings,
    )
    right = boxes = ceiling = backgrounds = 0
    ious: list[float] = []
    for scene, frames in zip(scenes, to_uint8(result.frames)):
        rendered = render(scene)
        wanted = [item.name for item in scene.objects]
        (found,) = found_sprites(frames, rendered.boxes, mini.judge)
        (best,) = found_sprites(autoencoded(pipe, rendered.frames), rendered.boxes, mini.judge)
        right += sum(a == b for a, b in zip(found, wanted) if a)
        ceiling += sum(a == b for a, b in zip(best, wanted) if a)
        boxes += sum(name is not None for name in found)
        outside = ~box_region(rendered.boxes, size, size)
        backgrounds += background_names(frames, outside) == [scene.background]
        ious += drawn_ious(mini.detector, frames, rendered.boxes, [str(name) for name in wanted])
    counts = {"right": right, "boxes": boxes, "ceiling": ceiling, "backgrounds": backgrounds, "scenes": len(scenes)}
    return {**counts, "ious": ious}


def measure_editing(mini: Miniature, index: int) -> Record:
    clip = benchmark_clip(SUITE_SEED, index)
    frames, unpasted = edit_clip(mini, index, clip.arguments)
    best = autoencoded(mini.pipe, clip.perfect.frames)
    closed = ~clip.opened_region(mini.pipe.vae_scale_factor)
    record: Record = {"kind": clip.kind, "edits": len(clip.changed)}
    for name, chosen in (("changed", clip.changed), ("kept", clip.kept)):
        record[f"{name}_right"], record[f"{name}_boxes"] = count_right(mini.judge, frames, clip, chosen)
        record[f"{name}_ceiling"], _ = count_right(mini.judge, best, clip, chosen)
    if clip.changes_background:
        seen = ~np.any(clip.source.full_masks | clip.perfect.full_masks, axis=1)
        record["backgrounds"] = background_names(frames, seen).count(clip.target.background)
        record["background_ceiling"] = background_names(best, seen).count(clip.target.background)
        record["frames"] = len(frames)
    else:
        autoencoder = autoencoded(mini.pipe, clip.source.frames)
        record["background_psnr"] = masked_psnr(unpasted, clip.source.frames, clip.background_region)
        record["background_autoencoder_psnr"] = masked_psnr(autoencoder, clip.source.frames, clip.background_region)
        record["closed_psnr"] = masked_psnr(unpasted, clip.source.frames, closed)
        record["closed_autoencoder_psnr"] = masked_psnr(autoencoder, clip.source.frames, closed)
        record["closed_pixels"] = int(closed.sum())
        record["closed_pixels_changed"] = int((frames != clip.source.frames).any(-1)[closed].sum())
    return record


def measure_gating(mini: Miniature, index: int) -> Record:
    """Warp errors in the boxes of what was edited, along the exact flow of the perfect edit."""
    clip = benchmark_clip(SUITE_SEED, index)
    size = clip.scene.size
    elsewhere = ~box_region(clip.source.boxes[:, clip.changed], size, size)[:-1]
    hidden = clip.perfect.forward_occlusion | elsewhere
    record: Record = {"perfect": warp_error(clip.perfect.frames, clip.perfect.forward_flow, hidden)}
    for name, inflation in {"default": Inflation(), **OTHER_ATTENTION}.items():
        frames, _ = edit_clip(mini, index, clip.arguments, inflation=inflation)
        record[name] = warp_error(frames, clip.perfect.forward_flow, hidden)
        right, boxes = count_right(mini.judge, frames, clip, clip.changed)
        record[f"{name} accuracy"] = right / boxes
    return record


def reconstruct_plainly(
    pipe: GroundAVideoPipeline,
    inverted: InvertedClip,
    grounding: VideoGrounding,
    source_prompt: str,
    num_inference_steps: int,
    guidance_scale: float,
) -> np.ndarray:
    """The way back that null-text optimisation is for: the plain UNet with the groundings of the source, every frame
    for itself, without ControlNet, blending or pasting back. (F, H, W, 3) uint8."""
    grid = DDIMGrid.from_scheduler(deepcopy(pipe.scheduler), num_inference_steps)
    source = inverted.trajectory[0]
    num_frames = len(source)
    mask = grounding.inversion_mask(num_frames, *source.shape[-2:])
    with torch.no_grad():
        gligen = pipe.encode_grounding(grounding, num_frames, "source")
        text, empty = pipe.encode_prompt(source_prompt, source.device, 1, True)
        assert empty is not None
        null = empty[None] if inverted.null_embeddings is None else inverted.null_embeddings
        nulls = null.expand(len(grid.timesteps), num_frames, -1, -1)
        inpainting = torch.cat([source * mask, mask], dim=1)
        latents = inverted.noise_latents
        for i, timestep in enumerate(grid.timesteps):
            predict = partial(pipe.predict_noise, latents, timestep, gligen=gligen, inpainting=inpainting)
            unconditional = predict(text=nulls[i])
            noise_pred = unconditional + guidance_scale * (
                predict(text=text.expand(num_frames, -1, -1)) - unconditional
            )
            latents = ddim_step(latents, noise_pred, grid.alphas[i], grid.previous_alphas[i])
        return decoded(pipe, latents[None])


def inverted_region(grounding: VideoGrounding, frames: np.ndarray, cell: int) -> np.ndarray:
    """(F, H, W) bool: the pixels that an inversion opens, those of all boxes. `cell` is the side of a latent one."""
    num_frames, height, width = frames.shape[:3]
    mask = grounding.inversion_mask(num_frames, height // cell, width // cell)[:, 0].numpy() == 0
    return mask.repeat(cell, axis=1).repeat(cell, axis=2)


def measure_reconstruction(mini: Miniature, index: int) -> Record:
    """PSNR in the boxes, against the autoencoder's own output, on the plain path and on that of an edit which changes
    nothing, all boxes open."""
    clip = benchmark_clip(SUITE_SEED, index)
    pipe, guidance = mini.pipe, mini.reconstruction_guidance
    steps = mini.settings["num_inference_steps"]
    opened = inverted_region(clip.grounding, clip.source.frames, pipe.vae_scale_factor)
    autoencoder = autoencoded(pipe, clip.source.frames)
    arguments = clip.arguments | {"prompt": clip.source_prompt}
    record: Record = {}
    for method in INVERSION_METHODS:
        inverted = pipe.invert(
            clip.source.frames,
            clip.grounding,
            source_prompt=clip.source_prompt,
            num_inference_steps=steps,
            inversion_method=method,
            guidance_scale=guidance,
        )
        assert isinstance(inverted, InvertedClip)
        plain = reconstruct_plainly(pipe, inverted, clip.grounding, clip.source_prompt, steps, guidance)
        record[f"plain {method}"] = masked_psnr(plain, autoencoder, opened)
        edited: Any = pipe(
            **arguments | {"grounding": _kept_as_it_is(clip.grounding)},
            inverted=inverted,
            num_inference_steps=steps,
            guidance_scale=guidance,
            open_all_boxes=True,
            paste_back=False,
            generator=torch.Generator().manual_seed(index),
            output_type="np",
        )
        record[f"edit {method}"] = masked_psnr(to_uint8(edited.frames[0]), autoencoder, opened)
    return record


def _kept_as_it_is(grounding: VideoGrounding) -> VideoGrounding:
    """The same places, with the source's phrases before and after."""
    return VideoGrounding([GroundedObject(o.source_phrase, o.source_phrase, boxes=o.boxes) for o in grounding.objects])


def _box_or_none(box: np.ndarray) -> list[float] | None:
    return None if np.isnan(box).any() else box.tolist()


# From the clips' records to figures


def share(records: list[Record], part: str, whole: str) -> tuple[float | None, str]:
    count, total = sum(r.get(part, 0) for r in records), sum(r.get(whole, 0) for r in records)
    return (count / total, f"{count / total:.1%} ({count} of {total})") if total else (None, "none")


def interval(values: np.ndarray) -> tuple[float, float]:
    """95 % bootstrap interval of the mean over clips."""
    found = bootstrap((values,), np.mean, rng=np.random.default_rng(0), method="percentile").confidence_interval
    return float(found.low), float(found.high)


def mean_with_interval(values: list[float], unit: str) -> tuple[float, str]:
    """The mean over clips, with its interval where there are enough of them for one."""
    array = np.asarray(values)
    text = f"{array.mean():.2f} {unit}".strip()
    if len(array) > 1:
        low, high = interval(array)
        text += f" [{low:.2f}, {high:.2f}]"
    return float(array.mean()), text


def autoencoder_figures(records: list[Record]) -> list[Figure]:
    psnr = np.concatenate([record["psnr"] for record in records])
    where = f"{len(psnr)} frames of {len(records)} clips"
    return [Figure("autoencoder, PSNR", float(psnr.mean()), f"{psnr.mean():.2f} dB", "≥ 29 dB", where)]


def generation_figures(records: list[Record]) -> list[Figure]:
    where = f"{sum(record['scenes'] for record in records)} scenes, single frames"
    ious = [iou for record in records for iou in record["ious"]]
    return [
        Figure("generated from noise, right sprite in its box", *share(records, "right", "boxes"), "≥ 95 %", where),
        Figure("— ceiling: the scene itself, autoencoded", *share(records, "ceiling", "boxes"), "", where),
        Figure(
            "— IoU of its box and where the detector finds it", float(np.mean(ious)), f"{np.mean(ious):.3f}", "", where
        ),
        Figure("— right background, by mean colour", *share(records, "backgrounds", "scenes"), "", where),
    ]


def editing_figures(records: list[Record]) -> list[Figure]:
    where = f"{len(records)} clips of 8 frames"
    figures = [
        Figure("edited, right sprite in its box", *share(records, "changed_right", "changed_boxes"), "≥ 90 %", where),
        Figure(
            "— ceiling: the perfect edit, autoencoded", *share(records, "changed_ceiling", "changed_boxes"), "", where
        ),
    ]
    for edits in sorted({record["edits"] for record in records}):
        some = [record for record in records if record["edits"] == edits]
        name = f"— with {edits} {'edit' if edits == 1 else 'edits'} at once"
        figures.append(Figure(name, *share(some, "changed_right", "changed_boxes"), "", f"{len(some)} clips"))
    figures += [
        Figure("kept objects, still right", *share(records, "kept_right", "kept_boxes"), "≥ 98 %", where),
        Figure("— ceiling", *share(records, "kept_ceiling", "kept_boxes"), "", where),
    ]
    for region, key, aim in (
        ("background outside of all sprites", "background", "≤ 1.5 dB"),
        ("what was not opened", "closed", ""),
    ):
        below = [record[f"{key}_autoencoder_psnr"] - record[f"{key}_psnr"] for record in records]
        own = np.mean([record[f"{key}_autoencoder_psnr"] for record in records])
        name = f"{region} without pasting back, below the autoencoder's own PSNR ({own:.2f} dB)"
        figures.append(Figure(name, *mean_with_interval(below, "dB"), aim, where))
    changed = share(records, "closed_pixels_changed", "closed_pixels")
    return [*figures, Figure("pixels that were not opened and changed", *changed, "0", where)]


def background_figures(records: list[Record]) -> list[Figure]:
    where = f"{len(records)} clips of 8 frames"
    return [
        Figure("background changed, by mean colour", *share(records, "backgrounds", "frames"), "≥ 90 %", where),
        Figure("— ceiling", *share(records, "background_ceiling", "frames"), "", where),
        Figure("— right sprite in changed boxes", *share(records, "changed_right", "changed_boxes"), "", where),
        Figure("— right sprite in kept boxes", *share(records, "kept_right", "kept_boxes"), "", where),
    ]


def gating_figures(records: list[Record]) -> list[Figure]:
    where = f"{len(records)} clips of 8 frames"

    def warp(name: str) -> list[float]:
        return [1000 * record[name] for record in records]

    def accuracy(name: str) -> str:
        return f"{np.mean([record[f'{name} accuracy'] for record in records]):.1%} right"

    value, text = mean_with_interval(warp("default"), "")
    figures = [
        Figure("warp error x 1000 in edited boxes", value, f"{text}, {accuracy('default')}", "", where),
        Figure("— of the perfect edit", *mean_with_interval(warp("perfect"), ""), "", where),
    ]
    for name in OTHER_ATTENTION:
        more = [after - before for before, after in zip(warp("default"), warp(name))]
        value, text = mean_with_interval(more, "")
        figures.append(Figure(f"— more with {name} attention", value, f"{text}, {accuracy(name)}", "> 0", where))
    return figures


def reconstruction_figures(records: list[Record]) -> list[Figure]:
    where = f"{len(records)} clips of 8 frames"
    figures = []
    for path, aim in (("plain", "≥ 3 dB"), ("edit", "")):
        gain = [record[f"{path} null-text"] - record[f"{path} ddim"] for record in records]
        figures.append(Figure(f"{path} path, null-text above DDIM", *mean_with_interval(gain, "dB"), aim, where))
        figures += [
            Figure(
                f"— {method}", *mean_with_interval([record[f"{path} {method}"] for record in records], "dB"), "", where
            )
            for method in INVERSION_METHODS
        ]
    return figures


# The command


@dataclass(frozen=True)
class Section:
    """How one part is measured: `indices(count)` are those of its clips."""

    measure: Callable[[Miniature, int], Record]
    summarise: Callable[[list[Record]], list[Figure]]
    indices: Callable[[int], list[int]]
    clips: int


def _first(count: int) -> list[int]:
    return list(range(count))


SECTIONS = {
    "autoencoder": Section(measure_autoencoder, autoencoder_figures, _first, 32),
    # Of 20 scenes each.
    "generation": Section(measure_generation, generation_figures, _first, 10),
    "editing": Section(measure_editing, editing_figures, partial(clip_indices, kinds=EDIT_KINDS), 32),
    "background": Section(measure_editing, background_figures, partial(clip_indices, kinds=BACKGROUND_KINDS), 8),
    "gating": Section(measure_gating, gating_figures, partial(clip_indices, kinds=EDIT_KINDS), 12),
    "reconstruction": Section(
        measure_reconstruction, reconstruction_figures, partial(clip_indices, kinds=RECONSTRUCTION_KINDS), 3
    ),
}


def measured(path: Path, section: Section, mini: Miniature, count: int) -> list[Record]:
    """The records of a section's clips: read from `path` where they are there, measured and added to it where not."""
    known = {} if not path.exists() else {r["index"]: r for r in map(json.loads, path.read_text().splitlines())}
    records = []
    for index in section.indices(count):
        if index not in known:
            start = time.perf_counter()
            record = section.measure(mini, index)
            known[index] = {"index": index, **record, "seconds": round(time.perf_counter() - start, 1)}
            with path.open("a") as file:
                file.write(json.dumps(known[index]) + "\n")
            print(path.stem, json.dumps(known[index]), flush=True)
        records.append(known[index])
    return records


def as_markdown(figures: list[Figure]) -> str:
    lines = ["| figure | measured | aim | on |", "| --- | ---: | ---: | --- |"]
    lines += [f"| {f.name} | {f.text} | {f.aim} | {f.measured_on} |" for f in figures]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder for the records and figures.json")
    parser.add_argument("--checkpoint", type=Path, default=mini_checkpoint())
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--clips", type=int, help="clips a section, of generation batches of 20 scenes")
    parser.add_argument("--steps", type=int, default=MINI_SETTINGS["num_inference_steps"])
    parser.add_argument("--guidance-scale", type=float, default=MINI_SETTINGS["guidance_scale"])
    parser.add_argument("--reconstruction-guidance-scale", type=float, default=12.5)
    args = parser.parse_args()
    # One kept box may overlap an opened one; and generation has neither depth nor flow.
    logging.getLogger("diffusers").setLevel(logging.ERROR)
    settings = {**MINI_SETTINGS, "num_inference_steps": args.steps, "guidance_scale": args.guidance_scale}
    pipe = GroundAVideoPipeline.from_pretrained(args.checkpoint)
    pipe.set_progress_bar_config(disable=True)
    detector = ObjectDetector.from_pretrained(mini_detector())
    mini = Miniature(pipe, SpriteJudge.from_pretrained(), detector, settings, args.reconstruction_guidance_scale)
    weights = checkpoint_hash(args.checkpoint)
    everything = {"weights": weights, "settings": settings, "reconstruction": args.reconstruction_guidance_scale}
    # Records of other weights or settings are no part of the result.
    run = hashlib.sha256(json.dumps(everything, sort_keys=True).encode()).hexdigest()[:12]
    args.output.mkdir(parents=True, exist_ok=True)

    figures: list[Figure] = []
    seconds: dict[str, float] = {}
    for name in args.only:
        section = SECTIONS[name]
        records = measured(args.output / f"{name}-{run}.jsonl", section, mini, args.clips or section.clips)
        figures += section.summarise(records)
        seconds[name] = round(sum(record["seconds"] for record in records), 1)
    table = as_markdown(figures)
    report = {
        **everything,
        "machine": describe_machine(),
        "seconds": seconds,
        "figures": [asdict(figure) for figure in figures],
        "table": table,
    }
    (args.output / "figures.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(f"\n{describe_machine()}; {args.steps} steps, guidance {args.guidance_scale:g}\n\n{table}")


if __name__ == "__main__":
    main()
