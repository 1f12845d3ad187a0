"""Put the trained parts together as a diffusers folder: the mini checkpoint.

Run: `python examples/train_spriteworld/assemble.py --run-dir runs --output-dir mini_checkpoint`
"""

import argparse
import json
import shutil
from pathlib import Path

import diffusers
from train_unet import build_scheduler


# Class and library of every component, as in a pipeline's model_index.json.
COMPONENTS = {
    "text_encoder": ("transformers", "CLIPTextModel"),
    "tokenizer": ("transformers", "CLIPTokenizer"),
    "unet": ("diffusers", "UNet2DConditionModel"),
    "vae": ("diffusers", "AutoencoderKL"),
    "scheduler": ("diffusers", "DDIMScheduler"),
    "controlnet": ("diffusers", "ControlNetModel"),
}


def assemble(run_dir: Path, output_dir: Path) -> None:
    """Copy the parts of `run_dir` to `output_dir` and write the scheduler and `model_index.json`.

    The pipeline class is not needed for this, so the parts can be put together before it can load them.
    """
    output_dir.mkdir(parents=True, exist_ok=True)
    index: dict[str, object] = {"_class_name": "GroundAVideoPipeline", "_diffusers_version": diffusers.__version__}
    for name, (library, class_name) in COMPONENTS.items():
        if name == "scheduler":
            build_scheduler().save_pretrained(output_dir / name)
        else:
            shutil.copytree(run_dir / name, output_dir / name, dirs_exist_ok=True)
        index[name] = [library, class_name]
    # The weights are stored in half precision but meant for single; transformers would go by the stored one.
    text_config = output_dir / "text_encoder" / "config.json"
    config = json.loads(text_config.read_text())
    config["dtype"] = "float32"
    text_config.write_text(json.dumps(config, indent=2) + "\n")
    # diffusers' configurations may name the folder they were loaded from.
    for path in output_dir.rglob("config.json"):
        config = json.loads(path.read_text())
        if config.pop("_name_or_path", None) is not None:
            path.write_text(json.dumps(config, indent=2) + "\n")
    (output_dir / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run-dir", type=Path, required=True, help="folder the training scripts wrote to")
    parser.add_argument("--output-dir", type=Path, required=True)
    args = parser.parse_args()
    assemble(args.run_dir, args.output_dir)
    size = sum(path.stat().st_size for path in args.output_dir.rglob("*") if path.is_file())
    print(f"{args.output_dir}: {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
