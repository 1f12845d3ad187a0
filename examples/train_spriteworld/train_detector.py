"""Train a small OWL-ViT to find sprites and backgrounds by their phrases.

Its text tower is the mini checkpoint's, frozen, and its image tower goes on from the same CLIP's, as OWL-ViT's does
(Minderer et al., 2022): with heads for a class embedding and a box at each patch in place of the pooling. A patch is
asked for the object in whose middle it lies, and the first patch for the background, whose box is the frame. Once that
is learned, only the patch that answers best shall name the object, lest it be found twice; the others go on to say
where it is.

Run: `python examples/train_spriteworld/train_detector.py --run-dir runs`
With `--evaluate-only` the finished detector of the run is measured through the annotators, and nothing is trained; the
shipped one with `--run-dir src/diffusers_groundavideo/spriteworld --evaluate-only`.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torchvision.ops import generalized_box_iou_loss
from train_clip import tokenize
from training import (
    FRESH_SEED,
    TrainingRun,
    WeightAverage,
    batch_seeds,
    learning_rate_at,
    render_batch,
    single_frame_scene,
    start,
    training_parser,
    with_noise,
)
from transformers import (
    CLIPModel,
    CLIPTextModel,
    CLIPTokenizer,
    OwlViTConfig,
    OwlViTForObjectDetection,
    OwlViTImageProcessor,
    OwlViTProcessor,
)

from diffusers_groundavideo.annotators import Detection, ObjectDetector, track_detections
from diffusers_groundavideo.annotators.objects import corners
from diffusers_groundavideo.annotators.tracking import box_iou
from diffusers_groundavideo.spriteworld import (
    BACKGROUND_NAMES,
    MOTIONS,
    SPRITE_NAMES,
    RenderedScene,
    Scene,
    background_phrase,
    clipped_boxes,
    fit_sprite,
    phrase_for,
    random_scene,
    render,
)
from diffusers_groundavideo.spriteworld.captions import BACKGROUND_PHRASE_TEMPLATES, PHRASE_TEMPLATES


IMAGE_SIZE = 64
PATCH_SIZE = 8
GRID = IMAGE_SIZE // PATCH_SIZE
# Layers of the image tower beyond CLIP's.
ADDED_LAYERS = 2
# All that is looked for in training, in every frame; the ones that are not there are its negatives.
NAMES = SPRITE_NAMES + BACKGROUND_NAMES
# A patch is asked for an object if its centre is in this inner share of the object's box, along both axes.
MIDDLE_SHARE = 0.5
# The share of the steps after which an object is to be named by one patch only.
NAMED_ONCE_FROM = 0.56
# What DETR weighs its box losses with, beside the classification.
L1_WEIGHT, GIOU_WEIGHT = 5.0, 2.0
# Detections are compared with the truth at this intersection over union.
MATCH_IOU = 0.5
# Below this share of itself in sight an object is not asked for in tracks.
MIN_SEEN_SHARE = 0.25


def phrases_of(name: str) -> list[str]:
    """All phrases for one of `NAMES`."""
    if name in SPRITE_NAMES:
        return [phrase_for(name, template) for template in range(len(PHRASE_TEMPLATES))]
    return [background_phrase(name, template) for template in range(len(BACKGROUND_PHRASE_TEMPLATES))]


def build_detector(
    clip: CLIPModel, text_encoder: CLIPTextModel, features: list[torch.Tensor]
) -> OwlViTForObjectDetection:
    """The detector with CLIP's weights where it has the same, and heads that find nothing; `features` as
    `phrase_features` gives them."""
    text, vision = text_encoder.config.to_dict(), clip.vision_model.config.to_dict()
    for config in (text, vision):
        for key in ("_name_or_path", "model_type", "architectures", "projection_dim", "dtype", "transformers_version"):
            config.pop(key, None)
    vision["num_hidden_layers"] += ADDED_LAYERS
    # The class head gives embeddings as wide as the text model: the projection has to do so too.
    config = OwlViTConfig(text_config=text, vision_config=vision, projection_dim=text["hidden_size"])
    detector = OwlViTForObjectDetection(config)
    owl = detector.owlvit
    owl.text_model.load_state_dict(text_encoder.state_dict())
    own = owl.vision_model.state_dict()
    # OWL-ViT calls this layer by another name than CLIP's misspelt one.
    own.update(
        {key.replace("pre_layrnorm", "pre_layernorm"): value for key, value in clip.vision_model.state_dict().items()}
    )
    owl.vision_model.load_state_dict(own)
    # Its own initialisation of the heads is for wider ones: here they would pass on next to nothing.
    for layer in (*detector.box_head.children(), *detector.class_head.children()):
        if isinstance(layer, torch.nn.Linear):
            layer.reset_parameters()
    with torch.no_grad():
        # Every patch says no, equally surely, to every phrase that is unlike its class embedding.
        for layer, value in ((detector.class_head.logit_scale, 9.0), (detector.class_head.logit_shift, -0.5)):
            layer.weight.zero_()
            layer.bias.fill_(value)
        # What all phrases have in common says nothing.
        common = F.normalize(torch.cat(features).mean(0), dim=0)
        owl.text_projection.weight.copy_(torch.eye(len(common)) - torch.outer(common, common))
    owl.text_model.requires_grad_(False)
    return detector


@dataclass(frozen=True)
class Targets:
    """What the P patches of B frames are asked for.

    Args:
        classes: (B, P) index in `NAMES`, -1 where there is nothing in the middle of which the patch lies.
        boxes: (B, P, 4) xyxy in units of the frame, 0 where there is none.
    """

    classes: torch.Tensor
    boxes: torch.Tensor

    def best(self, logits: torch.Tensor, boxes: torch.Tensor) -> torch.Tensor:
        """Of all patches that are asked for one object the one that answers best: (B, P) bool.

        Args:
            logits: (B, P, Q) for each of `NAMES`.
            boxes: (B, P, 4) xyxy that the patches answer with; the overlap counts as much as the name.
        """
        own = self.classes.clamp_min(0)
        score = logits.gather(2, own[..., None])[..., 0].sigmoid()
        # A frame has no name twice, so that its name tells an object.
        quality = score * _overlap(boxes, self.boxes) * (self.classes >= 0)
        highest = torch.zeros(len(own), len(NAMES)).scatter_reduce(1, own, quality, "amax")
        return (quality == highest.gather(1, own)) & (self.classes >= 0)


def _overlap(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Intersection over union of boxes (..., 4) xyxy, pair by pair: (...)."""
    return torch.from_numpy(box_iou(first.numpy(), second.numpy()))


