"""`groundavideo edit` and `groundavideo invert`."""

import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import typer

from ..video import Clip, read_clip
from .annotate import (
    DEFAULT_DETECTOR,
    CacheDir,
    ClipReader,
    Detector,
    EditWords,
    MaskModel,
    Threshold,
    ground_words,
)
from .running import (
    ClipPath,
    Device,
    Dtype,
    FrameBatchSize,
    MaxFrames,
    Run,
    check_number_of_conditions,
    check_outputs,
    choose_device,
    console,
    describe_edit,
    frames_hash,
    load_pipeline,
    one_or_all,
    read_depth,
    read_edit_file,
    read_flow,
    record_path_of,
    write_result,
)


if TYPE_CHECKING:
    from ..grounding import VideoGrounding
    from ..pipeline import GroundAVideoPipeline
    from ..presets import EditPreset


EditPath = Annotated[
    Path,
    typer.Option(
        "--edit", metavar="FILE", help="Objects with phrases and boxes, `source_prompt` and `target_prompt`."
    ),
]
Model = Annotated[
    str, typer.Option(metavar="MODEL", help="A GLIGEN checkpoint: a folder in diffusers' layout or a Hub id.")
]
SourcePrompt = Annotated[str | None, typer.Option(help="What the clip shows now, in place of the file's.")]
Height = Annotated[int | None, typer.Option(help="Height to work at, divisible by 8. By default about the clip's.")]
Width = Annotated[int | None, typer.Option(help="Width to work at, divisible by 8. By default about the clip's.")]
NumInferenceSteps = Annotated[int, typer.Option(help="Steps of inversion and denoising alike.")]
GuidanceScale = Annotated[float, typer.Option(help="Of classifier-free guidance; at most 1 turns it off.")]
InversionMethod = Annotated[
    Literal["negative-prompt", "null-text", "ddim"],
    typer.Option(metavar="METHOD", help="negative-prompt, ddim, or null-text, which takes longest."),
]
NumNullTextSteps = Annotated[int, typer.Option(help="Optimisation steps a timestep at most, with null-text.")]
Variant = Annotated[str | None, typer.Option(help='Of the files of the model, such as "fp16".')]


