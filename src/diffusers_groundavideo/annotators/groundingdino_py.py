"""The original GroundingDINO, in the package `groundingdino-py`, for weights that exist in its format only.

The package cannot be an extra: it asks for an OpenCV beside the headless one, in the same folder. Beside the extra
`annotators`, it is installed by

    pip install addict yapf pycocotools matplotlib
    pip install --no-deps groundingdino-py==0.4.0
"""

import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .objects import ObjectDetector, corners, grounding_dino_prompt, phrase_scores


_INSTALL = "pip install addict yapf pycocotools matplotlib && pip install --no-deps groundingdino-py==0.4.0"


class _Bert(torch.nn.Module):
    """In place of the package's own, which calls what transformers 5 no longer has; same parameters, same outputs."""

    def __init__(self, bert_model: Any) -> None:
        super().__init__()
        self.config = bert_model.config
        self.embeddings = bert_model.embeddings
        self.encoder = bert_model.encoder
        self.pooler = bert_model.pooler

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        token_type_ids: torch.Tensor,
        position_ids: torch.Tensor,
    ) -> dict[str, torch.Tensor]:
        """Token ids (B, T) with a mask (B, T, T) of what attends to what, to `last_hidden_state` (B, T, D)."""
        hidden = self.embeddings(input_ids=input_ids, token_type_ids=token_type_ids, position_ids=position_ids)
        allowed = attention_mask[:, None].to(hidden.dtype)
        additive = (1 - allowed) * torch.finfo(hidden.dtype).min
        return {"last_hidden_state": self.encoder(hidden, attention_mask=additive).last_hidden_state}


class GroundingDinoPyDetector(ObjectDetector):
    """The original GroundingDINO behind the call of [`ObjectDetector`].

    With the same weights it finds what transformers' port does: the same boxes and scores but for rounding (in float32
    2e-6 of the largest logit), from the same pixels and prompt. The two part in this:

    - From layer to layer a box goes through the inverse of the sigmoid, of which the package cuts off the coordinates
      (centre, width and height, in units of the frame) below 0.001 and above 0.999, transformers those below 0.00001
      and above 0.99999. It shows in boxes that begin at the border or are thinner than a thousandth of the frame.
    - Frames are brought to size by transformers' processor, at its standard size (800 pixels for the shorter side, at
      most 1333 for the longer one), and not by the package's transforms. Those cut the longer side a few pixels
      shorter where 1333 is the limit; elsewhere they give the same pixels, to one grey level of 255.

    Args:
        folder: Has one `.pth` file of weights and the one `.py` file of settings that belongs to it (the package has
            them under `groundingdino/config`), which is run; and, where the Hub cannot be reached, BERT in
            transformers' layout in the folder `bert-base-uncased`.
        device: Where it runs, in float32.

    Raises:
        `ValueError`: If there is not one file of each, or the weights are not those of the model in the settings.
        `ImportError`: If the package is not installed; the message says how.
    """

    default_threshold = 0.25

    def __init__(self, folder: str | Path, device: str | torch.device = "cpu") -> None:
        from transformers import GroundingDinoImageProcessor

        self._device = torch.device(device)
        self._model = _load(Path(folder), self._device)
        self._image_processor = GroundingDinoImageProcessor()

    def _check_lengths(self, phrases: Sequence[str]) -> None:
        text, _ = grounding_dino_prompt(phrases)
        num_tokens = len(self._model.tokenizer(text)["input_ids"])
        if num_tokens > self._model.max_text_len:
            raise ValueError(
                f"`phrases`: together they have {num_tokens} tokens, and the model reads {self._model.max_text_len}."
            )

    @torch.no_grad()
    def _detect(self, frames: np.ndarray, phrases: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
        text, spans = grounding_dino_prompt(phrases)
        offsets = self._model.tokenizer(text, return_offsets_mapping=True)["offset_mapping"]
        images = self._image_processor(list(frames), input_data_format="channels_last", return_tensors="pt")
        outputs = self._model(images["pixel_values"].to(self._device), captions=[text] * len(frames))
        return phrase_scores(outputs["pred_logits"], offsets, spans), corners(outputs["pred_boxes"].float().cpu())


def _load(folder: Path, device: torch.device) -> Any:
    files = [sorted(folder.glob(pattern)) for pattern in ("*.pth", "*.py")]
    if [len(found) for found in files] != [1, 1]:
        raise ValueError(
            f"`name_or_path` has to be a folder with one .pth and one .py file, but {str(folder)!r} has "
            f"{[file.name for found in files for file in found]}."
        )
    (weights,), (settings,) = files
    try:
        from groundingdino.models import build_model
        from groundingdino.models.GroundingDINO import groundingdino
        from groundingdino.util.misc import clean_state_dict
        from groundingdino.util.slconfig import SLConfig
    except ImportError as error:
        raise ImportError(f"The original GroundingDINO needs the module {error.name!r}: {_INSTALL}") from error
    groundingdino.BertModelWarper = _Bert
    arguments = SLConfig.fromfile(str(settings))
    arguments.device = str(device)
    if (folder / "bert-base-uncased").is_dir():
        arguments.text_encoder_type = str(folder / "bert-base-uncased")
    # It saves memory in training; without gradients it only warns.
    arguments.use_checkpoint = arguments.use_transformer_ckpt = False
    model = build_model(arguments)
    try:
        state = clean_state_dict(torch.load(weights, map_location="cpu", weights_only=True)["model"])
        # The published files have entries more, such as BERT's position ids.
        missing, _ = model.load_state_dict(state, strict=False)
    except (KeyError, RuntimeError, pickle.UnpicklingError) as error:
        raise ValueError(
            f"`name_or_path`: {weights} does not hold the weights of the model in {settings}: {error}"
        ) from error
    if missing:
        raise ValueError(f"`name_or_path`: {weights} lacks {len(missing)} entries of the model, {missing[0]} first.")
    return model.eval().to(device)
