"""The commands `groundavideo preset …`."""

import json
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from ..video import read_clip
from .running import (
    ClipPath,
    Device,
    Dtype,
    FrameBatchSize,
    MaxFrames,
    Run,
    check_outputs,
    choose_device,
    frames_hash,
    one_or_all,
    read_depth,
    read_edit_file,
    read_flow,
    record_path_of,
    write_result,
)


app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="A whole edit as a small file, without the pixels: made, checked, shared and run.",
)

PresetName = Annotated[
    str, typer.Argument(metavar="PRESET", help="A folder, a .json or .yaml file, or a Hub id namespace/name.")
]
Depth = Annotated[
    list[Path] | None, typer.Option(metavar="CLIP", help="What the ControlNet sees, a clip too; once for each.")
]
Flow = Annotated[Path | None, typer.Option(metavar="FILE", help="`flow` and optionally `backward_flow`, safetensors.")]
FromRevision = Annotated[
    str | None, typer.Option(metavar="REVISION", help="Commit, branch or tag of a PRESET on the Hub.")
]


@app.command("new")
def new_preset(
    clip: ClipPath,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FOLDER", help="Where preset and card go.")],
    edit: Annotated[Path, typer.Option(metavar="FILE", help="Objects, `source_prompt` and `target_prompt`.")],
    model: Annotated[str | None, typer.Option(metavar="ID[@REVISION]", help="A GLIGEN checkpoint on the Hub.")] = None,
    variant: Annotated[str | None, typer.Option(help='Of the files of the model, such as "fp16".')] = None,
    controlnet: Annotated[
        list[str] | None, typer.Option(metavar="ID[@REVISION]", help="A ControlNet on the Hub; may be repeated.")
    ] = None,
    depth: Depth = None,
    flow: Flow = None,
    seed: Annotated[int, typer.Option(help="Of the random numbers.")] = 0,
    setting: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="NAME=VALUE",
            help="An argument of the pipeline: num_inference_steps=20; may be repeated.",
        ),
    ] = None,
    title: Annotated[str | None, typer.Option(help="For people.")] = None,
    author: Annotated[str | None, typer.Option(help="For people.")] = None,
    license: Annotated[str | None, typer.Option(metavar="SPDX", help="Of the preset: CC0-1.0, MIT, …")] = None,
    tag: Annotated[list[str] | None, typer.Option(help="For the Hub; may be repeated.")] = None,
    max_frames: MaxFrames = None,
) -> None:
    """Writes the preset of an edit of CLIP, without running it."""
    from ..presets import EditPreset

    source = read_clip(clip, max_frames=max_frames)
    objects = read_edit_file(edit)
    fields = {
        "source_prompt": objects.source_prompt,
        "prompt": objects.target_prompt,
        "model": _hub_model(model, variant) if model else None,
        "controlnets": [_hub_model(one, None) for one in controlnet or []],
        "seed": seed,
        "title": title,
        "author": author,
        "license": license,
        "tags": tag or [],
        **dict(map(_setting, setting or [])),
    }
    conditioning_clips = [read_depth(path, source, max_frames) for path in depth or []]
    preset = EditPreset.from_call(
        source.frames,
        objects.grounding,
        source.fps,
        one_or_all(conditioning_clips),
        **read_flow(flow, source, max_frames),
        **fields,
    )
    preset.save_pretrained(output)
    typer.echo(f"Wrote {output}.")


@app.command("show")
def show_preset(preset: PresetName, revision: FromRevision = None) -> None:
    """Says in words what PRESET does, and to what."""
    from ..presets import EditPreset

    loaded = EditPreset.from_pretrained(preset, revision)
    elsewhere = {"grounding", "clip", "model", "controlnets"}
    for name, value in loaded.model_dump(mode="json", exclude=elsewhere, exclude_defaults=True).items():
        typer.echo(f"{name}: {value if isinstance(value, str) else json.dumps(value)}")
    for grounded in loaded.video_grounding().objects:
        phrases = dict.fromkeys(filter(None, (grounded.source_phrase, grounded.target_phrase)))
        typer.echo(f"  {grounded.role:8} {' -> '.join(phrases)}")
    typer.echo(f"clip: {loaded.clip.size} at {loaded.clip.fps:g} frames a second, SHA-256 {loaded.clip.sha256}")
    typer.echo(f"conditioning clips: {len(loaded.clip.conditioning_sha256)}, flows: {len(loaded.clip.flow_sha256)}")
    for hub_model in filter(None, (loaded.model, *loaded.controlnets)):
        typer.echo(f"weights: {hub_model.id} at {hub_model.revision or 'main'}")


@app.command("validate")
def validate_presets(
    presets: Annotated[list[str], typer.Argument(metavar="PRESET...", help="Folders, files or Hub ids.")],
) -> None:
    """Says of each PRESET whether it is one, and what is wrong if not."""
    from ..presets import EditPreset

    refused = 0
    for name in presets:
        try:
            EditPreset.from_pretrained(name)
            typer.echo(f"{name}: valid")
        except ValueError as error:
            refused += 1
            typer.echo(f"{name}: {error}", err=True)
    if refused:
        raise typer.Exit(2)


