"""Writes the tables and plots of `groundavideo benchmark` into RESULTS.md, whose text around them stays as it is.

    python benchmarks/results.py main=runs/main ablations=runs/ablations

Each NAME=FOLDER is a run. Between `<!-- NAME: TABLE -->` and `<!-- end -->` goes that table of that run, one of those
named below; its plots go to `results/NAME-PLOT.png`, those that the text shows.
"""

import argparse
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from PIL import Image

from diffusers_groundavideo.evaluation.report import (
    Record,
    describe_methods,
    describe_run,
    difference_table,
    group_difference_table,
    group_table,
    load_records,
    method_table,
    pair_table,
    seconds_table,
    write_report,
)


# What one part does on top of another; each is shown if a run has both.
PAIRS = (
    ("published-gating", "no-cross-frame-gating"),
    ("inversion-null-text", "null-text-unmodulated"),
    ("inversion-null-text", "inversion-ddim"),
    ("published-null-text", "published"),
    ("grounding-dropped-smoothed", "grounding-dropped"),
    ("grounding-jittered-smoothed", "grounding-jittered"),
    ("grounding-jittered-masks", "grounding-jittered"),
    ("grounding-jittered-weighted", "grounding-jittered"),
    ("grounding-shifted-0.15-masks", "grounding-shifted-0.15"),
    ("grounding-shifted-0.15-weighted", "grounding-shifted-0.15"),
    ("grounding-masks", "ours"),
)
TABLES: dict[str, Callable[[Sequence[Record]], str]] = {
    "run": describe_run,
    "descriptions": describe_methods,
    "methods": method_table,
    "differences": difference_table,
    "pairs": lambda records: pair_table(records, PAIRS),
    "kinds": lambda records: group_table(records, "kind"),
    "edits": lambda records: group_table(records, "num_edits"),
    "backgrounds": lambda records: group_table(records, "background"),
    "lengths": lambda records: group_table(records, "num_frames"),
    "length-differences": lambda records: group_difference_table(records, "num_frames", ("ours", "per-frame-gligen")),
    "kind-differences": lambda records: group_difference_table(records, "kind", ("ours", "published-gating")),
    "seconds": seconds_table,
}
BLOCK = re.compile(r"(<!-- (?P<run>[\w-]+): (?P<table>[\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def fill_in(text: str, runs: dict[str, Sequence[Record]]) -> str:
    """`text` with the blocks of `runs` filled in; those of other runs are left as they are."""

    def fill(block: re.Match[str]) -> str:
        if block["run"] not in runs:
            return block[0]
        if block["table"] not in TABLES:
            raise ValueError(f"There is no table called {block['table']!r}; the tables are {', '.join(TABLES)}.")
        return f"{block[1]}\n{TABLES[block['table']](runs[block['run']])}\n{block[4]}"

    return BLOCK.sub(fill, text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="NAME=FOLDER")
    parser.add_argument("--results", type=Path, default=Path(__file__).with_name("RESULTS.md"))
    arguments = parser.parse_args()
    folders = dict(run.split("=", 1) for run in arguments.runs)
    plots = arguments.results.with_name("results")
    plots.mkdir(exist_ok=True)
    text = arguments.results.read_text(encoding="utf-8")
    for name, folder in folders.items():
        write_report(folder)
        for plot in sorted(Path(folder).glob("*.png")):
            if f"(results/{name}-{plot.name})" in text:
                with Image.open(plot) as image:
                    # A third of the size, and to the eye the same.
                    image.convert("RGB").quantize(256).save(plots / f"{name}-{plot.name}", optimize=True)
    runs: dict[str, Sequence[Record]] = {name: load_records(folder) for name, folder in folders.items()}
    arguments.results.write_text(fill_in(text, runs), encoding="utf-8")


if __name__ == "__main__":
    main()
