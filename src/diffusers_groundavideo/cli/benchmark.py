"""The command `groundavideo benchmark`."""

import os
from pathlib import Path
from typing import Annotated

import typer

from .running import console


def _list_methods(wanted: bool) -> None:
    from ..evaluation.methods import METHOD_SETS, METHODS
    from ..evaluation.suite import KINDS

    if not wanted:
        return
    console.print(f"Kinds of clips: {', '.join(KINDS)}\n")
    for name, members in METHOD_SETS.items():
        console.print(f"Set {name}: {', '.join(members)}\n")
    for method in METHODS.values():
        console.print(f"{method.name}: {method.description}")
    raise typer.Exit


def benchmark(
    output: Annotated[
        Path,
        typer.Option("--output", "-o", metavar="FOLDER", help="Records and report; goes on with what is there."),
    ],
    clips: Annotated[int, typer.Option(help="Of each length, balanced over the kinds.")] = 6,
    seed: Annotated[int, typer.Option(help="Of the clips.")] = 0,
    methods: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="A method or a set of them (see --list); may be repeated. [default]"),
    ] = None,
    only: Annotated[
        list[str] | None, typer.Option(metavar="KIND", help="Take only clips of this kind; may be repeated.")
    ] = None,
    frames: Annotated[list[int] | None, typer.Option(help="Of a clip; may be repeated. [8]")] = None,
    checkpoint: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="In diffusers' layout; by default the one that is shipped.")
    ] = None,
    steps: Annotated[
        int | None, typer.Option(help="Of inversion and denoising; by default those of the shipped checkpoint.")
    ] = None,
    guidance_scale: Annotated[float | None, typer.Option(help="By default that of the shipped checkpoint.")] = None,
    workers: Annotated[
        int | None, typer.Option(help="Processes of one thread each; by default one for each core.")
    ] = None,
    list_methods: Annotated[
        bool,
        typer.Option(
            "--list", callback=_list_methods, is_eager=True, help="Show kinds of clips and methods, and stop."
        ),
    ] = False,
) -> None:
    """Edits sprite clips, whose perfect edit is known, with several methods, and reports how they compare.

    A run that was killed goes on where it stopped when it is called again.
    """
    from ..evaluation.benchmark import run_benchmark
    from ..evaluation.methods import select_methods
    from ..evaluation.report import load_records, method_table, write_report
    from ..spriteworld import MINI_SETTINGS, mini_checkpoint

    run_benchmark(
        output,
        checkpoint or mini_checkpoint(),
        select_methods(methods or ["default"]),
        seed=seed,
        num_clips=clips,
        kinds=only,
        num_frames=frames or [8],
        steps=MINI_SETTINGS["num_inference_steps"] if steps is None else steps,
        guidance_scale=MINI_SETTINGS["guidance_scale"] if guidance_scale is None else guidance_scale,
        workers=workers or os.cpu_count() or 1,
        on_clip=lambda name, done, total: console.print(f"{name} ({done} of {total})"),
    )
    report = write_report(output)
    console.print(method_table(load_records(output)), end="")
    console.print(f"Report: {report}")
