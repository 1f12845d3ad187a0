"""`groundavideo demo`: a clip edited out of the box, with the miniature that the package ships."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer
from rich.table import Table

from ..video import Clip, draw_boxes, read_clip, side_by_side, to_uint8, write_clip
from .annotate import ClipReader, parse_objects
from .running import Run, console


# `--help` does not wait for torch: the functions that need it import it.
if TYPE_CHECKING:
    from ..spriteworld import RenderedScene, Scene
    from ..spriteworld.judge import SpriteJudge


FPS = 8.0
UPSCALING = 3

SCENE_SEED = 3_000_000_000_249
SOURCE_NAMES = ("rabbit", "watermelon")
SOURCE_BACKGROUND = "grass"
# What becomes of the rabbit, the watermelon and the grass. The first two edits concern the same objects and so share
# an inversion; in the third the grass is no object at all, and stays what it is to the last bit.
EDITS: tuple[tuple[str, str, str], ...] = (
    ("squirrel", "orange", "snow"),
    ("cat", "strawberry", "sand"),
    ("squirrel", "orange", "grass"),
)

Boxes = Sequence[Sequence[float] | None]
# Depth and flow, as arguments of the pipeline.
Conditions = dict[str, Any]


def demo(
    ctx: typer.Context,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FOLDER", help="Where the clips are written.")
    ] = Path("outputs"),
    seed: Annotated[int, typer.Option(help="Of the edits.")] = 0,
) -> None:
    """Edits a clip of a rabbit and a watermelon on the grass, on the CPU, without any download."""
    import torch

    from ..grounding import GroundedObject, VideoGrounding
    from ..pipeline import GroundAVideoPipeline
    from ..spriteworld import MINI_SETTINGS, mini_checkpoint, random_scene, render, scene_caption
    from ..spriteworld.judge import SpriteJudge

    scene = random_scene(SCENE_SEED, num_objects=2, motion="linear", background=SOURCE_BACKGROUND, names=SOURCE_NAMES)
    rendered = render(scene)
    written = [output / "demo_source.gif"]
    write_clip(written[0], rendered.frames, FPS)
    source = read_clip(written[0])
    console.print(f"{written[0]}: {scene_caption(scene)}.")

    run = Run(ctx.params, torch.device("cpu"))
    with run.stage("load"):
        pipe = GroundAVideoPipeline.from_pretrained(mini_checkpoint())
        pipe.set_progress_bar_config(leave=False)
        judge = SpriteJudge.from_pretrained()
    boxes, conditions = _read_off(source, run, output / "demo_annotations", rendered)

    inversions: dict[tuple[str | None, ...], Any] = {}
    table = Table("edit", "of", "asked for", "found", title=f"What became of {scene_caption(scene)}")
    for names in EDITS:
        target = scene.with_targets(names[:2], names[2])
        objects = [
            GroundedObject(phrase, name, boxes=place)
            for phrase, name, place in zip((*SOURCE_NAMES, SOURCE_BACKGROUND), names, boxes)
            if phrase != SOURCE_BACKGROUND or name != phrase
        ]
        grounding = VideoGrounding(objects)
        phrases = tuple(grounding.phrases("source"))
        if phrases not in inversions:
            with run.stage(f"invert {', '.join(map(str, phrases))}"):
                inversions[phrases] = pipe.invert(
                    source.frames, grounding, source_prompt=scene_caption(scene), **MINI_SETTINGS
                )
        with run.stage(f"edit {', '.join(names)}"):
            result = pipe(
                source.frames,
                grounding,
                prompt=scene_caption(target),
                inverted=inversions[phrases],
                generator=torch.Generator().manual_seed(seed),
                output_type="np",
                **conditions,
                **MINI_SETTINGS,
            )
        edited = to_uint8(np.asarray(result.frames)[0])
        perfect = render(target)
        for row in _findings(judge, edited, source.frames, scene, target, rendered, perfect):
            table.add_row(scene_caption(target), *row)
        table.add_section()
        # Enlarged first: names are no smaller than a font can be read.
        before, after, ideal = (_enlarged(clip) for clip in (source.frames, edited, perfect.frames))
        drawn = draw_boxes(before, _as_array(boxes[:2]), names[:2])
        comparison = side_by_side([before, drawn, after, ideal], ["source", "boxes", "edited", "perfect"])
        for suffix in (".gif", ".mp4"):
            written.append(output / f"demo_{'_'.join(names)}{suffix}")
            write_clip(written[-1], comparison, FPS)

    times = Table("stage", "seconds")
    for stage, taken in run.seconds.items():
        times.add_row(stage, f"{taken:.1f}")
    console.print(table)
    console.print(times)
    console.print(f"Wrote {', '.join(map(str, written))}.")


def _read_off(source: Clip, run: Run, cache_dir: Path, rendered: "RenderedScene") -> tuple[list[Boxes], Conditions]:
    """Where rabbit, watermelon and grass are in each frame; and depth and flow.

    All of it is read off the clip, by the small models that the package ships; it is the scene's own where a package
    that this takes is not installed.
    """
    try:
        return _found_in(ClipReader(source, run, cache_dir))
    except ImportError as error:
        console.print(f"{error}\nWithout it boxes, depth and flow are taken from the scene, not read off the clip.")
        return _known_from(rendered)


def _found_in(reader: ClipReader) -> tuple[list[Boxes], Conditions]:
    from ..annotators.depth import depth_to_frames
    from ..spriteworld import mini_depth_model, mini_detector

    # Of each the surest, if there seem to be several.
    queries = parse_objects(", ".join(f"{phrase}@1" for phrase in (*SOURCE_NAMES, SOURCE_BACKGROUND)))
    boxes: list[Boxes] = [track.boxes for (track,) in reader.find(queries, str(mini_detector()), None)]
    depth = depth_to_frames(reader.depth(str(mini_depth_model())))
    flow = reader.flow("dis")
    return boxes, {"conditioning_frames": depth, "flow": flow.forward, "backward_flow": flow.backward}


def _known_from(rendered: "RenderedScene") -> tuple[list[Boxes], Conditions]:
    boxes: list[Boxes] = [
        [None if np.isnan(box[0]) else box.tolist() for box in one] for one in rendered.boxes.swapaxes(0, 1)
    ]
    boxes.append([(0.0, 0.0, 1.0, 1.0)] * len(rendered.frames))
    return boxes, rendered.conditions


def _enlarged(frames: np.ndarray) -> np.ndarray:
    return frames.repeat(UPSCALING, axis=1).repeat(UPSCALING, axis=2)


def _as_array(boxes: Sequence[Boxes]) -> np.ndarray:
    """(F, N, 4), NaN where there is none."""
    return np.array([[box or (np.nan,) * 4 for box in of_object] for of_object in boxes]).swapaxes(0, 1)


def _findings(
    judge: "SpriteJudge",
    edited: np.ndarray,
    source: np.ndarray,
    scene: "Scene",
    target: "Scene",
    rendered: "RenderedScene",
    perfect: "RenderedScene",
) -> list[tuple[str, str, str]]:
    """What each thing was, what was asked for, and what the judges find in the frames (F, H, W, 3) uint8."""
    from ..evaluation import found_sprites, masked_psnr
    from ..spriteworld.judge import background_names

    rows = []
    for index, (before, after) in enumerate(zip(scene.objects, target.objects)):
        found = Counter(names[index] for names in found_sprites(edited, rendered.boxes, judge) if names[index])
        rows.append((str(before.name), str(after.name), _shares(found)))
    outside = ~np.any(rendered.full_masks | perfect.full_masks, axis=1)
    found = Counter(background_names(edited, outside))
    if target.background == scene.background:
        asked, psnr = f"{target.background}, as it was", masked_psnr(edited, source, outside)
        rows.append((scene.background, asked, f"{_shares(found)}, {psnr:.1f} dB"))
    else:
        rows.append((scene.background, target.background, _shares(found)))
    return rows


def _shares(found: "Counter[str | None]") -> str:
    """Such as "squirrel 88 %, turtle 12 %": of the frames."""
    return ", ".join(f"{name} {count / found.total():.0%}" for name, count in found.most_common())