def object_boxes(scene: Scene) -> np.ndarray:
    """Where the sprites of a one-frame scene are in the frame: (N, 4) xyxy in [0, 1], NaN where (nearly) out.

    After an edit that is less than the slot, in which the sprite keeps its aspect.
    """
    fitted = [fit_sprite(item.name, item.slots[0]) for item in scene.objects if item.name is not None]
    return clipped_boxes(np.array(fitted))


def assign(scenes: Sequence[Scene], rendered: Sequence[RenderedScene]) -> Targets:
    """What each patch is asked for; objects that are hidden completely are not asked for."""
    classes = torch.full((len(scenes), GRID * GRID), -1)
    boxes = torch.zeros(len(scenes), GRID * GRID, 4)
    middle = (np.stack(np.meshgrid(np.arange(GRID), np.arange(GRID)), axis=-1).reshape(-1, 2) + 0.5) / GRID
    # OWL-ViT starts the boxes of the last row and column at the very border, where its sigmoid learns nothing.
    border = (middle > 1 - 1 / GRID).any(axis=1)
    for row, (scene, item) in enumerate(zip(scenes, rendered)):
        classes[row, 0] = NAMES.index(scene.background)
        boxes[row, 0] = torch.tensor([0.0, 0.0, 1.0, 1.0])
        # Distance of each patch to the middle of the object that it is asked for, in half boxes.
        nearest = np.full(GRID * GRID, np.inf)
        for index, box in enumerate(object_boxes(scene)):
            if np.isnan(box[0]) or not item.visible_masks[0, index].any():
                continue
            distance = np.abs((middle - (box[:2] + box[2:]) / 2) / ((box[2:] - box[:2]) / 2)).max(axis=1)
            distance[border] = np.inf
            asked = (distance < np.maximum(MIDDLE_SHARE, distance.min() + 1e-6)) & (distance < nearest)
            nearest[asked] = distance[asked]
            classes[row, asked] = NAMES.index(scene.objects[index].name or "")
            boxes[row, asked] = torch.from_numpy(box).float()
    return Targets(classes, boxes)


