import json
import math
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPModel, CLIPProcessor

from diffusers_groundavideo.evaluation import ClipScorer
from evaluation.clips import noise_clip
from evaluation.sprites import edited_scene


@pytest.fixture(scope="module")
def scorer(random_clip: Path) -> ClipScorer:
    return ClipScorer.from_pretrained(random_clip, batch_size=2)


def logits_over_scale(folder: Path, images: list[Image.Image], texts: list[str]) -> np.ndarray:
    """Cosines (images, texts), by the forward of transformers' model."""
    model, processor = CLIPModel.from_pretrained(folder).eval(), CLIPProcessor.from_pretrained(folder)
    with torch.no_grad():
        outputs = model(**processor(text=texts, images=images, padding=True, return_tensors="pt"))
        return (outputs.logits_per_image / model.logit_scale.exp()).numpy()


def image_cosines(folder: Path, images: list[Image.Image]) -> np.ndarray:
    """(images, images), by the forward of transformers' model."""
    model, processor = CLIPModel.from_pretrained(folder).eval(), CLIPProcessor.from_pretrained(folder)
    with torch.no_grad():
        embeddings = model(**processor(text=["-"], images=images, return_tensors="pt")).image_embeds
    return (embeddings @ embeddings.T).numpy()


# Square as the model, larger, and so long that the processor cuts off its ends.
@pytest.mark.parametrize(("height", "width"), [(32, 32), (50, 50), (24, 80)])
def test_text_alignment_is_the_mean_cosine_of_transformers(
    scorer: ClipScorer, random_clip: Path, height: int, width: int
) -> None:
    frames = noise_clip(0, 3, height, width)
    expected = logits_over_scale(random_clip, [Image.fromarray(frame) for frame in frames], ["a squirrel"])
    assert scorer.text_alignment(frames, "a squirrel") == pytest.approx(expected.mean(), abs=1e-5)


def test_frame_consistency_is_that_of_transformers_in_both_conventions(scorer: ClipScorer, random_clip: Path) -> None:
    # Each frame has a colour of its own, so that the pairs differ.
    frames = noise_clip(0, 5) // 4 + np.array([0, 30, 60, 120, 180], dtype=np.uint8)[:, None, None, None]
    cosines = image_cosines(random_clip, [Image.fromarray(frame) for frame in frames])
    consecutive = np.mean([cosines[t, t + 1] for t in range(4)])
    every = np.mean([cosines[s, t] for s, t in combinations(range(5), 2)])
    assert abs(consecutive - every) > 1e-3
    assert scorer.frame_consistency(frames) == pytest.approx(consecutive, abs=1e-5)
    assert scorer.frame_consistency(frames, "consecutive") == pytest.approx(consecutive, abs=1e-5)
    assert scorer.frame_consistency(frames, pairs="all") == pytest.approx(every, abs=1e-5)


def test_a_single_frame_has_no_consistency(scorer: ClipScorer) -> None:
    assert math.isnan(scorer.frame_consistency(noise_clip(num_frames=1)))
    assert math.isnan(scorer.frame_consistency(noise_clip(num_frames=1), "all"))


def test_object_alignment_is_that_of_the_box_resized_to_a_square(scorer: ClipScorer, random_clip: Path) -> None:
    frames = noise_clip(0, 3, 40, 40)
    boxes = np.full((3, 3, 4), np.nan, dtype=np.float32)
    boxes[:, 0] = [0, 0, 1, 0.25]
    boxes[1, 1] = [0.5, 0.25, 0.75, 1]
    phrases = ["a squirrel", "an orange", "grass"]
    crops = [frame[0:10] for frame in frames] + [frames[1, 10:40, 20:30]]
    images = [Image.fromarray(crop).resize((32, 32), Image.Resampling.BICUBIC) for crop in crops]
    cosines = logits_over_scale(random_clip, images, phrases)
    first, second, third = scorer.object_alignment(frames, boxes, phrases)
    assert first == pytest.approx(cosines[:3, 0].mean(), abs=1e-5)
    assert second == pytest.approx(cosines[3, 1], abs=1e-5)
    assert math.isnan(third)


def test_an_object_without_a_phrase_has_no_alignment(scorer: ClipScorer) -> None:
    frames = noise_clip()
    boxes = np.full((3, 2, 4), [0, 0, 0.5, 1], dtype=np.float32)
    with_phrase, without = scorer.object_alignment(frames, boxes, ["a squirrel", None])
    assert math.isnan(without)
    assert with_phrase == pytest.approx(scorer.object_alignment(frames, boxes[:, :1], ["a squirrel"])[0], abs=1e-6)
    assert np.isnan(scorer.object_alignment(frames, np.full_like(boxes, np.nan), ["a", "b"])).all()


def test_a_prompt_longer_than_the_model_takes_is_cut_off(scorer: ClipScorer) -> None:
    frames, words = noise_clip(), "a squirrel " * 20
    assert scorer.text_alignment(frames, words) == pytest.approx(scorer.text_alignment(frames, words + "on the moon"))


def test_a_trained_clip_prefers_what_is_there(sprite_clip: Path) -> None:
    scorer = ClipScorer.from_pretrained(sprite_clip)
    scene = edited_scene(["tree", "bus"])
    right = scorer.object_alignment(scene.frames, scene.boxes, ["a tree", "a bus"])
    wrong = scorer.object_alignment(scene.frames, scene.boxes, ["a bus", "a tree"])
    assert min(right) > max(wrong) + 0.2


def test_what_is_no_clip_is_refused_before_anything_runs(tmp_path: Path, random_clip: Path) -> None:
    with pytest.raises(ValueError, match="could not be loaded as a CLIP"):
        ClipScorer.from_pretrained(tmp_path / "nowhere")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(ValueError, match="'bert', not 'clip'"):
        ClipScorer.from_pretrained(tmp_path)


def test_bad_input_is_refused(scorer: ClipScorer) -> None:
    frames = noise_clip()
    boxes = np.full((3, 2, 4), [0, 0, 0.5, 1], dtype=np.float32)
    with pytest.raises(ValueError, match="`frames` must be uint8"):
        scorer.text_alignment(frames[0], "a squirrel")
    with pytest.raises(ValueError, match="'consecutive' or 'all'"):
        scorer.frame_consistency(frames, "every")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="one object for each of 1"):
        scorer.object_alignment(frames, boxes, ["a squirrel"])
    with pytest.raises(ValueError, match="is the string"):
        scorer.object_alignment(frames, boxes, "ab")
