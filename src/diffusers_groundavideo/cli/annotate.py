"""The command `groundavideo annotate`, and the words of `groundavideo edit` that need no boxes."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer

from ..video import Clip, check_output_path, draw_boxes, read_clip, side_by_side, write_clip
from .running import ClipPath, Device, MaxFrames, Run, choose_device, console, record_path_of


# `--help` does not wait for torch: the functions that need it import it.
if TYPE_CHECKING:
    import torch

    from ..annotators import ClipFlow, ObjectQuery, Track
    from ..grounding import VideoGrounding


DEFAULT_DETECTOR = "IDEA-Research/grounding-dino-base"
DEFAULT_DEPTH_MODEL = "depth-anything/Depth-Anything-V2-Small-hf"

Detector = Annotated[
    str,
    typer.Option(metavar="MODEL", help="GroundingDINO, MM-GroundingDINO, OWL-ViT or OWLv2: a folder or a Hub id."),
]
Threshold = Annotated[
    float | None, typer.Option(help="The lowest score of a box that counts; by default the detector's own.")
]
MaskModel = Annotated[
    str | None, typer.Option(metavar="MODEL", help="SAM 2 or EdgeTAM for video: makes masks of the boxes.")
]
CacheDir = Annotated[
    Path | None,
    typer.Option(metavar="FOLDER", help="Where results are kept for the next run; by default in the user's cache."),
]


def annotate_clip(
    ctx: typer.Context,
    clip: ClipPath,
    objects: Annotated[
        str,
        typer.Option(
            metavar="PHRASES",
            help='What to look for: "rabbit, table". Of several dogs: dog@left (right, top, bottom, largest, '
            "smallest) or dog@2; all of them without.",
        ),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE", help="A .json for --edit of `groundavideo edit`.")
    ],
    preview: Annotated[
        Path | None,
        typer.Option(metavar="PATH", help="Boxes, depth and flow side by side: .mp4, .gif or a new folder."),
    ] = None,
    detector: Detector = DEFAULT_DETECTOR,
    threshold: Threshold = None,
    mask_model: MaskModel = None,
    depth_model: Annotated[
        str,
        typer.Option(
            metavar="MODEL",
            help="Depth Anything, DPT or ZoeDepth: a folder or a Hub id; or zoe:MODEL, midas:MODEL of controlnet-aux.",
        ),
    ] = DEFAULT_DEPTH_MODEL,
    flow: Annotated[
        str, typer.Option(metavar="METHOD", help="dis, raft-large, raft-small, or a file of RAFT's weights.")
    ] = "dis",
    save_depth: Annotated[
        Path | None, typer.Option(metavar="PATH", help="The depth as a clip, for --depth of `groundavideo edit`.")
    ] = None,
    save_flow: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The flow as .safetensors, for --flow of `groundavideo edit`.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Frames in one forward of a model.")] = 4,
    device: Device = None,
    max_frames: MaxFrames = None,
    cache_dir: CacheDir = None,
) -> None:
    """Finds objects in CLIP and writes where they are, kept as they are: what they become is yours to fill in."""
    if output.suffix != ".json" or output.is_dir():
        raise ValueError(f"--output has to be a file that ends in .json, but is {output}.")
    if save_flow is not None and (save_flow.suffix != ".safetensors" or save_flow.is_dir()):
        raise ValueError(f"--save-flow has to be a file that ends in .safetensors, but is {save_flow}.")
    for path in filter(None, (preview, save_depth)):
        check_output_path(path)
    queries = parse_objects(objects)
    source = read_clip(clip, max_frames=max_frames)
    num_frames, height, width = source.frames.shape[:3]
    console.print(f"Clip: {num_frames} frames of {width}x{height} at {source.fps:g} frames a second.")
    run = Run(ctx.params, choose_device(device))
    reader = ClipReader(source, run, cache_dir, batch_size)

    found = reader.find(queries, detector, threshold)
    tracks = [track for of_query in found for track in of_query]
    masks = None if mask_model is None else reader.masks(tracks, mask_model)

    from ..annotators import grounding_from_tracks

    grounding = grounding_from_tracks(tracks, masks=masks)
    if preview is not None or save_depth is not None:
        depth = reader.depth(depth_model)
    if preview is not None or save_flow is not None:
        estimated = reader.flow(flow)
    with run.stage("write"):
        _write_json(output, {"source_prompt": None, "target_prompt": None, **_about(source), **grounding.to_dict()})
        if save_depth is not None:
            from ..annotators.depth import depth_to_frames

            write_clip(save_depth, depth_to_frames(depth), source.fps)
        if save_flow is not None:
            _save_flow(save_flow, estimated)
        if preview is not None:
            write_clip(preview, _preview(source.frames, tracks, depth, estimated), source.fps)
    record = record_path_of(output)
    run.write_record(
        record,
        source,
        found=[
            {"phrase": track.phrase, "score": track.score, "num_detections": track.num_detections} for track in tracks
        ],
        reused=reader.reused,
    )
    console.print(f"Wrote {output} and {record}.")


@dataclass(frozen=True)
class EditWords:
    """What `groundavideo edit` is told in words in place of an edit file.

    Args:
        found: What to look for in the clip, and what each of these becomes: `None` is removed, the phrase itself kept.
        added: What is new, each with its normalised xyxy box for all frames.
    """

    found: Sequence[tuple["ObjectQuery", str | None]]
    added: Sequence[tuple[str, Sequence[float]]]

    @classmethod
    def parse(
        cls,
        change: Sequence[str] = (),
        add: Sequence[str] = (),
        box: Sequence[str] = (),
        keep: Sequence[str] = (),
        remove: Sequence[str] = (),
    ) -> "EditWords":
        """Reads the options of the command line, each of which may be repeated.

        Args:
            change: Such as "rabbit=squirrel"; of several rabbits "rabbit@left=squirrel".
            add: Such as "aurora".
            box: The box of each of these, in order: "0,0,1,0.45", normalised xyxy in [0, 1].
            keep, remove: Such as "table".

        Raises:
            `ValueError`: If there is nothing to edit, an option is of another form, something is named twice, or there
                is not one box for each thing that is added. Nothing has been loaded by then.
        """
        from ..annotators import ObjectQuery

        found: list[tuple[ObjectQuery, str | None]] = []
        for text in change:
            source, equals, target = text.rpartition("=")
            if not equals or not source.strip() or not target.strip():
                raise ValueError(f"--change has to be of the form rabbit=squirrel, but is {text!r}.")
            found.append((ObjectQuery.parse(source), target.strip()))
        found += [(ObjectQuery.parse(text), None) for text in remove]
        kept = [ObjectQuery.parse(text) for text in keep]
        found += [(query, query.phrase) for query in kept]
        _check_named_once([query for query, _ in found])
        if len(add) != len(box):
            raise ValueError(f"Each --add needs a --box of its own, but there are {len(add)} and {len(box)}.")
        if not (change or add or remove):
            raise ValueError("There is nothing to edit: no --change, --add or --remove.")
        if not all(text.strip() for text in add):
            raise ValueError("--add has to name what is added, but is empty.")
        return cls(found, [(text.strip(), _parse_box(corners)) for text, corners in zip(add, box)])


def ground_words(
    words: EditWords,
    reader: "ClipReader",
    detector: str = DEFAULT_DETECTOR,
    threshold: float | None = None,
    mask_model: str | None = None,
) -> "VideoGrounding":
    """Looks for what the words name, prints what it found and where, and makes the grounding of the edit.

    Args:
        words: Of the command line.
        reader: Of the clip.
        detector, threshold, mask_model: As the options of `groundavideo annotate`.

    Raises:
        `PhraseNotFoundError`: If a phrase is not found; a `ValueError` that lists what was found.
        `ValueError`: If a model cannot be loaded, or a box is none.
    """
    from ..annotators import grounding_from_tracks
    from ..grounding import GroundedObject, VideoGrounding

    added = [GroundedObject(None, phrase, box=box) for phrase, box in words.added]
    if not words.found:
        return VideoGrounding(added)
    found = reader.find([query for query, _ in words.found], detector, threshold)
    tracks = [track for of_query in found for track in of_query]
    targets = [target for (_, target), of_query in zip(words.found, found) for _ in of_query]
    masks = None if mask_model is None else reader.masks(tracks, mask_model)
    return VideoGrounding([*grounding_from_tracks(tracks, targets, masks).objects, *added])


def parse_objects(text: str) -> "list[ObjectQuery]":
    """Reads "rabbit, dog@left": phrases between commas, none of them twice.

    Raises:
        `ValueError`: If a phrase is empty or named twice, or what follows an `@` says nothing.
    """
    from ..annotators import ObjectQuery

    queries = [ObjectQuery.parse(part) for part in text.split(",")]
    _check_named_once(queries)
    return queries


def _check_named_once(queries: "Sequence[ObjectQuery]") -> None:
    names = [str(query).lower() for query in queries]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"Each object can be named once, but {', '.join(twice)} is named twice.")


def _parse_box(text: str) -> list[float]:
    try:
        x0, y0, x1, y1 = (float(corner) for corner in text.split(","))
    except ValueError as error:
        raise ValueError(f"--box has to be 4 numbers x0,y0,x1,y1 in [0, 1], but is {text!r}.") from error
    return [x0, y0, x1, y1]


@dataclass
class ClipReader:
    """Runs annotators on one clip: each result is read from the cache or computed, timed and said.

    Args:
        source: The clip.
        run: Times the stages, and says where models run.
        cache_dir: Where results are kept; by default in the user's folder for caches.
        batch_size: Frames in one forward.
        reused: The stages whose result was kept from an earlier run.
    """

    source: Clip
    run: Run
    cache_dir: Path | None = None
    batch_size: int = 4
    reused: list[str] = field(default_factory=list)

    def find(self, queries: "Sequence[ObjectQuery]", detector: str, threshold: float | None) -> "list[list[Track]]":
        """The tracks of each query, printed one a line.

        Raises:
            `PhraseNotFoundError`: If a phrase is not found.
        """
        from ..annotators import ObjectDetector
        from ..annotators.cache import detections_from_tensors, detections_to_tensors
        from ..annotators.finding import LOWEST_SCORE, describe_track, find_objects

        phrases = list(dict.fromkeys(query.phrase for query in queries))
        lowest = LOWEST_SCORE if threshold is None else min(LOWEST_SCORE, threshold)

        def compute() -> "dict[str, torch.Tensor]":
            import torch

            model = ObjectDetector.from_pretrained(detector, self.run.device)
            detections = model(self.source.frames, phrases, lowest, self.batch_size)
            return {**detections_to_tensors(detections), "threshold": torch.tensor(model.default_threshold)}

        settings = {"detector": _identity(detector), "phrases": phrases, "lowest": lowest}
        kept = self._get("objects", settings, compute)
        if threshold is None:
            threshold = round(float(kept["threshold"]), 6)
        detections = detections_from_tensors(kept, phrases, len(self.source.frames))
        found = find_objects(detections, queries, threshold)
        for query, tracks in zip(queries, found):
            for number, track in enumerate(tracks, start=1):
                name = f"{query}@{number}: " if len(tracks) > 1 else ""
                first = next(box for box in track.boxes if box is not None)
                console.print(f"  {name}{describe_track(track)}, first at {', '.join(f'{c:.2f}' for c in first)}")
        return found

    def masks(self, tracks: "Sequence[Track]", model: str) -> list[np.ndarray]:
        """Boolean masks (F, H, W) of each track, from a segmenter."""
        import torch

        from ..annotators import BoxToMask

        def compute() -> "dict[str, torch.Tensor]":
            segmenter = BoxToMask.from_pretrained(model, self.run.device)
            return {"masks": torch.from_numpy(np.stack(segmenter(self.source.frames, tracks)))}

        settings = {"model": _identity(model), "boxes": [list(track.boxes) for track in tracks]}
        return list(self._get("masks", settings, compute)["masks"].numpy())

    def depth(self, model: str) -> "torch.Tensor":
        """(F, H, W) float32 in [0, 1], near is bright."""
        from ..annotators import DepthEstimator

        def compute() -> "dict[str, torch.Tensor]":
            estimator = DepthEstimator.from_pretrained(model, self.run.device)
            return {"depth": estimator(self.source.frames, self.batch_size)}

        return self._get("depth", {"model": _identity(model)}, compute)["depth"]

    def flow(self, method: str) -> "ClipFlow":
        """Forward and backward flow in pixels of the clip."""
        from ..annotators import ClipFlow, FlowEstimator

        def compute() -> "dict[str, torch.Tensor]":
            estimated = FlowEstimator.from_pretrained(method, self.run.device)(self.source.frames, self.batch_size)
            return {"flow": estimated.forward, "backward_flow": estimated.backward}

        kept = self._get("flow", {"method": _identity(method)}, compute)
        return ClipFlow(kept["flow"], kept["backward_flow"])

    def _get(
        self, kind: str, settings: dict[str, Any], compute: "Callable[[], dict[str, torch.Tensor]]"
    ) -> "dict[str, torch.Tensor]":
        from ..annotators import AnnotationCache

        cache = AnnotationCache(self.cache_dir)
        with self.run.stage(kind):
            result, reused = cache.get(kind, self.source.frames, settings, compute)
        if reused:
            self.reused.append(kind)
            console.print(f"{kind}: reused from {cache.folder}")
        return result


def _identity(model: str) -> Any:
    from ..annotators.cache import model_identity

    return model_identity(model)


def _about(source: Clip) -> dict[str, Any]:
    num_frames, height, width = source.frames.shape[:3]
    return {"num_frames": num_frames, "size": [height, width]}


def _write_json(path: Path, data: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # Paths are the only arguments that JSON does not know.
    path.write_text(json.dumps(data, indent=1, default=str) + "\n", encoding="utf-8")


def _save_flow(path: Path, flow: "ClipFlow") -> None:
    from safetensors.torch import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({"flow": flow.forward, "backward_flow": flow.backward}, path)


def _preview(frames: np.ndarray, tracks: "Sequence[Track]", depth: "torch.Tensor", flow: "ClipFlow") -> np.ndarray:
    """The clip with boxes, names and scores; its depth; and its flow, by colour: (F, H', W', 3) uint8."""
    import torch

    from ..annotators.depth import depth_to_frames
    from ..extras import import_from_extra

    boxes = np.array([[box or (np.nan,) * 4 for box in track.boxes] for track in tracks]).transpose(1, 0, 2)
    labels = [f"{track.phrase} {track.score:.2f}" for track in tracks]
    # From the last frame nothing moves on.
    vectors = torch.cat([flow.forward, torch.zeros(1, *flow.forward.shape[1:])])
    coloured = import_from_extra("torchvision.utils", "annotators").flow_to_image(vectors).movedim(1, -1).numpy()
    return side_by_side(
        [draw_boxes(frames, boxes, labels), depth_to_frames(depth), coloured], ["objects", "depth", "flow"]
    )