@torch.no_grad()
def phrase_features(text_encoder: CLIPTextModel, tokenizer: CLIPTokenizer) -> list[torch.Tensor]:
    """For each of `NAMES` the pooled outputs (T, 96) of all its phrases; the text tower is frozen."""
    return [text_encoder(tokenize(tokenizer, phrases_of(name))).pooler_output for name in NAMES]


def detection_loss(
    detector: OwlViTForObjectDetection, frames: torch.Tensor, phrases: torch.Tensor, targets: Targets, named_once: bool
) -> tuple[torch.Tensor, dict[str, float]]:
    """Classification of every patch by every phrase, and DETR's box losses where there is something.

    Args:
        detector: In training mode.
        frames: (B, 3, 64, 64) in [-1, 1].
        phrases: (Q, 96) pooled outputs of the text tower, one for each of `NAMES`.
        targets: Of these frames.
        named_once: Whether one patch shall name an object, or all that are asked for it.

    Returns:
        The loss a positive patch, and its parts.
    """
    features = detector.image_embedder(pixel_values=frames)[0]
    patches = features.flatten(1, 2)
    queries = detector.owlvit.text_projection(phrases).expand(len(frames), -1, -1)
    logits = detector.class_predictor(patches, queries)[0]
    predicted = corners(detector.box_predictor(patches, features))
    asked = targets.classes >= 0
    naming = targets.best(logits.detach(), predicted.detach()) if named_once else asked
    wanted = F.one_hot(targets.classes.clamp_min(0), len(NAMES)) * naming[..., None]
    classification = F.binary_cross_entropy_with_logits(logits, wanted.float(), reduction="sum") / naming.sum()
    l1 = F.l1_loss(predicted[asked], targets.boxes[asked], reduction="sum") / asked.sum()
    giou = generalized_box_iou_loss(predicted[asked], targets.boxes[asked], reduction="mean")
    parts = {"classification": classification.item(), "l1": l1.item(), "giou": giou.item()}
    return classification + L1_WEIGHT * l1 + GIOU_WEIGHT * giou, parts


def average_precision(
    detections: Sequence[Sequence[Detection]], boxes: Sequence[Sequence[np.ndarray]], match_iou: float = MATCH_IOU
) -> float:
    """Average precision of one class: the area below the curve of precision over recall, made monotonic (as VOC 2010
    and COCO do; all points of the curve, none interpolated).

    Args:
        detections: Of each picture.
        boxes: The true ones of each picture, (4,) xyxy; at least one in all.
        match_iou: The surest detections come first, and each takes the free true box that it overlaps most with, if it
            does so by this.
    """
    taken: set[tuple[int, int]] = set()
    ordered = sorted(
        ((one, picture) for picture, found in enumerate(detections) for one in found), key=lambda pair: -pair[0].score
    )
    right = np.zeros(len(ordered))
    for rank, (one, picture) in enumerate(ordered):
        free = [index for index in range(len(boxes[picture])) if (picture, index) not in taken]
        overlaps = [float(box_iou(np.array(one.box), boxes[picture][index])) for index in free]
        if overlaps and max(overlaps) >= match_iou:
            taken.add((picture, free[int(np.argmax(overlaps))]))
            right[rank] = 1
    recall = np.cumsum(right) / sum(len(true) for true in boxes)
    precision = np.cumsum(right) / np.arange(1, len(right) + 1)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float((np.diff(recall, prepend=0.0) * envelope).sum())


