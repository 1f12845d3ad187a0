"""From the boxes of tracks to masks, with a model that segments a clip from boxes in some of its frames."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .frames import Frames, frames_to_array
from .tracking import Track


class BoxToMask:
    """Segments tracked objects; made by [`~BoxToMask.from_pretrained`].

    Example:
    ```py
    >>> from diffusers_groundavideo.annotators import BoxToMask, grounding_from_tracks

    >>> segmenter = BoxToMask.from_pretrained("facebook/sam2.1-hiera-tiny", device="cuda")
    >>> grounding = grounding_from_tracks(tracks, masks=segmenter(frames, tracks))
    ```
    """

    def __init__(self, model: Any, processor: Any) -> None:
        self._model, self._processor = model, processor

    @classmethod
    def from_pretrained(
        cls, name_or_path: str | Path, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
    ) -> "BoxToMask":
        """Loads a segmenter.

        Args:
            name_or_path: A folder or a Hub id with a SAM 2 or EdgeTAM video model of transformers and its processor.
            device, dtype: Where and in which precision it runs.

        Raises:
            `ValueError`: If nothing can be loaded from there, or it is a model of another kind.
        """
        from transformers import AutoConfig, EdgeTamVideoModel, Sam2VideoModel, Sam2VideoProcessor

        models: dict[str, Any] = {"sam2_video": Sam2VideoModel, "edgetam_video": EdgeTamVideoModel}
        try:
            kind = AutoConfig.from_pretrained(name_or_path).model_type
            if kind not in models:
                raise ValueError(f"it is of the type {kind!r}, and the known ones are {', '.join(models)}.")
            processor = Sam2VideoProcessor.from_pretrained(name_or_path)
            model = models[kind].from_pretrained(name_or_path, dtype=dtype)
        except (OSError, ValueError) as error:
            raise ValueError(
                f"`name_or_path`: no segmenter can be loaded from {str(name_or_path)!r}: {error}"
            ) from error
        return cls(model.eval().to(device), processor)

    @torch.no_grad()
    def __call__(self, frames: Frames, tracks: Sequence[Track]) -> list[np.ndarray]:
        """Segments each object from its box where it comes into the clip (each time anew if it comes back).

        Args:
            frames: (F, H, W, 3) uint8 RGB, or a list of RGB images; at least 8 pixels a side.
            tracks: The objects, with a box or `None` for each of the F frames.

        Returns:
            For each track boolean masks (F, H, W), all `False` in frames in which it has no box.

        Raises:
            `ValueError`: If the frames are of another form, or a track is of another number of frames.
        """
        array = frames_to_array(frames)
        for track in tracks:
            if len(track.boxes) != len(array):
                raise ValueError(
                    f"`tracks`: {track.phrase!r} has {len(track.boxes)} boxes, but the clip has {len(array)} frames."
                )
        return [self._segment(array, track) for track in tracks]

    def _segment(self, frames: np.ndarray, track: Track) -> np.ndarray:
        height, width = frames.shape[1:3]
        masks = np.zeros(frames.shape[:3], dtype=bool)
        for start, end in _visits(track):
            # A session of its own: what the model remembers of the last visit is another place and often another size.
            session = self._processor.init_video_session(
                list(frames[start:end]), inference_device=self._model.device, dtype=self._model.dtype
            )
            x0, y0, x1, y1 = track.boxes[start]  # type: ignore[misc]
            pixels = [[[x0 * width, y0 * height, x1 * width, y1 * height]]]
            self._processor.add_inputs_to_inference_session(session, frame_idx=0, obj_ids=1, input_boxes=pixels)
            for output in self._model.propagate_in_video_iterator(session, start_frame_idx=0):
                (mask,) = self._processor.post_process_masks([output.pred_masks], original_sizes=[[height, width]])
                masks[start + output.frame_idx] = mask[0, 0].cpu().numpy()
        return masks


def _visits(track: Track) -> list[tuple[int, int]]:
    """The runs of frames, from the first to the one after the last, in which the track has boxes."""
    present = np.array([False, *(box is not None for box in track.boxes), False])
    edges = np.flatnonzero(present[1:] != present[:-1])
    return [(int(start), int(end)) for start, end in zip(edges[::2], edges[1::2])]
