"""The benchmark: seeded sprite clips edited with several methods, one JSON record of each, resumed after a kill.

A folder belongs to one seed, checkpoint and set of settings. It holds

    settings.json               what all records have in common
    records/<clip>/<method>.json   what was measured
    clips/<clip>/<method>.png      the edited frames from left to right; also `source` and `perfect`

and the report made of them (see [`write_report`]).
"""

import hashlib
import json
import logging
import math
import multiprocessing
import os
import platform
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from .. import __version__
from ..pipeline import GroundAVideoPipeline
from ..spriteworld.judge import SpriteJudge, background_names
from .edit_accuracy import edit_accuracy
from .flicker import static_flicker, static_region
from .leakage import edit_leakage, leaked_instances
from .methods import ClipEditor, Edit, Method
from .omission import omission_rate
from .perfect_edit import perfect_edit_psnr
from .psnr import masked_psnr
from .suite import BenchmarkClip, benchmark_clip, clip_indices, clip_name
from .warp_error import warp_error


# What the perfect edit through the autoencoder is called among the methods.
CEILING = "ceiling"

# PSNR of the error that rounding to 8 bits makes, a mean square of 1/12: what is more equal than that counts as this.
MAX_PSNR = 10 * math.log10(12 * 255**2)


@dataclass(frozen=True)
class Settings:
    """What all records of a folder have in common.

    Args:
        seed: Of the suite.
        steps: Of inversion and denoising.
        guidance_scale: Of classifier-free guidance.
        size: Side of the square frames, pixels.
        checkpoint: SHA-256 of the checkpoint's files.
        versions: Of the packages that results depend on.
    """

    seed: int
    steps: int
    guidance_scale: float
    size: int
    checkpoint: str
    versions: dict[str, str]


@dataclass(frozen=True)
class _Task:
    """One clip and the methods that have not edited it yet."""

    folder: Path
    settings: Settings
    index: int
    num_frames: int
    methods: tuple[Method, ...]


