"""A model and an edit of it, shared and reproduced: every step in a fresh process, over real HTTP."""

from pathlib import Path

from PIL import Image

from loopback_hub import LoopbackHub
from small_edit import make_frames


PUBLISH = """
import sys
from diffusers_groundavideo import GroundAVideoPipeline
from diffusers_groundavideo.publishing import push_model_repo, save_model_repo

pipe = GroundAVideoPipeline.from_pretrained(sys.argv[1])
save_model_repo(pipe, sys.argv[2], license="apache-2.0", repo_id="tester/model")
print(push_model_repo(sys.argv[2], "tester/model").oid)
"""
EDIT_AND_SHARE = """
import hashlib, sys
import numpy as np, torch
from diffusers import DiffusionPipeline
from diffusers_groundavideo import EditPreset, VideoGrounding
from diffusers_groundavideo.presets import HubModel
from small_edit import SMALL_EDIT, make_frames

torch.set_num_threads(1)
video = make_frames()
pipe = DiffusionPipeline.from_pretrained("tester/model", revision=sys.argv[1], trust_remote_code=True)
preset = EditPreset.from_call(
    video,
    VideoGrounding.from_dict(SMALL_EDIT),
    fps=8.0,
    conditioning_frames=video,
    model=HubModel(id="tester/model", revision=sys.argv[1]),
    source_prompt=SMALL_EDIT["source_prompt"],
    prompt=SMALL_EDIT["target_prompt"],
    num_inference_steps=2,
    guidance_scale=3.0,
    seed=5,
)
frames = pipe(**preset.call_arguments(video, conditioning_frames=video), output_type="np").frames
assert np.abs(frames[0] - video / 255).max() > 0.1
commit = preset.push_to_hub("tester/edit", preview=sys.argv[2])
print(commit.oid, hashlib.sha256(frames.tobytes()).hexdigest())
"""
REPRODUCE = """
import hashlib, sys
import torch
from diffusers_groundavideo import EditPreset
from small_edit import make_frames

torch.set_num_threads(1)
video = make_frames()
preset = EditPreset.from_pretrained("tester/edit", revision=sys.argv[1])
pipe = preset.load_pipeline()
frames = pipe(**preset.call_arguments(video, conditioning_frames=video), output_type="np").frames
print(hashlib.sha256(frames.tobytes()).hexdigest())
"""


def test_a_published_model_edits_and_its_shared_preset_gives_the_same_frames(
    hub: LoopbackHub, small_checkpoint: Path, tmp_path: Path
) -> None:
    def run(script: str, *arguments: str | Path, **env: str) -> list[str]:
        done = hub.python(script, *arguments, **env)
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()[-1].split()

    first, *others = (Image.fromarray(frame) for frame in make_frames())
    first.save(tmp_path / "preview.gif", save_all=True, append_images=others)

    (model,) = run(PUBLISH, small_checkpoint, tmp_path / "model")
    preset, frames = run(EDIT_AND_SHARE, model, tmp_path / "preview.gif")
    assert hub.files("tester/edit")["preview.gif"] == (tmp_path / "preview.gif").read_bytes()
    # Another machine: nothing of what was loaded before is in its cache.
    assert run(REPRODUCE, preset, HF_HOME=str(tmp_path / "elsewhere")) == [frames]
