"""Pictures and texts in the common space of a CLIP."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from ..video import check_frames
from .inputs import box_region, check_boxes


if TYPE_CHECKING:
    from transformers import CLIPModel


class ClipEmbedder:
    """Embeds pictures and texts with a CLIP, all to unit length.

    Args:
        model: in evaluation mode.
        processor: its own: image processor and tokenizer.
        batch_size: pictures in one forward.
    """

    def __init__(self, model: "CLIPModel", processor: Any, batch_size: int = 16) -> None:
        self.model = model
        self.processor = processor
        self.batch_size = batch_size

    @classmethod
    def from_pretrained(
        cls, name_or_path: str | Path, device: str | torch.device = "cpu", batch_size: int = 16
    ) -> Self:
        """Loads model and processor.

        Args:
            name_or_path: a folder in the layout of transformers, or a Hub id, of any `CLIPModel`.
            device: where the model runs.
            batch_size: pictures in one forward.

        Raises:
            ValueError: it cannot be loaded, or is the checkpoint of another kind of model.
        """
        from transformers import AutoConfig, CLIPModel, CLIPProcessor

        name = str(name_or_path)
        try:
            kind = AutoConfig.from_pretrained(name).model_type
            if kind != "clip":
                raise ValueError(f"its `model_type` is {kind!r}, not 'clip'")
            model = CLIPModel.from_pretrained(name)
            processor = CLIPProcessor.from_pretrained(name)
        except (OSError, ValueError) as error:
            raise ValueError(f"`name_or_path`: {name!r} could not be loaded as a CLIP: {error}") from error
        return cls(model.float().eval().to(device), processor, batch_size)

    def embed_frames(self, frames: np.ndarray) -> torch.Tensor:
        """Frames (F, H, W, 3) uint8, as the processor resizes and crops them, to (F, D)."""
        check_frames(frames)
        return self._embed_images(Image.fromarray(frame) for frame in frames)

    def embed_boxes(self, frames: np.ndarray, boxes: np.ndarray) -> tuple[torch.Tensor, np.ndarray, np.ndarray]:
        """What the boxes hold, in the order of frames and then objects.

        The pixels that a box reaches into are resized to a square of the model's size, bicubically: the processor
        would cut off the ends of a long box.

        Args:
            frames: (F, H, W, 3) uint8.
            boxes: (F, N, 4) xyxy in [0, 1], NaN where absent.

        Returns:
            (B, D) of the B boxes that are there; the frame of each, (B,), and its object, (B,).
        """
        check_frames(frames)
        check_boxes(boxes, len(frames))
        rows, columns = np.nonzero(~np.isnan(boxes).any(axis=-1))
        crops = (self._crop(frames[row], boxes[row, column]) for row, column in zip(rows, columns))
        return self._embed_images(crops), rows, columns

    @torch.no_grad()
    def embed_texts(self, texts: Sequence[str]) -> torch.Tensor:
        """Texts to (B, D); longer ones than the model takes are cut off."""
        inputs = self.processor(text=list(texts), padding=True, truncation=True, return_tensors="pt")
        return F.normalize(self.model.get_text_features(**inputs.to(self.model.device)).pooler_output, dim=-1)

    @torch.no_grad()
    def _embed_images(self, images: Iterable[Image.Image]) -> torch.Tensor:
        embeddings = [torch.zeros(0, self.model.visual_projection.out_features, device=self.model.device)]
        for batch in _batches(images, self.batch_size):
            inputs = self.processor(images=batch, return_tensors="pt").to(self.model.device)
            embeddings.append(F.normalize(self.model.get_image_features(**inputs).pooler_output, dim=-1))
        return torch.cat(embeddings)

    def _crop(self, frame: np.ndarray, box: np.ndarray) -> Image.Image:
        rows, columns = np.nonzero(box_region(box[None, None], *frame.shape[:2])[0])
        crop = frame[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        vision: Any = self.model.config.vision_config
        side = vision.image_size
        return Image.fromarray(crop).resize((side, side), Image.Resampling.BICUBIC)


def _batches(images: Iterable[Image.Image], size: int) -> Iterator[list[Image.Image]]:
    batch: list[Image.Image] = []
    for image in images:
        batch.append(image)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch
