"""Train every part of the mini checkpoint in order, and put them together. Resumes where it was interrupted.

Run: `python examples/train_spriteworld/train_all.py --run-dir runs --output-dir mini_checkpoint`
With `--smoke` every script does a few tiny steps, in less than a minute; the result is a checkpoint that loads.
"""

import argparse
import subprocess
import sys
from pathlib import Path


SCRIPTS = (
    "train_judge.py",
    "train_clip.py",
    "train_detector.py",
    "train_depth.py",
    "train_vae.py",
    "train_unet.py",
    "train_controlnet.py",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run-dir", type=Path, required=True, help="logs, states and finished parts")
    parser.add_argument("--output-dir", type=Path, required=True, help="the checkpoint, a diffusers folder")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of torch")
    parser.add_argument("--smoke", action="store_true", help="a few tiny steps of everything")
    args = parser.parse_args()

    here = Path(__file__).resolve().parent
    options = ["--run-dir", str(args.run_dir), "--seed", str(args.seed), "--threads", str(args.threads)]
    for script in SCRIPTS:
        command = [sys.executable, str(here / script), *options, *(["--smoke"] if args.smoke else [])]
        subprocess.run(command, check=True)
    command = [sys.executable, str(here / "assemble.py"), "--run-dir", str(args.run_dir)]
    subprocess.run([*command, "--output-dir", str(args.output_dir)], check=True)


if __name__ == "__main__":
    main()
