"""Writes examples/community/ground_a_video.py, the pipeline as one file; with --check, only says if it is stale."""

import sys
from pathlib import Path

from diffusers_groundavideo.bundling import bundle


TARGET = Path(__file__).parents[1] / "examples" / "community" / "ground_a_video.py"


def main() -> None:
    if sys.argv[1:] == ["--check"]:
        if TARGET.read_text(encoding="utf-8") != bundle():
            sys.exit(f"{TARGET} is not what the modules say: run `make bundle`.")
    else:
        TARGET.write_text(bundle(), encoding="utf-8")


if __name__ == "__main__":
    main()
