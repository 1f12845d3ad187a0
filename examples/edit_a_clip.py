"""Edits a clip: python examples/edit_a_clip.py clip.mp4 edit.json edited.mp4

`edit.json` says what is in the clip, where, and what it shall become; README.md shows one. Every object may change at
once, and pixels outside their boxes stay as they are.
"""

import argparse
import json

import numpy as np
import torch

from diffusers_groundavideo import GroundAVideoPipeline, VideoGrounding
from diffusers_groundavideo.video import read_clip, write_clip


parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("clip", help="a video, a gif or a folder of frames")
parser.add_argument("edit", help="JSON file with `source_prompt`, `target_prompt` and `objects`")
parser.add_argument("output", help=".mp4, .gif, or a new folder for PNG frames")
parser.add_argument("--model", default="masterful/gligen-1-4-inpainting-text-box", help="folder or Hub id")
parser.add_argument("--steps", type=int, default=50)
parser.add_argument("--seed", type=int, default=0)
args = parser.parse_args()

with open(args.edit, encoding="utf-8") as file:
    edit = json.load(file)
clip = read_clip(args.clip)
pipe = GroundAVideoPipeline.from_pretrained(args.model)
pipe.to("cuda" if torch.cuda.is_available() else "cpu")

result = pipe(
    video=clip.frames,
    source_prompt=edit["source_prompt"],
    prompt=edit["target_prompt"],
    grounding=VideoGrounding.from_dict(edit),
    num_inference_steps=args.steps,
    generator=torch.Generator().manual_seed(args.seed),
)
write_clip(args.output, np.stack([np.asarray(frame) for frame in result.frames[0]]), clip.fps)
print(f"{result.opened_share[0]:.1%} of the clip was open to the edit; wrote {args.output}.")
