"""Detectors: real classes at small size. What is found agrees with what transformers itself makes of the outputs."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModelForZeroShotObjectDetection, AutoProcessor

from annotators.small_models import DETECTORS
from diffusers_groundavideo.annotators import ObjectDetector
from diffusers_groundavideo.annotators.tracking import box_iou
from small_checkpoint import save_checkpoint


PHRASES = ["rabbit", "red apple", "green apple", "sky"]
SavedModel = Callable[[str], Path]


@pytest.fixture(scope="module", params=DETECTORS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def detector(saved_model: SavedModel, kind: str) -> ObjectDetector:
    return ObjectDetector.from_pretrained(saved_model(kind))


def test_every_frame_has_boxes_of_every_phrase(detector: ObjectDetector, real_frames: np.ndarray) -> None:
    detections = detector(real_frames, PHRASES, threshold=0.0)
    assert len(detections) == len(real_frames)
    for frame in detections:
        assert list(frame) == PHRASES
        for found in frame.values():
            assert found
            scores = [one.score for one in found]
            assert scores == sorted(scores, reverse=True)
            assert all(0 <= score <= 1 for score in scores)
            boxes = np.array([one.box for one in found])
            assert (boxes >= 0).all() and (boxes <= 1).all()
            assert (boxes[:, 2:] > boxes[:, :2]).all()
            overlap = box_iou(boxes[:, None], boxes) - np.eye(len(boxes))
            assert overlap.max() <= 0.5 + 1e-6


def test_batches_find_what_single_frames_do(detector: ObjectDetector, real_frames: np.ndarray) -> None:
    together = detector(real_frames, PHRASES, threshold=0.0, batch_size=3)
    assert together == detector(list(map(Image.fromarray, real_frames)), PHRASES, threshold=0.0, batch_size=3)
    for index in range(len(real_frames)):
        (alone,) = detector(real_frames[index : index + 1], PHRASES, threshold=0.0, batch_size=1)
        for phrase in PHRASES:
            first, second = (
                np.array([(*one.box, one.score) for one in frame[phrase]]) for frame in (together[index], alone)
            )
            np.testing.assert_allclose(first, second, rtol=0, atol=1e-5)


def test_frames_may_be_a_view_of_another_array(detector: ObjectDetector, real_frames: np.ndarray) -> None:
    """As OpenCV's BGR is turned to RGB."""
    view = real_frames[:1, ..., ::-1]
    assert detector(view, ["rabbit"], threshold=0.0) == detector(view.copy(), ["rabbit"], threshold=0.0)


def test_the_threshold_leaves_out_what_is_below(detector: ObjectDetector, real_frames: np.ndarray) -> None:
    everything = detector(real_frames, PHRASES, threshold=0.0)
    middle = float(np.median([one.score for frame in everything for found in frame.values() for one in found]))
    for frame, whole in zip(detector(real_frames, PHRASES, threshold=middle), everything):
        for phrase in PHRASES:
            assert frame[phrase] == [one for one in whole[phrase] if one.score >= middle]
    assert all(not found for frame in detector(real_frames, PHRASES, threshold=1.01) for found in frame.values())
    default = detector(real_frames, PHRASES)
    assert default == detector(real_frames, PHRASES, threshold=detector.default_threshold)


def test_the_picture_and_the_words_decide(detector: ObjectDetector, real_frames: np.ndarray) -> None:
    (frame,) = detector(real_frames[:1], ["rabbit", "sky"], threshold=0.0)
    (flipped,) = detector(real_frames[:1, ::-1].copy(), ["rabbit", "sky"], threshold=0.0)
    assert frame["rabbit"] != flipped["rabbit"]
    assert [one.score for one in frame["rabbit"]] != [one.score for one in frame["sky"]]


def official(folder: Path, frames: np.ndarray, **arguments: Any) -> Any:
    """Outputs of transformers' model and processor, used as their documentation does."""
    processor = AutoProcessor.from_pretrained(folder)
    inputs = processor(images=[Image.fromarray(frame) for frame in frames], return_tensors="pt", **arguments)
    with torch.no_grad():
        return processor, AutoModelForZeroShotObjectDetection.from_pretrained(folder).eval()(**inputs)


