"""Edits a clip of a rabbit and a watermelon on the grass, on the CPU, without any download: `make demo`.

The model is of the real classes at small size with random weights: what comes out in the opened places is noise. What
the demo shows is the whole path, from a clip to an edited clip, and that nothing else in the clip moves.
"""

import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from diffusers_groundavideo import GroundAVideoPipeline, VideoGrounding
from diffusers_groundavideo.spriteworld import grounding_dict, random_scene, render
from diffusers_groundavideo.video import draw_boxes, side_by_side, write_clip
from small_checkpoint import save_checkpoint


OUTPUTS = Path("outputs")
STEPS = 10


def main() -> None:
    scene = random_scene(seed=7, size=128, num_objects=2, motion="linear", background="grass")
    scene = scene.with_targets(["rabbit", "watermelon"])
    perfect = scene.with_targets(["squirrel", "orange"])
    clip, edit = render(scene), grounding_dict(scene, perfect)
    grounding = VideoGrounding.from_dict(edit)

    seconds: dict[str, float] = {}
    started = time.perf_counter()

    def lap(stage: str) -> None:
        seconds[stage] = time.perf_counter() - started - sum(seconds.values())

    with tempfile.TemporaryDirectory() as folder:
        pipe = GroundAVideoPipeline.from_pretrained(save_checkpoint(folder))
    lap("load")
    inverted = pipe.invert(
        video=clip.frames, source_prompt=edit["source_prompt"], grounding=grounding, num_inference_steps=STEPS
    )
    lap("invert")
    result = pipe(
        video=clip.frames,
        inverted=inverted,
        prompt=edit["target_prompt"],
        grounding=grounding,
        conditioning_frames=np.repeat(clip.depth[..., None], 3, axis=-1),
        flow=clip.forward_flow,
        backward_flow=clip.backward_flow,
        num_inference_steps=STEPS,
        generator=torch.Generator().manual_seed(0),
        output_type="np",
    )
    lap("edit")

    edited = (result.frames[0] * 255).round().astype(np.uint8)
    changed = (edited != clip.frames).any(axis=-1)
    num_frames, height, width = changed.shape
    kept = grounding.edit_mask(num_frames, height // 8, width // 8)[:, 0].bool().numpy()
    changed_outside = (changed & kept.repeat(8, axis=1).repeat(8, axis=2)).sum()
    with_boxes = draw_boxes(clip.frames, clip.boxes, [str(phrase) for phrase in grounding.phrases("target")])
    comparison = side_by_side(
        [clip.frames, with_boxes, edited, render(perfect).frames], ["source", "boxes", "edited", "perfect"], scale=2
    )
    OUTPUTS.mkdir(exist_ok=True)
    for suffix in (".gif", ".mp4"):
        write_clip(OUTPUTS / f"demo{suffix}", comparison, fps=8)

    table = Table("what", "value", title=f"{edit['source_prompt']} → {edit['target_prompt']}")
    for grounded in grounding.objects:
        table.add_row(f"{grounded.source_phrase} → {grounded.target_phrase}", grounded.role)
    table.add_row("opened to the edit", f"{result.opened_share[0]:.1%} of the latent cells")
    table.add_row(
        "changed", f"{changed.mean():.1%} of the pixels, {changed_outside} of them outside the opened places"
    )
    for stage, taken in seconds.items():
        table.add_row(stage, f"{taken:.1f} s")
    table.add_row("written", f"{OUTPUTS / 'demo.gif'}, {OUTPUTS / 'demo.mp4'}")
    Console().print(table)
    Console().print("Random weights: see the README for the real ones.", style="yellow")


if __name__ == "__main__":
    main()
