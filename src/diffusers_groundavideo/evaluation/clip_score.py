"""Alignment with a text, consistency of frames, and alignment object by object, in the eyes of a CLIP."""

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch

from .clip_embedding import ClipEmbedder
from .inputs import check_boxes, check_phrases


class ClipScorer(ClipEmbedder):
    """Scores of a clip by a CLIP: cosines, in [-1, 1]; papers print them times 100.

    Made by [`~ClipScorer.from_pretrained`], with the folder or Hub id of any CLIP of transformers. Scores of two CLIPs
    do not compare.

    >>> import numpy as np
    >>> scorer = ClipScorer.from_pretrained("openai/clip-vit-base-patch32")  # doctest: +SKIP
    >>> frames = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), dtype=np.uint8)
    >>> -1 <= scorer.text_alignment(frames, "a squirrel on the grass") <= 1
    True
    >>> round(scorer.frame_consistency(frames[[0, 0, 0]]), 4)
    1.0
    >>> boxes = np.full((3, 2, 4), [0.0, 0.0, 0.5, 0.5], dtype=np.float32)
    >>> boxes[:, 1] = np.nan
    >>> np.isnan(scorer.object_alignment(frames, boxes, ["a squirrel", "an orange"])).tolist()
    [False, True]
    """

    def text_alignment(self, frames: np.ndarray, prompt: str) -> float:
        """CLIP-T: `mean over t of cos(image(V[t]), text(prompt))`.

        Args:
            frames: (F, H, W, 3) uint8.
            prompt: what the clip should show.

        Raises:
            ValueError: frames of another form.

        Source: Hessel et al., "CLIPScore", EMNLP 2021 (without their factor 2.5 and clipping at 0), frame by frame as
        in Ground-A-Video, arXiv:2310.01107.
        """
        return (self.embed_frames(frames) @ self.embed_texts([prompt])[0]).mean().item()

    def frame_consistency(self, frames: np.ndarray, pairs: Literal["consecutive", "all"] = "consecutive") -> float:
        """CLIP-F: mean cosine of the images of two frames.

        `"consecutive"`: over the F - 1 pairs t, t + 1. `"all"`: over the F (F - 1) / 2 pairs of different frames,
        which sees slow drift too.

        Args:
            frames: (F, H, W, 3) uint8.
            pairs: which frames are compared.

        Returns:
            NaN for a single frame.

        Raises:
            ValueError: frames of another form, or other pairs.

        Source: "all": Wu et al., "Tune-A-Video", ICCV 2023; "consecutive": Ceylan et al., "Pix2Video", ICCV 2023.
        """
        if pairs not in ("consecutive", "all"):
            raise ValueError(f"`pairs` has to be 'consecutive' or 'all', but is {pairs!r}.")
        images = self.embed_frames(frames)
        if len(images) < 2:
            return math.nan
        cosines = images @ images.T
        if pairs == "consecutive":
            return cosines.diagonal(1).mean().item()
        first, second = torch.triu_indices(len(images), len(images), offset=1)
        return cosines[first, second].mean().item()

    def object_alignment(self, frames: np.ndarray, boxes: np.ndarray, phrases: Sequence[str | None]) -> list[float]:
        """CLIP score of each object inside its box: `mean over t of cos(image(V[t] in box), text(phrase))`.

        Args:
            frames: (F, H, W, 3) uint8.
            boxes: (F, N, 4) xyxy in [0, 1], NaN where absent.
            phrases: N phrases of what the boxes should hold; None where nothing is asked for.

        Returns:
            One figure an object; NaN for an object that is in no frame or has no phrase.

        Raises:
            ValueError: frames or boxes of another form, or not one phrase an object.

        Source: the local textual faithfulness of Teodoro et al., "MIVE", arXiv:2412.12877.
        """
        similarity, objects = self.box_similarities(frames, boxes, phrases)
        own = np.take_along_axis(similarity, objects[:, None], axis=1)[:, 0]
        return [
            float(own[objects == index].mean()) if phrase is not None and (objects == index).any() else math.nan
            for index, phrase in enumerate(phrases)
        ]

    def box_similarities(
        self, frames: np.ndarray, boxes: np.ndarray, phrases: Sequence[str | None]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Cosine of what each box holds with each phrase.

        Args:
            frames, boxes, phrases: as [`~ClipScorer.object_alignment`].

        Returns:
            (B, N) float32 of the B boxes that are there and the N phrases, NaN where a phrase is None; and the object
            of each of the boxes, (B,).
        """
        check_phrases(phrases, "phrases")
        check_boxes(boxes, len(frames), len(phrases))
        crops, _, objects = self.embed_boxes(frames, boxes)
        similarity = np.full((len(objects), len(phrases)), np.nan, dtype=np.float32)
        asked = [index for index, phrase in enumerate(phrases) if phrase is not None]
        if asked and len(objects):
            texts = self.embed_texts([phrase for phrase in phrases if phrase is not None])
            similarity[:, asked] = (crops @ texts.T).cpu().numpy()
        return similarity, objects
