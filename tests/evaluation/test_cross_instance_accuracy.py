import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPModel, CLIPProcessor

from diffusers_groundavideo.evaluation import ClipScorer, cross_instance_accuracy
from evaluation.clips import noise_clip
from evaluation.sprites import edited_scene


@pytest.fixture(scope="module")
def scorer(sprite_clip: Path) -> ClipScorer:
    return ClipScorer.from_pretrained(sprite_clip)


def test_right_edits_are_right_and_swapped_ones_wrong(scorer: ClipScorer) -> None:
    scene = edited_scene(["tree", "bus"])
    assert cross_instance_accuracy(scene.frames, scene.boxes, ["a tree", "a bus"], scorer) == 1
    assert cross_instance_accuracy(scene.frames, scene.boxes, ["a bus", "a tree"], scorer) == 0


def test_one_wrong_object_of_three_costs_a_third(scorer: ClipScorer) -> None:
    scene = edited_scene(["tree", "bus", "bus"])
    accuracy = cross_instance_accuracy(scene.frames, scene.boxes, ["a tree", "a bus", "a cat"], scorer)
    assert accuracy == pytest.approx(2 / 3)


def test_it_is_the_mean_diagonal_of_the_largest_of_each_row(random_clip: Path) -> None:
    # With a CLIP that knows nothing, so that some rows are wrong.
    frames, captions = noise_clip(0, 6, 32, 64) // 3, ["a tree", "a bus"]
    frames[::2, :, 32:] += 150
    boxes = np.tile(np.array([[0, 0, 0.5, 1], [0.5, 0, 1, 1]], dtype=np.float32), (6, 1, 1))
    model, processor = CLIPModel.from_pretrained(random_clip).eval(), CLIPProcessor.from_pretrained(random_clip)
    diagonals = []
    for frame in frames:
        images = [Image.fromarray(frame[:, :32]), Image.fromarray(frame[:, 32:])]
        with torch.no_grad():
            outputs = model(**processor(text=captions, images=images, padding=True, return_tensors="pt"))
        diagonals += [row.argmax().item() == index for index, row in enumerate(outputs.logits_per_image)]
    assert 0 < np.mean(diagonals) < 1
    found = cross_instance_accuracy(frames, boxes, captions, ClipScorer.from_pretrained(random_clip))
    assert found == pytest.approx(np.mean(diagonals))


def test_instances_without_a_caption_or_a_box_are_left_out(scorer: ClipScorer) -> None:
    scene = edited_scene(["tree", "bus", "cat"])
    boxes = scene.boxes.copy()
    boxes[2:, 1] = np.nan
    # Wrong are the tree's eight boxes, right the two of the bus that are left; the cat's eight are not asked about.
    assert cross_instance_accuracy(scene.frames, boxes, ["a cat", "a bus", None], scorer) == pytest.approx(2 / 10)
    assert cross_instance_accuracy(scene.frames, boxes, ["a cat", None, "a tree"], scorer) == 0


def test_equal_captions_are_right_with_either(scorer: ClipScorer) -> None:
    scene = edited_scene(["tree", "tree", "bus"])
    assert cross_instance_accuracy(scene.frames, scene.boxes, ["a tree", "a tree", "a bus"], scorer) == 1


def test_where_nothing_can_be_confused_there_is_no_figure(scorer: ClipScorer) -> None:
    scene = edited_scene(["tree", "bus"])
    assert math.isnan(cross_instance_accuracy(scene.frames, scene.boxes[:, :1], ["a tree"], scorer))
    assert math.isnan(cross_instance_accuracy(scene.frames, scene.boxes, ["a tree", "a tree"], scorer))
    assert math.isnan(cross_instance_accuracy(scene.frames, scene.boxes, ["a tree", None], scorer))
    nowhere = np.full_like(scene.boxes, np.nan)
    assert math.isnan(cross_instance_accuracy(scene.frames, nowhere, ["a tree", "a bus"], scorer))
