"""Write the model card of the mini checkpoint, its `README.md`, from the logs of training and the measured figures.

Run, after `assemble.py` and `benchmarks/mini_checkpoint.py --output figures`:
`python examples/train_spriteworld/model_card.py --figures figures/figures.json --checkpoint mini_checkpoint`
"""

import argparse
import json
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData

from diffusers_groundavideo.spriteworld import BACKGROUND_NAMES, MINI_SETTINGS, SPRITE_NAMES


FINISHED = Path(__file__).resolve().parent / "finished"
# Log (`<name>_log.jsonl`) and script of each part, in the order of training.
PARTS = {
    "judge": "train_judge.py",
    "clip": "train_clip.py",
    "vae": "train_vae.py",
    "unet": "train_unet.py",
    "controlnet": "train_controlnet.py",
    "detector": "train_detector.py",
    "depth": "train_depth.py",
}

CARD = """---
{data}
---

# A miniature of Ground-A-Video, trained on sprite scenes

The whole stack of a Ground-A-Video edit at small size, of the real classes: `CLIPTextModel`, `AutoencoderKL`, a gated
`UNet2DConditionModel` with 9 input channels (GLIGEN inpainting) and a depth `ControlNetModel`; {megabytes:.1f} MB in
half precision. It edits clips of 64 x 64 pixels of scenes whose perfect edit is known, on a CPU in seconds: for a
demo, for tests that assert what an edit does, and for measuring the method. It knows nothing else.

```python
import torch
from diffusers_groundavideo import GroundAVideoPipeline
from diffusers_groundavideo.spriteworld import (
    MINI_SETTINGS, edit_arguments, mini_checkpoint, random_scene, random_targets
)

pipe = GroundAVideoPipeline.from_pretrained(mini_checkpoint())
scene = random_scene(seed=1)
edit = edit_arguments(scene, random_targets(scene, seed=2))    # clip, prompts, boxes, depth and flow
frames = pipe(**edit, **MINI_SETTINGS, generator=torch.Generator().manual_seed(0)).frames[0]
```

## Settings

`MINI_SETTINGS` is `{settings}`. Everything else is the pipeline's default. The default guidance of 12.5 is for the
full size: here it burns out the colours.

## Data

Scenes of `diffusers_groundavideo.spriteworld`, drawn and rendered by seed: one to three sprites on a textured
background, with captions and phrases in plain English. The sprites are {sprites}; the backgrounds {backgrounds}. The
UNet learns from pairs of frames before and after a perfect edit. Training draws from the seeds 0 and up, its
evaluations from 10^12 up, the figures below from yet others.

## Recipe

The scripts in `examples/train_spriteworld` with seed 0. Learning rates rest on a plateau and decay at the end;
averaged weights ship. The UNet's gates start open (1), its loss counts the opened region more, and captions and
groundings are dropped at times for guidance. An auxiliary loss names the object that each pixel's gated attention
should read, and half of the noisiest latents are made of the picture before the edit, since an edit starts from its
inversion. Wall times are those of one thread of a shared machine, results the last that the script itself logged, on
fresh scenes. The judge is no part of the checkpoint{beside}.

{recipe}

## Figures

{machine}. Intervals are 95 % bootstrap intervals of the mean over clips. The judge shares nothing with the checkpoint;
its ceiling is what it says of the perfect edit, taken through the autoencoder. Measured by

```bash
python benchmarks/mini_checkpoint.py --output figures
```

{figures}

## Licence

Apache-2.0, as the code. The scenes it was trained on show sprites rendered from Noto Color Emoji, Copyright 2013-2017
Google Inc., under the SIL Open Font License 1.1 (its text is in `spriteworld/sprites/LICENSE`).
"""


def last_record(path: Path, evaluation: bool) -> dict[str, Any]:
    """The last line of a training log that is (or is not) an evaluation."""
    records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [record for record in records if ("loss" not in record) == evaluation][-1]


def recipe_table(logs: Path) -> str:
    """One line for each part that has a log: its script, steps, minutes and last evaluation."""
    lines = ["| part | script | steps | wall time | result |", "| --- | --- | ---: | ---: | --- |"]
    for part, script in PARTS.items():
        path = logs / f"{part}_log.jsonl"
        if path.exists():
            trained, evaluated = last_record(path, evaluation=False), last_record(path, evaluation=True)
            results = [
                f"{name.replace('_', ' ')} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
                for name, value in evaluated.items()
                if name not in ("step", "seconds")
            ]
            steps, minutes = trained["step"] + 1, trained["seconds"] / 60
            lines.append(f"| {part} | `{script}` | {steps} | {minutes:.0f} min | {', '.join(results)} |")
    return "\n".join(lines)


def write_card(checkpoint: Path, logs: Path, report: dict[str, Any]) -> None:
    """Write `README.md` into the checkpoint's folder.

    Args:
        checkpoint: the diffusers folder.
        logs: folder with `<part>_log.jsonl` of the parts.
        report: what `benchmarks/mini_checkpoint.py` wrote to `figures.json`.

    Raises:
        ValueError: the figures were measured with other settings than `MINI_SETTINGS`.
    """
    if report["settings"] != MINI_SETTINGS:
        raise ValueError(
            f"The figures are of the settings {report['settings']}, but MINI_SETTINGS is {MINI_SETTINGS}."
        )
    data = ModelCardData(
        license="apache-2.0",
        library_name="diffusers",
        pipeline_tag="video-to-video",
        language="en",
        tags=["ground-a-video", "gligen", "controlnet", "video-editing", "sprites"],
    )
    size = sum(path.stat().st_size for path in checkpoint.rglob("*.safetensors"))
    annotators = [part for part in ("detector", "depth") if (logs / f"{part}_log.jsonl").exists()]
    card = CARD.format(
        data=data.to_yaml(),
        megabytes=size / 1e6,
        settings=MINI_SETTINGS,
        sprites=", ".join(SPRITE_NAMES),
        backgrounds=", ".join(BACKGROUND_NAMES),
        beside="; detector and depth model lie beside it" if annotators else "",
        recipe=recipe_table(logs),
        machine=report["machine"],
        figures=report["table"],
    )
    (checkpoint / "README.md").write_text(card, encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, required=True, help="the diffusers folder, to write README.md to")
    parser.add_argument("--logs", type=Path, default=FINISHED, help="folder with <part>_log.jsonl of the parts")
    parser.add_argument("--figures", type=Path, required=True, help="figures.json of benchmarks/mini_checkpoint.py")
    args = parser.parse_args()
    write_card(args.checkpoint, args.logs, json.loads(args.figures.read_text(encoding="utf-8")))


if __name__ == "__main__":
    main()