def checkpoint_hash(folder: str | Path) -> str:
    """SHA-256 over names and contents of all files in a checkpoint's folder, its model card aside.

    Raises:
        `ValueError`: If there is no such folder.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"The checkpoint has to be a folder in diffusers' layout, but {str(folder)!r} is none.")
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / "README.md"):
        digest.update(f"{path.relative_to(folder).as_posix()}\n".encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def run_benchmark(
    folder: str | Path,
    checkpoint: str | Path,
    methods: Sequence[Method],
    *,
    seed: int,
    num_clips: int,
    steps: int,
    guidance_scale: float,
    kinds: Sequence[str] | None = None,
    num_frames: Sequence[int] = (8,),
    size: int = 64,
    workers: int = 1,
    on_clip: Callable[[str, int, int], None] | None = None,
) -> None:
    """Edits and measures what the folder has no record of yet.

    Every clip is edited by one process with one thread, so neither the number of workers nor an interruption changes
    a record, the seconds aside.

    Args:
        folder: Where records go: new, empty, or of an earlier run with the same settings.
        checkpoint: A folder in diffusers' layout, of a model that knows sprites.
        methods: To edit with; the ceiling is measured in any case.
        seed: Of the suite.
        num_clips: The first so many clips of the suite (of each length).
        steps: Of inversion and denoising; a method may take a multiple of them.
        guidance_scale: Of classifier-free guidance.
        kinds: Of `KINDS`, the only ones to take clips from.
        num_frames: Lengths of the clips, each at least 2.
        size: Side of the square frames, pixels.
        workers: Processes.
        on_clip: Called after every clip with its name, the number of finished clips and that of all.

    Raises:
        `ValueError`: If an argument is out of range, or the folder was made with other settings or holds other things.
    """
    folder = Path(folder)
    if steps < 1 or workers < 1:
        raise ValueError(f"`steps` and `workers` have to be at least 1, but are {steps} and {workers}.")
    indices = clip_indices(num_clips, kinds)
    if min(num_frames, default=0) < 2:
        raise ValueError(f"`num_frames` has to hold lengths of at least 2 frames, but is {list(num_frames)}.")
    settings = Settings(seed, steps, guidance_scale, size, checkpoint_hash(checkpoint), _versions())
    _claim(folder, settings)

    tasks = []
    for length in dict.fromkeys(num_frames):
        for index in indices:
            name = clip_name(index, length)
            missing = tuple(one for one in methods if not _record_path(folder, name, one.name).exists())
            if missing or not _record_path(folder, name, CEILING).exists():
                tasks.append(_Task(folder, settings, index, length, missing))
    if not tasks:
        return
    if workers == 1:
        run = _loaded(checkpoint)
        finished: Iterator[str] = map(run, tasks)
        _report_progress(finished, len(tasks), on_clip)
    else:
        # Not forked: torch's threads would not survive it.
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(min(workers, len(tasks)), context, _start_worker, (checkpoint,)) as pool:
            _report_progress(pool.map(_run_in_worker, tasks), len(tasks), on_clip)


def _report_progress(finished: Iterator[str], total: int, on_clip: Callable[[str, int, int], None] | None) -> None:
    for done, name in enumerate(finished, start=1):
        if on_clip is not None:
            on_clip(name, done, total)


def _loaded(checkpoint: str | Path) -> Callable[[_Task], str]:
    pipe = GroundAVideoPipeline.from_pretrained(str(checkpoint))
    pipe.set_progress_bar_config(disable=True)
    return partial(_run_task, pipe, SpriteJudge.from_pretrained())


# What a worker process loaded when it started.
_in_worker: list[Callable[[_Task], str]] = []


def _start_worker(checkpoint: str | Path) -> None:
    _in_worker.append(_loaded(checkpoint))


def _run_in_worker(task: _Task) -> str:
    return _in_worker[0](task)


def _run_task(pipe: GroundAVideoPipeline, judge: SpriteJudge, task: _Task) -> str:
    """Edits a clip with all methods that are missing and writes their records; returns the name of the clip."""
    clip = benchmark_clip(task.settings.seed, task.index, task.num_frames, task.settings.size)
    with _quiet_on_one_thread():
        editor = ClipEditor(pipe, clip, task.settings.steps, task.settings.guidance_scale)
        for name, frames in (("source", clip.source.frames), ("perfect", clip.perfect.frames)):
            _write_strip(task.folder, clip.name, name, frames)
        if not _record_path(task.folder, clip.name, CEILING).exists():
            _keep(task, clip, CEILING, Edit(editor.ceiling(), {}), judge, pipe.vae_scale_factor)
        for method in task.methods:
            edit = editor.edit(method)
            if edit is not None:
                _keep(task, clip, method.name, edit, judge, pipe.vae_scale_factor)
    return clip.name


@contextmanager
def _quiet_on_one_thread() -> Iterator[None]:
    """One thread, since how many share a sum decides its last bits; and no warnings about what methods leave out."""
    logger, threads = logging.getLogger(__name__.partition(".")[0]), torch.get_num_threads()
    level = logger.level
    torch.set_num_threads(1)
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        logger.setLevel(level)


def measure(clip: BenchmarkClip, frames: np.ndarray, judge: SpriteJudge, cell: int) -> dict[str, float | None]:
    """All metrics of an edited clip against what is known of it.

    Args:
        clip: The clip.
        frames: (F, H, W, 3) uint8, edited.
        judge: Of what the boxes hold.
        cell: Side of a latent cell, pixels: what is open to the edit is made of cells.

    Returns:
        By name; `None` where a metric is not defined for the clip. PSNR is bounded by `MAX_PSNR`.
    """
    source, perfect, names = clip.source, clip.perfect, clip.target_names
    changed, kept = clip.changed, clip.kept
    edited_boxes = source.boxes[:, changed]
    if clip.changes_background:
        whole = np.tile(np.array([0, 0, 1, 1], dtype=np.float32), (len(frames), 1, 1))
        edited_boxes = np.concatenate([edited_boxes, whole], axis=1)
    psnr = perfect_edit_psnr(frames, perfect.frames, edited_boxes)
    still = static_region(source.forward_flow, source.forward_occlusion)
    still &= static_region(perfect.forward_flow, perfect.forward_occlusion)

    def accuracy(objects: list[int]) -> float:
        return edit_accuracy(frames, clip.judged_boxes[:, objects], [names[index] for index in objects], judge)

    metrics = {
        "edit_accuracy": accuracy(changed),
        "kept_accuracy": accuracy(kept),
        "background_accuracy": _background_accuracy(clip, frames),
        "psnr_inside": psnr["inside"],
        "psnr_outside": psnr["outside"],
        "psnr": psnr["all"],
        "background_psnr": masked_psnr(frames, source.frames, clip.background_region),
        "warp_error": warp_error(frames, source.forward_flow, source.forward_occlusion),
        "static_flicker": static_flicker(frames, still),
        "leakage": edit_leakage(source.frames, frames, clip.opened_region(cell)),
        "leaked_instances": leaked_instances(frames, clip.judged_boxes, names, judge),
        "omission": omission_rate(frames, clip.judged_boxes[:, changed], [names[one] for one in changed], judge),
    }
    for name in ("psnr_inside", "psnr_outside", "psnr", "background_psnr"):
        # A comparison with NaN is false, so NaN stays.
        metrics[name] = MAX_PSNR if metrics[name] > MAX_PSNR else metrics[name]
    metrics["accuracy_times_background"] = metrics["edit_accuracy"] * metrics["background_psnr"]
    return {name: None if math.isnan(value) else value for name, value in metrics.items()}


def _background_accuracy(clip: BenchmarkClip, frames: np.ndarray) -> float:
    """Share of the frames whose background is the wanted one, by its colour; NaN if it does not change."""
    if not clip.changes_background:
        return math.nan
    found = background_names(frames, np.logical_not(clip.perfect.full_masks.any(axis=1)))
    return float(np.mean([name == clip.target.background for name in found]))


def _keep(task: _Task, clip: BenchmarkClip, method: str, edit: Edit, judge: SpriteJudge, cell: int) -> None:
    _write_strip(task.folder, clip.name, method, edit.frames)
    record = {
        "method": method,
        "clip": {
            "name": clip.name,
            "index": clip.index,
            "kind": clip.kind,
            "num_frames": len(edit.frames),
            "num_edits": len(clip.changed),
            "background": clip.scene.background,
            "source_prompt": clip.source_prompt,
            "prompt": clip.prompt,
        },
        "metrics": measure(clip, edit.frames, judge, cell),
        "settings": asdict(task.settings),
        "seconds": edit.seconds,
    }
    # The record comes last: what has one is finished.
    _write_atomically(_record_path(task.folder, clip.name, method), _as_json(record))


def _record_path(folder: Path, clip: str, method: str) -> Path:
    return folder / "records" / clip / f"{method}.json"


def strip_path(folder: Path, clip: str, method: str) -> Path:
    """Where the frames of a clip are, from left to right in one PNG; `method` may be "source" and "perfect" too."""
    return folder / "clips" / clip / f"{method}.png"


def _write_strip(folder: Path, clip: str, method: str, frames: np.ndarray) -> None:
    path = strip_path(folder, clip, method)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.concatenate(list(frames), axis=1)).save(path)


def _as_json(value: Any) -> str:
    return json.dumps(value, indent=1, allow_nan=False) + "\n"


def _write_atomically(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def _versions() -> dict[str, str]:
    packages = ("diffusers", "transformers", "torch", "numpy")
    return {
        "diffusers-groundavideo": __version__,
        **{package: version(package) for package in packages},
        "python": platform.python_version(),
    }


def _claim(folder: Path, settings: Settings) -> None:
    """Writes the settings of a new folder, or raises a `ValueError` if those of the folder are others."""
    path, wanted = folder / "settings.json", asdict(settings)
    if not path.exists():
        if folder.exists() and any(folder.iterdir()):
            raise ValueError(f"The folder {str(folder)!r} is neither empty nor of a benchmark: choose another one.")
        _write_atomically(path, _as_json(wanted))
        return
    found = json.loads(path.read_text(encoding="utf-8"))
    different = [name for name in wanted if found.get(name) != wanted[name]]
    if different:
        details = "; ".join(f"{name} was {found.get(name)!r}, is {wanted[name]!r}" for name in different)
        raise ValueError(f"The folder {str(folder)!r} was made with other settings: {details}. Choose another one.")
