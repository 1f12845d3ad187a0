"""Inverts a clip once and edits it several times: python examples/invert_once_edit_many.py clip.mp4 out a.json b.json

The edit files name the same objects, with the same source phrases and boxes, under the same source prompt; what they
shall become differs. The inversion is kept in the output folder and used again by the next run.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch

from diffusers_groundavideo import GroundAVideoPipeline, InvertedClip, VideoGrounding
from diffusers_groundavideo.video import read_clip, write_clip


parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("clip", help="a video, a gif or a folder of frames")
parser.add_argument("output", type=Path, help="folder for inverted.safetensors and a clip for each edit")
parser.add_argument("edits", type=Path, nargs="+", help="JSON files with `source_prompt`, `target_prompt`, `objects`")
parser.add_argument("--model", default="masterful/gligen-1-4-inpainting-text-box", help="folder or Hub id")
parser.add_argument("--steps", type=int, default=50)
parser.add_argument("--seed", type=int, default=0)
args = parser.parse_args()

edits = [json.loads(path.read_text(encoding="utf-8")) for path in args.edits]
clip = read_clip(args.clip)
pipe = GroundAVideoPipeline.from_pretrained(args.model)
pipe.to("cuda" if torch.cuda.is_available() else "cpu")

args.output.mkdir(parents=True, exist_ok=True)
kept = args.output / "inverted.safetensors"
if kept.exists():
    inverted = InvertedClip.load(kept)
else:
    inverted = pipe.invert(
        video=clip.frames,
        source_prompt=edits[0]["source_prompt"],
        grounding=VideoGrounding.from_dict(edits[0]),
        num_inference_steps=args.steps,
    )
    inverted.save(kept)

for path, edit in zip(args.edits, edits):
    # An inversion that was made for something else is refused here, with what differs.
    result = pipe(
        video=clip.frames,
        inverted=inverted,
        source_prompt=edit["source_prompt"],
        prompt=edit["target_prompt"],
        grounding=VideoGrounding.from_dict(edit),
        num_inference_steps=args.steps,
        generator=torch.Generator().manual_seed(args.seed),
    )
    frames = np.stack([np.asarray(frame) for frame in result.frames[0]])
    write_clip(args.output / f"{path.stem}.mp4", frames, clip.fps)
    print(f"Wrote {args.output / path.stem}.mp4.")