def detection_figures(detector: ObjectDetector, seeds: Sequence[int]) -> dict[str, float]:
    """Mean average precision at IoU 0.5 over all names, on one frame of each scene: every name is looked for in every
    frame, and every object of which a pixel is seen counts."""
    scenes = [single_frame_scene(seed, edited_share=0.0) for seed in seeds]
    rendered = [render(scene) for scene in scenes]
    frames = np.concatenate([item.frames for item in rendered])
    found = detector(frames, NAMES, threshold=0.01, batch_size=20)
    true: dict[str, list[list[np.ndarray]]] = {name: [[] for _ in scenes] for name in NAMES}
    for picture, (scene, item) in enumerate(zip(scenes, rendered)):
        true[scene.background][picture].append(np.array([0.0, 0.0, 1.0, 1.0]))
        for index, thing in enumerate(scene.objects):
            if not np.isnan(item.boxes[0, index, 0]) and item.visible_masks[0, index].any():
                true[thing.name or ""][picture].append(item.boxes[0, index])
    figures = {
        name: average_precision([frame[name] for frame in found], true[name]) for name in NAMES if any(true[name])
    }
    return {
        "map50": float(np.mean([figures[name] for name in SPRITE_NAMES if name in figures])),
        "map50_backgrounds": float(np.mean([figures[name] for name in BACKGROUND_NAMES if name in figures])),
        "worst_ap50": min(figures.values()),
    }


def seen_shares(scene: Scene, rendered: RenderedScene) -> np.ndarray:
    """Which share of each object is in the frame and not hidden by another: (F, N) in [0, 1]."""
    slots = np.stack([item.slots for item in scene.objects], axis=1)
    kept = np.clip(slots, 0, 1)
    inside = (kept[..., 2:] - kept[..., :2]).clip(0).prod(-1) / (slots[..., 2:] - slots[..., :2]).prod(-1)
    full = rendered.full_masks.sum((2, 3))
    return inside * rendered.visible_masks.sum((2, 3)) / np.maximum(full, 1)


def tracking_figures(detector: ObjectDetector, motions: Sequence[str], seeds: Sequence[int]) -> dict[str, float]:
    """How well the tracks of whole clips follow: the names in the clip are looked for, and of each name the track that
    the annotators put first is compared with the truth, frame by frame.

    Args:
        detector: As the annotators load it.
        motions: Of each clip; two cross where it says so.
        seeds: Of each clip.

    Returns:
        `tracked`: the share of the true boxes, of objects at least a quarter seen, on which that track has an IoU of
        at least 0.5; and the same by motion. `tracked_precision`: the share of the boxes of all tracks, second ones
        too, that has this IoU with the object of its name; where less than a quarter of it is seen but some of it is
        in the frame, a box is neither right nor wrong.
    """
    followed: dict[str, list[bool]] = {motion: [] for motion in motions}
    right: list[bool] = []
    for motion, seed in zip(motions, seeds, strict=True):
        scene = random_scene(seed, motion=motion, num_objects=2 if motion == "crossing" else None)
        rendered = render(scene)
        seen = seen_shares(scene, rendered)
        tracks = track_detections(detector(rendered.frames, [item.name or "" for item in scene.objects]))
        for index, item in enumerate(scene.objects):
            of_name = [track for track in tracks if track.phrase == item.name]
            for frame in range(scene.num_frames):
                boxes = [track.boxes[frame] for track in of_name]
                true = rendered.boxes[frame, index]
                hits = [box is not None and float(box_iou(np.array(box), true)) >= MATCH_IOU for box in boxes]
                if seen[frame, index] >= MIN_SEEN_SHARE:
                    followed[motion].append(bool(hits) and hits[0])
                if seen[frame, index] >= MIN_SEEN_SHARE or seen[frame, index] == 0:
                    right += [hit for hit, box in zip(hits, boxes) if box is not None]
    return {
        "tracked": float(np.mean(sum(followed.values(), []))),
        **{f"tracked_{motion}": float(np.mean(hits)) for motion, hits in followed.items()},
        "tracked_precision": float(np.mean(right)),
    }


