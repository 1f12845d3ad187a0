"""The shipped detector and depth model see sprite scenes as they are, through the annotators, without a network.

The figures of their whole evaluations come from the training scripts' `--evaluate-only`.
"""

import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from diffusers_groundavideo import VideoGrounding
from diffusers_groundavideo.annotators import DepthEstimator, ObjectDetector, track_detections
from diffusers_groundavideo.annotators.tracking import box_iou
from diffusers_groundavideo.cli import app
from diffusers_groundavideo.spriteworld import (
    SPRITE_NAMES,
    mini_checkpoint,
    mini_depth_model,
    mini_detector,
    phrase_for,
    random_scene,
    render,
)
from diffusers_groundavideo.spriteworld.captions import PHRASE_TEMPLATES
from diffusers_groundavideo.video import read_clip, write_clip


SCRIPTS = Path(__file__).resolve().parents[2] / "examples" / "train_spriteworld"
sys.path.insert(0, str(SCRIPTS))

from train_depth import depth_figures  # noqa: E402
from train_detector import detection_figures, tracking_figures  # noqa: E402


# Neither the training scripts nor their evaluations draw scenes from here.
SEEDS = range(7_000_000_000_000, 7_000_000_000_024)


pytestmark = pytest.mark.usefixtures("no_network")


@pytest.fixture(scope="module")
def detector() -> ObjectDetector:
    return ObjectDetector.from_pretrained(mini_detector())


@pytest.fixture(scope="module")
def estimator() -> DepthEstimator:
    return DepthEstimator.from_pretrained(mini_depth_model())


def test_objects_and_backgrounds_are_found(detector: ObjectDetector) -> None:
    figures = detection_figures(detector, SEEDS)
    assert figures["map50"] >= 0.85
    assert figures["map50_backgrounds"] >= 0.9


def test_objects_are_followed_while_they_cross_and_leave(detector: ObjectDetector) -> None:
    figures = tracking_figures(detector, ["crossing", "leaving", "entering"], SEEDS[:3])
    assert figures["tracked"] >= 0.85
    assert figures["tracked_precision"] >= 0.85


def test_all_phrases_of_a_name_find_the_same_object(detector: ObjectDetector) -> None:
    rendered = render(scene := random_scene(SEEDS[3], num_objects=1, num_frames=1, motion="linear"))
    name = scene.objects[0].name or ""
    phrases = [phrase_for(name, template) for template in range(len(PHRASE_TEMPLATES))]
    others = [other for other in SPRITE_NAMES if other != name]
    found = detector(rendered.frames, [*phrases, *others])[0]
    for phrase in phrases:
        assert box_iou(np.array(found[phrase][0].box), rendered.boxes[0, 0]) >= 0.7
        assert all(one.score < found[phrase][0].score / 2 for other in others for one in found[other])


def test_the_text_tower_is_the_checkpoint_s() -> None:
    detector = load_file(mini_detector() / "model.safetensors")
    text_encoder = load_file(mini_checkpoint() / "text_encoder" / "model.safetensors")
    for key, value in text_encoder.items():
        assert torch.equal(detector[f"owlvit.text_model.{key}"], value), key


def test_depth_is_that_of_the_scene(estimator: DepthEstimator) -> None:
    figures = depth_figures(estimator, SEEDS[:4])
    assert figures["spearman"] >= 0.93


def test_the_nearer_of_two_objects_is_brighter(estimator: DepthEstimator) -> None:
    right = []
    for seed in SEEDS:
        rendered = render(scene := random_scene(seed, num_objects=2, motion="linear", num_frames=2))
        far, near = sorted((0, 1), key=lambda index: scene.objects[index].depth)
        if scene.objects[near].depth - scene.objects[far].depth >= 0.1:
            depth, masks = estimator(rendered.frames).numpy(), rendered.visible_masks
            right.append(np.median(depth[masks[:, near]]) > np.median(depth[masks[:, far]]))
    assert len(right) >= 10 and np.mean(right) >= 0.9


def test_a_still_clip_does_not_flicker(estimator: DepthEstimator) -> None:
    frame = render(random_scene(SEEDS[0])).frames[:1]
    depth = estimator(np.repeat(frame, 6, axis=0), batch_size=4)
    assert (depth == depth[:1]).all() and depth.max() > depth.min()


def test_a_clip_and_words_become_an_edit_file(tmp_path: Path) -> None:
    rendered = render(scene := random_scene(SEEDS[4], num_objects=2, motion="linear"))
    names = [item.name or "" for item in scene.objects]
    clip, edit = tmp_path / "clip.mp4", tmp_path / "edit.json"
    write_clip(clip, rendered.frames, 8)
    options: list[Any] = [clip, "--objects", ", ".join([*names, scene.background]), "-o", edit, "--device", "cpu"]
    options += ["--detector", mini_detector(), "--depth-model", mini_depth_model(), "--cache-dir", tmp_path / "cache"]
    options += ["--save-depth", tmp_path / "depth", "--preview", tmp_path / "preview.mp4"]
    result = CliRunner().invoke(app, ["annotate", *map(str, options)])
    assert result.exit_code == 0, (result.output, result.exception)
    grounding = VideoGrounding.from_json(edit)
    assert grounding.phrases("source") == [*names, scene.background]
    boxes, present = grounding.frame_boxes(scene.num_frames)
    assert present.all()
    assert (box_iou(boxes[:, :2].numpy(), rendered.boxes) >= 0.5).mean() >= 0.9
    assert (box_iou(boxes[:, 2].numpy(), np.array([0.0, 0.0, 1.0, 1.0])) >= 0.8).all()
    # Near is bright in the file too: the bottom of the frame is the nearest ground.
    depth = read_clip(tmp_path / "depth").frames.astype(float)
    assert depth[:, -4:].mean() > depth[:, :4].mean() + 50


def test_a_phrase_for_what_is_not_there_is_not_found(detector: ObjectDetector) -> None:
    rendered = render(scene := random_scene(SEEDS[5], num_objects=1, motion="linear"))
    absent = [name for name in SPRITE_NAMES if name != scene.objects[0].name]
    tracks = track_detections(detector(rendered.frames, absent, threshold=0.5))
    assert tracks == []


def test_the_folders_are_small_and_portable() -> None:
    files = [path for folder in (mini_detector(), mini_depth_model()) for path in folder.iterdir()]
    assert sum(path.stat().st_size for path in files) <= 8e6
    # Nor do they name the folder that they were trained in.
    assert not any(re.search(r'_name_or_path": "[^"]', path.read_text()) for path in files if path.suffix == ".json")
