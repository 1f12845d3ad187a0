"""Edits a clip at full size on a GPU, held by its depth:

python examples/edit_full_size_on_gpu.py clip.mp4 edit.json depth/ edited.mp4

`depth/` holds a depth map for each frame (near is bright), normalised over the clip rather than frame by frame.
"""

import argparse
import json

import numpy as np
import torch
from diffusers import ControlNetModel
from safetensors.torch import load_file

from diffusers_groundavideo import GroundAVideoPipeline, VideoGrounding
from diffusers_groundavideo.video import read_clip, write_clip


parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("clip", help="a video, a gif or a folder of frames")
parser.add_argument("edit", help="JSON file with `source_prompt`, `target_prompt` and `objects`")
parser.add_argument("depth", help="what the ControlNet sees: as many frames as the clip has")
parser.add_argument("output", help=".mp4, .gif, or a new folder for PNG frames")
parser.add_argument("--flow", help="safetensors file with `flow` and `backward_flow`, (frames - 1, 2, height, width)")
parser.add_argument("--model", default="masterful/gligen-1-4-inpainting-text-box", help="folder or Hub id")
parser.add_argument("--variant", default="fp16", help='of the files of the model; "" for none')
parser.add_argument("--controlnet", default="lllyasviel/control_v11f1p_sd15_depth", help="folder or Hub id")
parser.add_argument("--device", default="cuda")
parser.add_argument("--dtype", default="float16", choices=["float16", "bfloat16", "float32"])
parser.add_argument("--height", type=int, default=512, help="to work at; the result has the clip's own")
parser.add_argument("--width", type=int, default=512, help="to work at; the result has the clip's own")
parser.add_argument("--steps", type=int, default=50)
parser.add_argument("--seed", type=int, default=0)
args = parser.parse_args()

with open(args.edit, encoding="utf-8") as file:
    edit = json.load(file)
clip, depth = read_clip(args.clip), read_clip(args.depth)
flows = load_file(args.flow) if args.flow else {}

dtype = getattr(torch, args.dtype)
controlnet = ControlNetModel.from_pretrained(args.controlnet, dtype=dtype)
pipe = GroundAVideoPipeline.from_pretrained(
    args.model, controlnet=controlnet, variant=args.variant or None, dtype=dtype
).to(args.device)

result = pipe(
    video=clip.frames,
    source_prompt=edit["source_prompt"],
    prompt=edit["target_prompt"],
    grounding=VideoGrounding.from_dict(edit),
    conditioning_frames=depth.frames,
    height=args.height,
    width=args.width,
    restore_size=True,
    num_inference_steps=args.steps,
    # Frames that pass the VAE and the inversion together: less needs less memory.
    frame_batch_size=4,
    generator=torch.Generator().manual_seed(args.seed),
    **flows,
)
write_clip(args.output, np.stack([np.asarray(frame) for frame in result.frames[0]]), clip.fps)
print(f"{result.opened_share[0]:.1%} of the clip was open to the edit; wrote {args.output}.")