def evaluate(folder: Path, num_scenes: int = 200, num_clips: int = 50) -> dict[str, float]:
    """The figures of a finished detector, as the annotators load it, on fresh scenes and clips."""
    detector = ObjectDetector.from_pretrained(folder)
    clips = FRESH_SEED + num_scenes
    return {
        **detection_figures(detector, range(FRESH_SEED, FRESH_SEED + num_scenes)),
        **tracking_figures(detector, [*islice(cycle(MOTIONS), num_clips)], range(clips, clips + num_clips)),
    }


def save(detector: OwlViTForObjectDetection, tokenizer: CLIPTokenizer, folder: Path) -> None:
    """In half precision, with the processor."""
    size = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    half: Any = [0.5, 0.5, 0.5]
    images = OwlViTImageProcessor(size=size, image_mean=half, image_std=half)
    detector.half().save_pretrained(folder)
    OwlViTProcessor(images, tokenizer).save_pretrained(folder)


def main() -> None:
    parser = training_parser(__doc__, steps=3000, batch_size=32, learning_rate=1e-3)
    parser.add_argument("--evaluate-only", action="store_true", help="measure the finished detector of the run")
    args = parser.parse_args()
    start(args)
    if args.evaluate_only:
        print(json.dumps(evaluate(args.run_dir / "detector"), indent=1))
        return

    run = TrainingRun(args.run_dir / "detector_training", args.save_minutes)
    tokenizer = CLIPTokenizer.from_pretrained(args.run_dir / "tokenizer")
    text_encoder = CLIPTextModel.from_pretrained(args.run_dir / "text_encoder", dtype=torch.float32).eval()
    clip = CLIPModel.from_pretrained(args.run_dir / "clip", dtype=torch.float32)
    phrases = phrase_features(text_encoder, tokenizer)
    detector = build_detector(clip, text_encoder, phrases)
    learned = [parameter for parameter in detector.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(learned, lr=args.learning_rate, weight_decay=1e-2, betas=(0.9, 0.98))
    average = WeightAverage(detector, decay=0.998)
    first_step = 0
    if (state := run.resume()) is not None:
        detector.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        average.average = state["average"]
        first_step = state["step"]

    detector.train()
    for step in range(first_step, args.steps):
        optimizer.param_groups[0]["lr"] = learning_rate_at(step, args.steps, args.learning_rate)
        generator = torch.Generator().manual_seed(step)
        scenes, rendered, frames = render_batch(batch_seeds(args.seed, step, args.batch_size))
        frames = with_noise(frames, generator)
        queries = torch.stack([own[int(torch.randint(len(own), (1,), generator=generator))] for own in phrases])
        named_once = step >= NAMED_ONCE_FROM * args.steps
        loss, parts = detection_loss(detector, frames, queries, assign(scenes, rendered), named_once)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(learned, 1.0)
        optimizer.step()
        average.update(detector, step)
        if step % 25 == 0 or step == args.steps - 1:
            run.log(step, loss=loss.item(), **parts)
        if run.due():
            run.save(step + 1, model=detector.state_dict(), optimizer=optimizer.state_dict(), average=average.average)
    run.save(args.steps, model=detector.state_dict(), optimizer=optimizer.state_dict(), average=average.average)

    detector.load_state_dict(average.average)
    save(detector, tokenizer, args.run_dir / "detector")
    sizes = (8, 7) if args.smoke else (200, 50)
    run.log(args.steps, **evaluate(args.run_dir / "detector", *sizes))


if __name__ == "__main__":
    main()