@app.command("push")
def push_preset(
    preset: Annotated[Path, typer.Argument(metavar="PRESET", help="A folder, or a .json or .yaml file.")],
    repo_id: Annotated[str, typer.Argument(metavar="REPO_ID", help="Where on the Hub: namespace/name.")],
    preview: Annotated[
        Path | None, typer.Option(metavar="GIF", help="The clip before and after; by default preview.gif in PRESET.")
    ] = None,
    private: Annotated[bool | None, typer.Option("--private/--public", help="Of a new repo.")] = None,
    revision: Annotated[str | None, typer.Option(metavar="BRANCH", help="A branch other than main.")] = None,
    create_pr: Annotated[bool, typer.Option("--create-pr", help="Open a pull request instead of committing.")] = False,
    commit_message: Annotated[str, typer.Option(help="The title of the commit.")] = "Upload edit preset",
) -> None:
    """Brings PRESET to the Hub, with a card."""
    from ..presets import PREVIEW_FILE, EditPreset

    if not preset.exists():
        raise ValueError(f"PRESET has to be a folder or a file, but there is nothing at {preset}.")
    if preview is None and (preset / PREVIEW_FILE).is_file():
        preview = preset / PREVIEW_FILE
    commit = EditPreset.from_pretrained(preset).push_to_hub(
        repo_id,
        preview=preview,
        private=private,
        revision=revision,
        create_pr=create_pr,
        commit_message=commit_message,
    )
    typer.echo(f"Pushed it: {commit.pr_url or commit.commit_url}")


@app.command("pull")
def pull_preset(
    repo_id: Annotated[str, typer.Argument(metavar="REPO_ID", help="Where on the Hub: namespace/name.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FOLDER", help="Where preset and card go.")],
    revision: FromRevision = None,
) -> None:
    """Fetches a preset from the Hub into a folder."""
    from ..presets import EditPreset

    EditPreset.from_pretrained(repo_id, revision).save_pretrained(output)
    typer.echo(f"Wrote {output}.")


@app.command("run")
def run_preset(
    ctx: typer.Context,
    preset: PresetName,
    clip: ClipPath,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="PATH", help="The result: .mp4, .gif, or a new folder of PNGs.")
    ],
    revision: FromRevision = None,
    model: Annotated[
        str | None, typer.Option(metavar="MODEL", help="A folder or Hub id in place of the preset's.")
    ] = None,
    controlnet: Annotated[
        list[str] | None, typer.Option(metavar="MODEL", help="In place of the preset's; may be repeated.")
    ] = None,
    depth: Depth = None,
    flow: Flow = None,
    check_clip: Annotated[
        bool, typer.Option(help="Insist on the clip of the preset, or take another of its length and size.")
    ] = True,
    compare: Annotated[
        Path | None, typer.Option("--side-by-side", metavar="PATH", help="Also write the clip beside its edit.")
    ] = None,
    frame_batch_size: FrameBatchSize = None,
    device: Device = None,
    dtype: Dtype = None,
) -> None:
    """Edits CLIP as PRESET says; frames after the number that the preset has are left out."""
    from ..presets import EditPreset

    check_outputs(clip, output, compare)
    loaded = EditPreset.from_pretrained(preset, revision)
    num_frames = loaded.clip.num_frames
    source = read_clip(clip, max_frames=num_frames)
    conditioning_clips = [read_depth(path, source, num_frames) for path in depth or []]
    arguments = loaded.call_arguments(
        source.frames, one_or_all(conditioning_clips), **read_flow(flow, source, num_frames), check_clip=check_clip
    )

    import torch

    run = Run(ctx.params, choose_device(device))
    with run.stage("load"):
        torch_dtype = getattr(torch, dtype or ("float16" if run.device.type == "cuda" else "float32"))
        pipe = loaded.load_pipeline(model, controlnet, dtype=torch_dtype).to(run.device)
    with run.stage("edit"):
        clips, opened_shares = pipe(**arguments, frame_batch_size=frame_batch_size, return_dict=False)
    frames = np.stack([np.asarray(frame) for frame in clips[0]])
    with run.stage("write"):
        write_result(source, frames, output, compare)
    run.write_record(
        record_path_of(output),
        source,
        preset=json.loads(loaded.to_json()),
        opened_share=opened_shares[0],
        result_sha256=frames_hash(frames),
    )
    typer.echo(f"Wrote {output} and {record_path_of(output)}.")


def _hub_model(name: str, variant: str | None) -> dict[str, Any]:
    """ID[@REVISION] as a field of a preset."""
    repo_id, _, revision = name.partition("@")
    return {"id": repo_id, "revision": revision or None, "variant": variant}


def _setting(text: str) -> tuple[str, Any]:
    name, separator, value = text.partition("=")
    if not separator:
        raise ValueError(f"--set has to be NAME=VALUE, but is {text!r}.")
    try:
        return name, json.loads(value)
    except ValueError:
        # A word, which JSON would have in quotes.
        return name, value