@pytest.mark.parametrize("kind", ["grounding-dino", "mm-grounding-dino"], scope="module")
def test_a_phrase_scores_the_best_of_its_own_tokens(
    saved_model: SavedModel, detector: ObjectDetector, real_frames: np.ndarray, kind: str
) -> None:
    processor, outputs = official(
        saved_model(kind), real_frames, text=["rabbit. red apple. green apple. sky."] * len(real_frames)
    )
    # [CLS] rabbit . red apple . g ##r ##e ##e ##n apple . s ##k ##y . [SEP]
    columns = {"rabbit": [1], "red apple": [3, 4], "green apple": [6, 7, 8, 9, 10, 11], "sky": [13, 14, 15]}
    scores = outputs.logits.sigmoid()
    # Taken together, the tokens of all phrases are what the processor ranks boxes by.
    whole = processor.post_process_grounded_object_detection(
        outputs, threshold=0.0, text_threshold=0.0, target_sizes=[(1, 1)] * len(real_frames)
    )
    for index, frame in enumerate(detector(real_frames, PHRASES, threshold=0.0)):
        for phrase, found in frame.items():
            expected = scores[index][:, columns[phrase]].amax(dim=-1)
            best = whole[index]["boxes"][expected.argmax()].clamp(0, 1)
            assert found[0].score == pytest.approx(float(expected.max()), abs=1e-5)
            np.testing.assert_allclose(found[0].box, best, atol=1e-5)


@pytest.mark.parametrize("kind", ["owlv2", "owlvit"], scope="module")
@pytest.mark.parametrize("size", [(300, 512), (300, 200)])
def test_owl_boxes_are_where_its_processor_puts_them(
    saved_model: SavedModel, detector: ObjectDetector, real_frames: np.ndarray, kind: str, size: tuple[int, int]
) -> None:
    """OWLv2 looks at a square, OWL-ViT at a frame that is squeezed to one."""
    height, width = size
    frames = np.ascontiguousarray(real_frames[:, :height, :width])
    processor, outputs = official(saved_model(kind), frames, text=[["rabbit"]] * len(frames))
    results = processor.post_process_grounded_object_detection(
        outputs, threshold=0.0, target_sizes=[size] * len(frames)
    )
    for frame, result in zip(detector(frames, ["rabbit"], threshold=0.0), results):
        boxes = (result["boxes"] / torch.tensor([width, height, width, height])).clamp(0, 1)
        inside = (boxes[:, 2:] > boxes[:, :2]).all(dim=1)
        best = result["scores"][inside].argmax()
        assert frame["rabbit"][0].score == pytest.approx(float(result["scores"][inside][best]), abs=1e-5)
        np.testing.assert_allclose(frame["rabbit"][0].box, boxes[inside][best], atol=1e-5)


@pytest.mark.parametrize(
    ("phrases", "said"),
    [
        ([], "at least one"),
        ("rabbit", "list of strings"),
        (["rabbit", " "], "no empty phrase"),
        (["rabbit", "sky", "Rabbit "], "'rabbit' twice"),
        (["rabbit", None], "list of strings"),
        (["a very long phrase that no model reads to its end " * 3], "tokens, and the model reads"),
    ],
)
def test_phrases_that_cannot_be_looked_for_are_refused(
    detector: ObjectDetector, real_frames: np.ndarray, phrases: Any, said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        detector(real_frames, phrases)


@pytest.mark.parametrize("kind", ["grounding-dino"], scope="module")
def test_all_phrases_together_have_to_fit_into_a_prompt(detector: ObjectDetector, real_frames: np.ndarray) -> None:
    phrases = ["apple " * number for number in range(1, 9)]
    assert detector(real_frames[:1], phrases)
    with pytest.raises(ValueError, match="together they have 5. tokens, and the model reads 48"):
        detector(real_frames, [*phrases, "red " * 5])
    with pytest.raises(ValueError, match="St. Bernard"):
        detector(real_frames, ["St. Bernard"])


@pytest.mark.parametrize("frames", [np.zeros((1, 64, 64, 4), np.uint8), np.zeros((1, 1, 1, 3), np.uint8)])
def test_frames_of_another_form_are_refused(detector: ObjectDetector, frames: np.ndarray) -> None:
    with pytest.raises(ValueError, match="`frames`"):
        detector(frames, PHRASES)


def test_a_model_of_another_kind_is_refused(saved_model: SavedModel, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'dpt'.*grounding-dino, mm-grounding-dino, owlv2, owlvit"):
        ObjectDetector.from_pretrained(saved_model("dpt"))
    with pytest.raises(ValueError, match="no object detector can be loaded"):
        ObjectDetector.from_pretrained(save_checkpoint(tmp_path / "pipeline"))
    with pytest.raises(ValueError, match="nowhere"):
        ObjectDetector.from_pretrained(tmp_path / "nowhere")