def edit_clip(
    ctx: typer.Context,
    clip: ClipPath,
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            metavar="PATH",
            help="The result: .mp4, .gif, or a new folder of PNG frames. Its run record is written beside it.",
        ),
    ],
    model: Model,
    edit: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Objects with phrases and boxes, and prompts; or use the words below."),
    ] = None,
    change: Annotated[
        list[str] | None, typer.Option(metavar="OLD=NEW", help="Find OLD in the clip and make it NEW; dog@left=cat.")
    ] = None,
    add: Annotated[list[str] | None, typer.Option(metavar="PHRASE", help="Something new, with a --box each.")] = None,
    box: Annotated[list[str] | None, typer.Option(metavar="X0,Y0,X1,Y1", help="Of what is added, in [0, 1].")] = None,
    keep: Annotated[list[str] | None, typer.Option(metavar="PHRASE", help="Find it and leave it as it is.")] = None,
    remove: Annotated[list[str] | None, typer.Option(metavar="PHRASE", help="Find it and take it away.")] = None,
    detector: Detector = DEFAULT_DETECTOR,
    threshold: Threshold = None,
    mask_model: MaskModel = None,
    depth_model: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="Estimates the depth for the ControlNet, without --depth."),
    ] = None,
    cache_dir: CacheDir = None,
    controlnet: Annotated[
        list[str] | None,
        typer.Option(metavar="MODEL", help="A ControlNet; may be repeated. By default that of the model."),
    ] = None,
    depth: Annotated[
        list[Path] | None,
        typer.Option(metavar="CLIP", help="What the ControlNet sees, a clip too; once for each ControlNet."),
    ] = None,
    flow: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|METHOD",
            help="A .safetensors with `flow` and optionally `backward_flow`, or dis, raft-large or raft-small.",
        ),
    ] = None,
    prompt: Annotated[
        str | None, typer.Option(help="What the clip shall show, in place of the file's `target_prompt`.")
    ] = None,
    source_prompt: SourcePrompt = None,
    negative_prompt: Annotated[str | None, typer.Option(help="With ddim inversion only.")] = None,
    height: Height = None,
    width: Width = None,
    num_inference_steps: NumInferenceSteps = 50,
    guidance_scale: GuidanceScale = 12.5,
    inversion_method: InversionMethod = "negative-prompt",
    num_null_text_steps: NumNullTextSteps = 10,
    frame_batch_size: FrameBatchSize = None,
    flow_threshold: Annotated[
        float | None, typer.Option(help="Motion above which latents are left unsmoothed, in latent cells (0.25).")
    ] = None,
    relative_flow_threshold: Annotated[
        bool, typer.Option("--relative-flow-threshold", help="The threshold is a share of the largest motion (0.2).")
    ] = False,
    open_all_boxes: Annotated[
        bool, typer.Option("--open-all-boxes", help="Open the boxes of kept objects too, as published.")
    ] = False,
    paste_back: Annotated[bool, typer.Option(help="Take pixels that were not opened from the clip itself.")] = True,
    controlnet_conditioning_scale: Annotated[
        list[float] | None, typer.Option(help="Weight of the ControlNet (1.0); once, or once for each.")
    ] = None,
    gligen_scheduled_sampling_beta: Annotated[
        float, typer.Option(help="Share of the steps in which the boxes are heeded.")
    ] = 1.0,
    inverted: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A saved inversion of this clip, in place of inverting.")
    ] = None,
    save_inverted: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Where to keep the inversion for other edits.")
    ] = None,
    side_by_side: Annotated[
        Path | None, typer.Option("--side-by-side", metavar="PATH", help="Also write the clip beside its edit.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="By default a random one, said in the run record.")] = None,
    device: Device = None,
    dtype: Dtype = None,
    variant: Variant = None,
    max_frames: MaxFrames = None,
) -> None:
    """Edits CLIP, at its own size and rate."""
    check_outputs(clip, output, side_by_side)
    if save_inverted is not None:
        _check_inversion_path(save_inverted, "--save-inverted")
        if inverted is not None:
            raise ValueError("--save-inverted and --inverted exclude each other: nothing is inverted here.")
    record_path, preset_path = record_path_of(output), output.with_name(f"{output.stem}.preset.json")
    in_words = any((change, add, box, keep, remove))
    if in_words == (edit is not None):
        raise ValueError("Say what becomes of what either by --edit or by --change, --add, --keep and --remove.")
    words = EditWords.parse(change or [], add or [], box or [], keep or [], remove or []) if in_words else None
    objects = None if edit is None else read_edit_file(edit)
    if objects is not None:
        prompt = objects.target_prompt if prompt is None else prompt
        source_prompt = objects.source_prompt if source_prompt is None else source_prompt
    if prompt is None:
        raise ValueError("There is no --prompt" + (f", and no 'target_prompt' in {edit}." if edit else "."))
    source = read_clip(clip, max_frames=max_frames)
    if objects is not None:
        objects.grounding.frame_boxes(len(source.frames))
    if depth and depth_model is not None:
        raise ValueError("--depth and --depth-model exclude each other: one of them says what the ControlNet sees.")
    conditioning_clips = [read_depth(path, source, max_frames) for path in depth or []]
    flow_file = Path(flow) if flow is not None and flow.endswith(".safetensors") else None
    flows = read_flow(flow_file, source, max_frames)

    from ..inversion import InvertedClip

    inverted_clip: Any = None if inverted is None else InvertedClip.load(inverted)
    if seed is None:
        seed = secrets.randbelow(2**32)
    run = Run(ctx.params, choose_device(device))
    reader = ClipReader(source, run, cache_dir)
    if words is not None:
        grounding = ground_words(words, reader, detector, threshold, mask_model)
    elif objects is not None:
        grounding = objects.grounding
    describe_edit(grounding, source, source_prompt, prompt)
    if depth_model is not None:
        from ..annotators.depth import depth_to_frames

        conditioning_clips = [depth_to_frames(reader.depth(depth_model))]
    if flow is not None and flow_file is None:
        estimated = reader.flow(flow)
        flows = {"flow": estimated.forward, "backward_flow": estimated.backward}
    console.print(f"Seed {seed}, on {run.device}.")

    with run.stage("load"):
        pipe = load_pipeline(model, run.device, dtype, variant, controlnet)
    check_number_of_conditions(pipe, controlnet, len(conditioning_clips))
    scales = controlnet_conditioning_scale or [1.0]
    for_inversion: dict[str, Any] = {
        "source_prompt": source_prompt,
        "num_inference_steps": num_inference_steps,
        "guidance_scale": guidance_scale,
        "inversion_method": inversion_method,
        "num_null_text_steps": num_null_text_steps,
        "frame_batch_size": frame_batch_size,
    }
    for_edit: dict[str, Any] = for_inversion | {
        "prompt": prompt,
        "negative_prompt": negative_prompt,
        "flow_threshold": flow_threshold,
        "relative_flow_threshold": relative_flow_threshold,
        "controlnet_conditioning_scale": scales if len(scales) > 1 else scales[0],
        "gligen_scheduled_sampling_beta": gligen_scheduled_sampling_beta,
    }
    preset = _preset_of(
        source,
        grounding,
        one_or_all(conditioning_clips),
        flows,
        {
            **for_edit,
            "inversion_method": inversion_method if inverted_clip is None else inverted_clip.inversion_method,
            "height": height,
            "width": width,
            "open_all_boxes": open_all_boxes,
            "paste_back": paste_back,
            "seed": seed,
        },
        model,
        variant,
        controlnet or [],
    )
    if inverted_clip is None:
        _check_before_inverting(pipe, source, grounding, flows, for_edit)
        with run.stage("invert"):
            inverted_clip = pipe.invert(source.frames, grounding, height=height, width=width, **for_inversion)
    if save_inverted is not None:
        # Kept whatever happens next: it is whole, and took longest.
        save_inverted.parent.mkdir(parents=True, exist_ok=True)
        inverted_clip.save(save_inverted)

    import torch

    with run.stage("edit"):
        clips, opened_shares = pipe(
            source.frames,
            grounding,
            inverted=inverted_clip,
            conditioning_frames=one_or_all(conditioning_clips),
            height=height,
            width=width,
            open_all_boxes=open_all_boxes,
            paste_back=paste_back,
            restore_size=True,
            generator=torch.Generator().manual_seed(seed),
            return_dict=False,
            **flows,
            **for_edit,
        )
    frames = np.stack([np.asarray(frame) for frame in clips[0]])
    console.print(f"Open to the edit: {opened_shares[0]:.1%} of the clip.")

    with run.stage("write"):
        write_result(source, frames, output, side_by_side)
    if preset is not None:
        preset_path.write_text(preset.to_json() + "\n", encoding="utf-8")
    run.write_record(record_path, source, seed=seed, opened_share=opened_shares[0], result_sha256=frames_hash(frames))
    written = [output, record_path] if preset is None else [output, preset_path, record_path]
    console.print(f"Wrote {', '.join(map(str, written))}.")


def invert_clip(
    ctx: typer.Context,
    clip: ClipPath,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE", help="For --inverted of `groundavideo edit`.")
    ],
    edit: EditPath,
    model: Model,
    source_prompt: SourcePrompt = None,
    height: Height = None,
    width: Width = None,
    num_inference_steps: NumInferenceSteps = 50,
    guidance_scale: GuidanceScale = 12.5,
    inversion_method: InversionMethod = "negative-prompt",
    num_null_text_steps: NumNullTextSteps = 10,
    frame_batch_size: FrameBatchSize = None,
    checkpoint_dir: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Keeps finished steps: a killed run goes on from the last.")
    ] = None,
    device: Device = None,
    dtype: Dtype = None,
    variant: Variant = None,
    max_frames: MaxFrames = None,
) -> None:
    """Inverts CLIP once, for any number of edits of the same objects (size, steps and model have to be the same)."""
    _check_inversion_path(output, "--output")
    source = read_clip(clip, max_frames=max_frames)
    objects = read_edit_file(edit)
    source_prompt = objects.source_prompt if source_prompt is None else source_prompt
    objects.grounding.frame_boxes(len(source.frames))

    run = Run(ctx.params, choose_device(device))
    describe_edit(objects.grounding, source, source_prompt, None)
    with run.stage("load"):
        pipe = load_pipeline(model, run.device, dtype, variant, None)
    with run.stage("invert"):
        inverted = pipe.invert(
            source.frames,
            objects.grounding,
            source_prompt=source_prompt,
            height=height,
            width=width,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            inversion_method=inversion_method,
            num_null_text_steps=num_null_text_steps,
            frame_batch_size=frame_batch_size,
            checkpoint_dir=None if checkpoint_dir is None else str(checkpoint_dir),
        )
    assert not isinstance(inverted, list)
    with run.stage("write"):
        output.parent.mkdir(parents=True, exist_ok=True)
        inverted.save(output)
    run.write_record(record_path_of(output), source)
    console.print(f"Wrote {output} and {record_path_of(output)}.")


