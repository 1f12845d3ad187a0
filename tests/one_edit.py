"""One edit of one clip, made in whatever process a pipeline was loaded in, to be compared bit by bit."""

import hashlib
import inspect
from typing import Any

import numpy as np
import torch

from small_edit import SMALL_EDIT, make_frames


def edit(pipe: Any) -> str:
    """The hash of what a pipeline makes of a small clip, with a ControlNet if it has one.

    Classes are those of the module that the pipeline came in, as for a user who has nothing else.
    """
    # How many threads share a sum decides its last bits.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    pipe.set_progress_bar_config(disable=True)
    frames = make_frames()
    edited = pipe(
        video=frames,
        grounding=inspect.getmodule(pipe).VideoGrounding.from_dict(SMALL_EDIT),  # type: ignore[union-attr]
        source_prompt=SMALL_EDIT["source_prompt"],
        prompt=SMALL_EDIT["target_prompt"],
        conditioning_frames=None if pipe.controlnet is None else frames,
        flow=np.zeros((len(frames) - 1, 2, 6, 8), dtype=np.float32),
        num_inference_steps=2,
        generator=torch.Generator().manual_seed(0),
        output_type="np",
    ).frames
    torch.set_num_threads(threads)
    return hashlib.sha256(edited.tobytes()).hexdigest()
