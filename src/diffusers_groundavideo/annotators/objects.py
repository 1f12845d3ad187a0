"""Where things are in each frame of a clip: open-vocabulary detectors behind one call.

Boxes are `(x0, y0, x1, y1)`, normalised to [0, 1] by the width and height of the frame, origin at the top left.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..extras import import_from_extra
from ..grounding import Box
from .frames import Frames, frames_to_array


# Of two boxes of one phrase that overlap by more, the one with the lower score is the same object seen twice.
SAME_OBJECT_IOU = 0.5


@dataclass(frozen=True)
class Detection:
    """One place in one frame that a phrase fits.

    Args:
        box (4 floats): Normalised xyxy in [0, 1], not empty.
        score (`float`): How well the phrase fits, in [0, 1]; comparable only between boxes of one detector.
    """

    box: Box
    score: float


# What a detector finds in one frame: the detections of each phrase, the best first.
FrameDetections = Mapping[str, Sequence[Detection]]


class ObjectDetector(ABC):
    """Finds phrases in the frames of a clip; made by [`~ObjectDetector.from_pretrained`].

    Attributes:
        default_threshold (`float`): The score from which on boxes of this kind of detector are usually taken.

    Example:
    ```py
    >>> from diffusers_groundavideo.annotators import ObjectDetector

    >>> detector = ObjectDetector.from_pretrained("IDEA-Research/grounding-dino-base", device="cuda")
    >>> detections = detector(frames, ["rabbit", "watermelon", "table"])  # frames: (F, H, W, 3) uint8
    >>> detections[0]["rabbit"][0].box
    (0.01, 0.0, 0.67, 0.9)
    ```
    """

    default_threshold: float

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path = "IDEA-Research/grounding-dino-base",
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> "ObjectDetector":
        """Loads a detector.

        Args:
            name_or_path: A folder or a Hub id with a GroundingDINO, MM-GroundingDINO, OWL-ViT or OWLv2 of transformers
                and its processor; or a folder with a `.pth` file of the original GroundingDINO, as
                [`GroundingDinoPyDetector`] takes it.
            device, dtype: Where and in which precision it runs; the original GroundingDINO runs in float32.

        Raises:
            `ValueError`: If nothing can be loaded from there, or it is a model of another kind.
            `ImportError`: If a package that the detector needs is not installed.
        """
        if any(Path(name_or_path).glob("*.pth")):
            from .groundingdino_py import GroundingDinoPyDetector

            return GroundingDinoPyDetector(name_or_path, device)

        from transformers import AutoConfig, AutoModelForZeroShotObjectDetection, AutoProcessor

        try:
            kind = AutoConfig.from_pretrained(name_or_path).model_type
            if kind not in _DETECTORS:
                raise ValueError(f"it is of the type {kind!r}, and the known ones are {', '.join(_DETECTORS)}.")
            processor = AutoProcessor.from_pretrained(name_or_path)
            model = AutoModelForZeroShotObjectDetection.from_pretrained(name_or_path, dtype=dtype)
        except (OSError, ValueError) as error:
            raise ValueError(
                f"`name_or_path`: no object detector can be loaded from {str(name_or_path)!r}: {error}"
            ) from error
        return _DETECTORS[kind](model.eval().to(device), processor)

    def __call__(
        self, frames: Frames, phrases: Sequence[str], threshold: float | None = None, batch_size: int = 4
    ) -> list[dict[str, list[Detection]]]:
        """Finds all phrases in all frames: one forward for `batch_size` frames, whatever the number of phrases.

        A place that fits several phrases is found for each of them. Of boxes of one phrase that overlap by more than
        half (intersection over union), only the best is kept.

        Args:
            frames: (F, H, W, 3) uint8 RGB, or a list of RGB images; at least 8 pixels a side.
            phrases: What to look for, all different in more than case and spaces. Things in the background ("sky",
                "grass") are phrases like any other.
            threshold: The lowest score in [0, 1] that counts; by default `default_threshold`.
            batch_size: Frames in one forward.

        Returns:
            For each frame the detections of each phrase, those with the highest score first; an empty list where
            there is none.

        Raises:
            `ValueError`: If the frames are of another form, if there is no phrase, an empty one or the same one twice,
                or if the phrases are longer than the model reads.
        """
        array = frames_to_array(frames)
        threshold = self.default_threshold if threshold is None else threshold
        _check_phrases(phrases)
        self._check_lengths(phrases)
        found: list[dict[str, list[Detection]]] = []
        for start in range(0, len(array), batch_size):
            scores, boxes = self._detect(array[start : start + batch_size], phrases)
            for frame_scores, frame_boxes in zip(scores, boxes.clamp(0, 1)):
                found.append(
                    {
                        phrase: _best_boxes(phrase_scores, frame_boxes, threshold)
                        for phrase, phrase_scores in zip(phrases, frame_scores)
                    }
                )
        return found

    @abstractmethod
    def _check_lengths(self, phrases: Sequence[str]) -> None:
        """Raises a `ValueError` if the phrases have more tokens than the model reads, or are not what it reads."""

    @abstractmethod
    def _detect(self, frames: np.ndarray, phrases: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """Scores of P phrases for Q boxes in frames (B, H, W, 3) uint8.

        Returns:
            (B, P, Q) float32 in [0, 1], and (B, Q, 4) float32 xyxy in units of the frame, which may reach out of it;
            both on the CPU.
        """


def _check_phrases(phrases: Sequence[str]) -> None:
    if isinstance(phrases, str) or not phrases or not all(isinstance(phrase, str) for phrase in phrases):
        raise ValueError(f"`phrases` has to be a list of strings, at least one, but is {phrases!r}.")
    if not all(phrase.strip() for phrase in phrases):
        raise ValueError(f"`phrases` has to hold no empty phrase, but is {list(phrases)}.")
    seen = [" ".join(phrase.lower().split()) for phrase in phrases]
    twice = sorted({phrase for phrase in seen if seen.count(phrase) > 1})
    if twice:
        raise ValueError(f"`phrases` has to name each phrase once, but has {', '.join(map(repr, twice))} twice.")


def _best_boxes(scores: torch.Tensor, boxes: torch.Tensor, threshold: float) -> list[Detection]:
    """Detections, best first, from scores (Q) and boxes (Q, 4) clipped to the frame."""
    nms = import_from_extra("torchvision.ops", "annotators").nms
    taken = (scores >= threshold) & (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
    scores, boxes = scores[taken], boxes[taken]
    kept = nms(boxes, scores, SAME_OBJECT_IOU)
    return [
        Detection((x0, y0, x1, y1), score)
        for (x0, y0, x1, y1), score in zip(boxes[kept].tolist(), scores[kept].tolist())
    ]


def corners(boxes: torch.Tensor) -> torch.Tensor:
    """Boxes (..., 4) as (centre x, centre y, width, height), in corners xyxy."""
    centre, half = boxes[..., :2], boxes[..., 2:] / 2
    return torch.cat([centre - half, centre + half], dim=-1)


def grounding_dino_prompt(phrases: Sequence[str]) -> tuple[str, list[tuple[int, int]]]:
    """The one text that GroundingDINO reads, "rabbit. red apple.", and where each phrase starts and ends in it.

    Raises:
        `ValueError`: If a phrase has a "." or a "?", at which the model cuts phrases apart.
    """
    text, spans = "", []
    for phrase in phrases:
        if "." in phrase or "?" in phrase:
            raise ValueError(f"`phrases`: GroundingDINO splits at '.' and '?', so {phrase!r} cannot hold them.")
        words = " ".join(phrase.lower().split())
        spans.append((len(text), len(text) + len(words)))
        # The model reads only what a full stop ends, the last phrase too.
        text += f"{words}. "
    return text.rstrip(), spans


def phrase_scores(
    logits: torch.Tensor, offsets: Sequence[tuple[int, int]], spans: Sequence[tuple[int, int]]
) -> torch.Tensor:
    """The score of each phrase: the largest over its own tokens.

    Args:
        logits: (B, Q, T) of each query for each token of the text, padded to T.
        offsets: Where in the text each token starts and ends; (0, 0) for those that stand for no text.
        spans: Where in the text each of the P phrases starts and ends.

    Returns:
        (B, P, Q) float32 in [0, 1], on the CPU.
    """
    scores = logits.float().sigmoid().cpu()
    columns = [
        [column for column, (first, last) in enumerate(offsets) if start <= first < last <= end]
        for start, end in spans
    ]
    return torch.stack([scores[..., own].amax(dim=-1) for own in columns], dim=1)


class _GroundingDino(ObjectDetector):
    """GroundingDINO and MM-GroundingDINO: all phrases are one text, and each box has a score for each token of it."""

    default_threshold = 0.25

    def __init__(self, model: Any, processor: Any) -> None:
        self._model, self._processor = model, processor

    def _check_lengths(self, phrases: Sequence[str]) -> None:
        text, _ = grounding_dino_prompt(phrases)
        num_tokens = len(self._processor.tokenizer(text)["input_ids"])
        if num_tokens > self._model.config.max_text_len:
            raise ValueError(
                f"`phrases`: together they have {num_tokens} tokens, and the model reads "
                f"{self._model.config.max_text_len}. Shorten them, or detect some in another call."
            )

    @torch.no_grad()
    def _detect(self, frames: np.ndarray, phrases: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
        text, spans = grounding_dino_prompt(phrases)
        tokens = self._processor.tokenizer([text] * len(frames), return_offsets_mapping=True, return_tensors="pt")
        offsets = [(first, last) for first, last in tokens.pop("offset_mapping")[0].tolist()]
        images = self._processor.image_processor(
            list(frames), input_data_format="channels_last", return_tensors="pt"
        ).to(self._model.device, self._model.dtype)
        outputs = self._model(**images, **tokens.to(self._model.device))
        return phrase_scores(outputs.logits, offsets, spans), corners(outputs.pred_boxes.float().cpu())


class _Owl(ObjectDetector):
    """OWL-ViT and OWLv2: each phrase is a text of its own."""

    default_threshold = 0.1

    def __init__(self, model: Any, processor: Any) -> None:
        self._model, self._processor = model, processor

    def _check_lengths(self, phrases: Sequence[str]) -> None:
        limit = self._model.config.text_config.max_position_embeddings
        for phrase, tokens in zip(phrases, self._processor.tokenizer(list(phrases))["input_ids"]):
            if len(tokens) > limit:
                raise ValueError(f"`phrases`: {phrase!r} has {len(tokens)} tokens, and the model reads {limit}.")

    @torch.no_grad()
    def _detect(self, frames: np.ndarray, phrases: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
        tokens = self._processor.tokenizer(
            list(phrases) * len(frames),
            padding="max_length",
            max_length=self._model.config.text_config.max_position_embeddings,
            return_tensors="pt",
        ).to(self._model.device)
        image_processor = self._processor.image_processor
        images = image_processor(list(frames), input_data_format="channels_last", return_tensors="pt").to(
            self._model.device, self._model.dtype
        )
        outputs = self._model(
            input_ids=tokens["input_ids"],
            attention_mask=tokens["attention_mask"],
            pixel_values=images["pixel_values"],
        )
        boxes = corners(outputs.pred_boxes.float().cpu())
        if getattr(image_processor, "do_pad", False):
            # OWLv2 sees the frame at the top left of a square.
            height, width = frames.shape[1:3]
            boxes = boxes * (max(height, width) / torch.tensor([width, height, width, height]))
        return outputs.logits.float().sigmoid().cpu().transpose(1, 2), boxes


_DETECTORS: dict[str, type[Any]] = {
    "grounding-dino": _GroundingDino,
    "mm-grounding-dino": _GroundingDino,
    "owlv2": _Owl,
    "owlvit": _Owl,
}