def _preset_of(
    source: Clip,
    grounding: "VideoGrounding",
    conditioning_frames: Any,
    flows: dict[str, Any],
    settings: dict[str, Any],
    model: str,
    variant: str | None,
    controlnets: list[str],
) -> "EditPreset | None":
    """The preset of the run, without models that are no Hub ids; `None`, with a message, if it exceeds the bounds."""
    from ..presets import EditPreset, HubModel

    # Decides how much memory a run takes, not what comes out.
    fields = {name: value for name, value in settings.items() if name != "frame_batch_size"}
    try:
        return EditPreset.from_call(
            source.frames,
            grounding,
            source.fps,
            conditioning_frames,
            **flows,
            **fields,
            model=HubModel.loaded(model, variant),
            controlnets=tuple(net for net in map(HubModel.loaded, controlnets) if net is not None),
            restore_size=True,
        )
    except ValueError as error:
        console.print(f"No preset is written: {error}")
        return None


def _check_before_inverting(
    pipe: "GroundAVideoPipeline",
    source: Clip,
    grounding: "VideoGrounding",
    flows: dict[str, Any],
    arguments: dict[str, Any],
) -> None:
    """Has what is wrong with the edit said before hours of inversion, not after them."""
    pipe.check_inputs(
        pixels=pipe.preprocess_video(source.frames),
        groundings=[grounding],
        size=(source.frames.shape[1], source.frames.shape[2]),
        has_flow="flow" in flows,
        has_backward_flow="backward_flow" in flows,
        **arguments,
    )


def _check_inversion_path(path: Path, option: str) -> None:
    if path.suffix != ".safetensors" or path.is_dir():
        raise ValueError(f"{option} has to be a file that ends in .safetensors, but is {path}.")
