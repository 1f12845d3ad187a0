import inspect
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from diffusers import (
    ControlNetModel,
    DDIMScheduler,
    EulerDiscreteScheduler,
    MultiControlNetModel,
    PNDMScheduler,
)
from diffusers.models.attention_processor import Attention, AttnProcessor
from diffusers.utils import convert_state_dict_to_diffusers
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from torch import nn

from diffusers_groundavideo import (
    GroundAVideoPipeline,
    GroundAVideoPipelineOutput,
    GroundedObject,
    Inflation,
    VideoGrounding,
)
from small_checkpoint import NOISE_SCHEDULE, build_components, build_controlnet


NUM_FRAMES, HEIGHT, WIDTH, STEPS = 3, 32, 48, 2
CHANGED_BOX, KEPT_BOX = (0.0, 0.25, 0.5, 0.75), (0.6, 0.0, 1.0, 1.0)


def random_frames(seed: int, height: int = HEIGHT, width: int = WIDTH, num_frames: int = NUM_FRAMES) -> np.ndarray:
    """(F, H, W, 3) uint8: smooth noise."""
    coarse = np.random.default_rng(seed).random((num_frames, 4, 6, 3), dtype=np.float32)
    images = [PIL.Image.fromarray((255 * frame).astype(np.uint8)) for frame in coarse]
    return np.stack([np.asarray(image.resize((width, height), PIL.Image.Resampling.BICUBIC)) for image in images])


def random_flow(seed: int = 0, num_frames: int = NUM_FRAMES) -> torch.Tensor:
    """(F - 1, 2, 16, 24) at 4 pixels a latent cell: some cells move by more than 0.25 of their size, some by less."""
    cells = torch.rand(num_frames - 1, 2, 4, 6, generator=torch.Generator().manual_seed(seed)) * 0.5 - 0.25
    return 4 * cells.repeat_interleave(4, dim=2).repeat_interleave(4, dim=3)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def grounding_of(target: str | None = "squirrel", box: Any = CHANGED_BOX) -> VideoGrounding:
    return VideoGrounding([GroundedObject("rabbit", target, box=box), GroundedObject("table", "table", box=KEPT_BOX)])


def opened_pixels(height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """(H, W) boolean: the cells of CHANGED_BOX."""
    opened = np.zeros((height, width), dtype=bool)
    opened[height // 4 : height * 3 // 4, : width // 2] = True
    return opened


def arguments_of_an_edit(**changes: Any) -> dict[str, Any]:
    arguments: dict[str, Any] = {
        "video": random_frames(0),
        "grounding": grounding_of(),
        "prompt": "a squirrel at a table",
        "source_prompt": "a rabbit at a table",
        "conditioning_frames": random_frames(1),
        "flow": random_flow(),
        "num_inference_steps": STEPS,
        "generator": generator(),
        "output_type": "pt",
        "return_dict": False,
    }
    return arguments | changes


def edit(pipe: Any, **changes: Any) -> Any:
    return pipe(**arguments_of_an_edit(**changes))[0]


# The same, with what a batch of two clips needs: one value a clip, a generator for each result.
TWO_CLIPS: dict[str, Any] = {
    "video": [random_frames(0), random_frames(2)],
    "grounding": [grounding_of(), grounding_of("train", box=(0.0, 0.5, 0.5, 1.0))],
    "prompt": ["a squirrel at a table", "a train at night"],
    "source_prompt": ["a rabbit at a table", "a hare"],
    "conditioning_frames": [random_frames(1), random_frames(3)],
    "flow": [random_flow(0), random_flow(1)],
}


def of_clip(index: int) -> dict[str, Any]:
    return {name: values[index] for name, values in TWO_CLIPS.items()}


def two_clips(**changes: Any) -> dict[str, Any]:
    return TWO_CLIPS | {"generator": [generator(0), generator(1)]} | changes


@pytest.fixture
def pipe(components: dict[str, Any]) -> GroundAVideoPipeline:
    return quiet(GroundAVideoPipeline(**components))


def quiet(pipe: Any) -> Any:
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def expected() -> torch.Tensor:
    """The frames of `edit` by a pipeline of the same weights as `pipe`."""
    return edit(quiet(GroundAVideoPipeline(**build_components())))


def difference(first: torch.Tensor, second: torch.Tensor) -> float:
    return float((first.float() - second.float()).abs().max())


# Saving and loading


def test_save_and_load(tmp_path: Path, pipe: GroundAVideoPipeline, expected: torch.Tensor) -> None:
    pipe.save_pretrained(tmp_path)
    loaded = quiet(GroundAVideoPipeline.from_pretrained(tmp_path))
    assert loaded.components.keys() == pipe.components.keys()
    assert torch.equal(edit(loaded), expected)


def test_a_checkpoint_loads(small_checkpoint: Path, expected: torch.Tensor, caplog: pytest.LogCaptureFixture) -> None:
    loaded = quiet(GroundAVideoPipeline.from_pretrained(small_checkpoint))
    assert torch.equal(edit(loaded), expected)
    assert not caplog.records


def test_save_and_load_without_controlnet(tmp_path: Path, components: dict[str, Any]) -> None:
    pipe = quiet(GroundAVideoPipeline(**(components | {"controlnet": None})))
    pipe.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "model_index.json").read_text())["controlnet"] == [None, None]
    loaded = quiet(GroundAVideoPipeline.from_pretrained(tmp_path))
    assert loaded.controlnet is None
    assert torch.equal(edit(loaded, conditioning_frames=None), edit(pipe, conditioning_frames=None))
    # And one can be given, alone or several.
    with_one = quiet(GroundAVideoPipeline.from_pretrained(tmp_path, controlnet=components["controlnet"]))
    assert with_one.controlnet is components["controlnet"]
    several = GroundAVideoPipeline.from_pretrained(tmp_path, controlnet=[components["controlnet"]] * 2)
    assert isinstance(several.controlnet, MultiControlNetModel)


def test_save_and_load_with_several_controlnets(tmp_path: Path, components: dict[str, Any]) -> None:
    components["controlnet"] = [components["controlnet"], build_components(seed=1)["controlnet"]]
    pipe = quiet(GroundAVideoPipeline(**components))
    conditions = [random_frames(1), random_frames(4)]
    before = edit(pipe, conditioning_frames=conditions)
    pipe.save_pretrained(tmp_path)
    loaded = quiet(GroundAVideoPipeline.from_pretrained(tmp_path))
    assert isinstance(loaded.controlnet, MultiControlNetModel)
    assert torch.equal(edit(loaded, conditioning_frames=conditions), before)


def test_variants(tmp_path: Path, pipe: GroundAVideoPipeline) -> None:
    pipe.save_pretrained(tmp_path, variant="fp16")
    files = {
        path.name for folder in ("unet", "vae", "text_encoder", "controlnet") for path in (tmp_path / folder).iterdir()
    }
    assert {"diffusion_pytorch_model.fp16.safetensors", "model.fp16.safetensors"} <= files
    assert not {"diffusion_pytorch_model.safetensors", "model.safetensors"} & files
    loaded = GroundAVideoPipeline.from_pretrained(tmp_path, variant="fp16")
    for name in ("unet", "vae", "text_encoder", "controlnet"):
        weights = getattr(pipe, name).state_dict()
        assert all(torch.equal(value, weights[key]) for key, value in getattr(loaded, name).state_dict().items())
    for variant in (None, "fp32"):
        with pytest.raises((OSError, ValueError)):
            GroundAVideoPipeline.from_pretrained(tmp_path, variant=variant)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_load_in_a_dtype(small_checkpoint: Path, dtype: torch.dtype) -> None:
    pipe = GroundAVideoPipeline.from_pretrained(small_checkpoint, dtype=dtype)
    for name in ("unet", "vae", "text_encoder", "controlnet"):
        assert {parameter.dtype for parameter in getattr(pipe, name).parameters()} == {dtype}


def test_each_component_has_its_own_dtype(small_checkpoint: Path) -> None:
    pipe = quiet(
        GroundAVideoPipeline.from_pretrained(
            small_checkpoint, dtype={"unet": torch.bfloat16, "default": torch.float32}
        )
    )
    assert pipe.unet.dtype == torch.bfloat16
    assert pipe.vae.dtype == pipe.text_encoder.dtype == pipe.controlnet.dtype == torch.float32
    for method in ("negative-prompt", "null-text"):
        assert edit(pipe, inversion_method=method, num_null_text_steps=1).isfinite().all()


def test_the_components_make_the_same_pipeline(pipe: GroundAVideoPipeline, expected: torch.Tensor) -> None:
    assert set(pipe.components) == {"vae", "text_encoder", "tokenizer", "unet", "scheduler", "controlnet"}
    assert torch.equal(edit(quiet(GroundAVideoPipeline(**pipe.components))), expected)


def test_every_component_may_be_none() -> None:
    parameters = set(inspect.signature(GroundAVideoPipeline.__init__).parameters) - {"self"}
    pipe = GroundAVideoPipeline(**dict.fromkeys(parameters))
    assert set(pipe.components) == parameters and not any(pipe.components.values())
    assert GroundAVideoPipeline._optional_components == ["controlnet"]
    # With a default, a component that is passed to `from_pretrained(custom_pipeline=...)` would be dropped.
    signature = inspect.signature(GroundAVideoPipeline.__init__)
    assert all(signature.parameters[name].default is inspect.Parameter.empty for name in parameters)


@pytest.mark.parametrize("name", ["unet", "vae", "scheduler"])
def test_a_pipeline_without_what_it_needs_says_so(components: dict[str, Any], name: str) -> None:
    pipe = GroundAVideoPipeline(**(components | {name: None}))
    with pytest.raises(ValueError, match="needs its `unet`, `vae` and `scheduler`"):
        edit(pipe)


# The call


def test_the_call_has_the_names_of_the_field() -> None:
    parameters = inspect.signature(GroundAVideoPipeline.__call__).parameters
    usual = """prompt negative_prompt height width num_inference_steps guidance_scale eta controlnet_conditioning_scale
    control_guidance_start control_guidance_end gligen_scheduled_sampling_beta num_videos_per_prompt generator latents
    prompt_embeds negative_prompt_embeds clip_skip cross_attention_kwargs output_type return_dict callback_on_step_end
    callback_on_step_end_tensor_inputs video conditioning_frames"""
    ours = "source_prompt grounding flow flow_threshold inversion_method num_null_text_steps inverted"
    assert set(f"{usual} {ours}".split()) <= set(parameters)
    returned = inspect.signature(GroundAVideoPipeline.encode_prompt).parameters
    assert {"prompt", "device", "num_videos_per_prompt", "do_classifier_free_guidance"} <= set(returned)


def test_dict_and_tuple_hold_the_same(pipe: GroundAVideoPipeline, expected: torch.Tensor) -> None:
    frames, opened_share = pipe(**arguments_of_an_edit())
    result = pipe(**arguments_of_an_edit(return_dict=True))
    assert isinstance(result, GroundAVideoPipelineOutput)
    assert torch.equal(result.frames, frames) and torch.equal(frames, expected)  # type: ignore[arg-type]
    assert result.opened_share == opened_share == pytest.approx([0.25])


def test_a_seed_gives_the_same_bits(pipe: GroundAVideoPipeline, expected: torch.Tensor) -> None:
    assert torch.equal(edit(pipe), expected)
    assert difference(edit(pipe, generator=generator(1)), expected) > 1e-3


@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_eta_adds_noise_that_the_seed_decides(pipe: GroundAVideoPipeline, expected: torch.Tensor, eta: float) -> None:
    first = edit(pipe, eta=eta)
    assert torch.equal(edit(pipe, eta=eta), first)
    assert difference(first, expected) > 1e-3


@pytest.mark.parametrize(
    "changes",
    [
        {"prompt": "a train at night"},
        {"source_prompt": "a train at night"},
        {"grounding": grounding_of("train")},
        {"conditioning_frames": random_frames(7)},
        {"conditioning_frames": None},
        {"controlnet_conditioning_scale": 0.3},
        {"flow": None},
        {"flow": torch.zeros(NUM_FRAMES - 1, 2, 16, 24)},
        {"flow_threshold": 0.9},
        {"relative_flow_threshold": True},
        {"backward_flow": random_flow(9)},
        {"guidance_scale": 3.0},
        {"guidance_scale": 1.0},
        {"inversion_method": "ddim"},
        {"inversion_method": "null-text", "num_null_text_steps": 1},
        {"inversion_method": "ddim", "negative_prompt": "dull"},
        {"num_inference_steps": 3},
        {"gligen_scheduled_sampling_beta": 0.5},
        {"open_all_boxes": True},
        {"inflation": Inflation(self_attention="per-frame")},
        {"inflation": Inflation(gated_attention="first-frame")},
        {"inflation": Inflation(group_norm=True)},
        {"inflation": Inflation(entropy_scaling=False)},
        {"clip_skip": 1},
        {"height": 48},
        {"width": 32},
    ],
    ids=lambda changes: ",".join(f"{k}={v!r:.20}" for k, v in changes.items()),
)
def test_every_argument_has_effect(
    pipe: GroundAVideoPipeline, expected: torch.Tensor, changes: dict[str, Any]
) -> None:
    result = edit(pipe, **changes)
    assert result.isfinite().all() and result.min() >= 0 and result.max() <= 1
    assert result.shape != expected.shape or difference(result, expected) > 1e-4


def test_the_negative_prompt_has_effect(pipe: GroundAVideoPipeline) -> None:
    results = [edit(pipe, inversion_method="ddim", negative_prompt=text) for text in ("", "dull", None)]
    assert difference(results[0], results[1]) > 1e-3
    assert torch.equal(results[0], results[2])
    embeds = pipe.encode_prompt("dull", torch.device("cpu"), 1, False)[0]
    assert torch.equal(edit(pipe, inversion_method="ddim", negative_prompt_embeds=embeds), results[1])


def test_modulated_cross_attention_matters_with_null_text_alone(pipe: GroundAVideoPipeline) -> None:
    for method, same in (("negative-prompt", True), ("ddim", True), ("null-text", False)):
        results = [
            edit(
                pipe,
                inversion_method=method,
                num_null_text_steps=2,
                inflation=Inflation(modulated_cross_attention=modulated),
            )
            for modulated in (True, False)
        ]
        assert (difference(*results) <= 1e-5) == same, method


def test_without_guidance_the_unconditional_branch_is_not_run(pipe: GroundAVideoPipeline) -> None:
    with counted_forwards(pipe.unet) as calls:
        edit(pipe, guidance_scale=1.0)
    assert len(calls) == STEPS + STEPS
    with counted_forwards(pipe.unet) as calls:
        edit(pipe)
    assert len(calls) == STEPS + 2 * STEPS


@contextmanager
def counted_forwards(model: nn.Module) -> Iterator[list[dict[str, Any]]]:
    """The keyword arguments of every forward."""
    calls: list[dict[str, Any]] = []
    hook = model.register_forward_pre_hook(lambda module, args, kwargs: calls.append(kwargs), with_kwargs=True)
    yield calls
    hook.remove()


@pytest.mark.parametrize("inversion_method", ["negative-prompt", "null-text", "ddim"])
def test_a_clip_in_a_batch_is_edited_as_alone(pipe: GroundAVideoPipeline, inversion_method: str) -> None:
    method = {"inversion_method": inversion_method, "num_null_text_steps": 1}
    together = edit(pipe, **two_clips(**method))
    assert together.shape == (2, NUM_FRAMES, 3, HEIGHT, WIDTH)
    for index in range(2):
        alone = edit(pipe, **of_clip(index), **method, generator=generator(index))
        assert difference(together[index], alone[0]) < 1e-4
        listed = {name: [value] for name, value in of_clip(index).items()}
        assert torch.equal(edit(pipe, **listed, **method, generator=[generator(index)]), alone)
    assert difference(together[0], together[1]) > 0.05


def test_several_edits_of_every_clip(pipe: GroundAVideoPipeline) -> None:
    seeds = [generator(seed) for seed in range(4)]
    frames, opened_share = pipe(**arguments_of_an_edit(**two_clips(generator=seeds, num_videos_per_prompt=2)))
    assert frames.shape == (4, NUM_FRAMES, 3, HEIGHT, WIDTH)
    assert opened_share == pytest.approx([0.25] * 4)
    for index in range(4):
        alone = edit(pipe, **of_clip(index // 2), generator=generator(index))
        assert difference(frames[index], alone[0]) < 1e-4
    assert difference(frames[0], frames[1]) > 1e-3


def test_several_edits_with_null_text_eta_and_one_generator(pipe: GroundAVideoPipeline) -> None:
    frames = edit(
        pipe, inversion_method="null-text", num_null_text_steps=1, num_videos_per_prompt=2, eta=0.5, guidance_scale=3.0
    )
    assert frames.shape == (2, NUM_FRAMES, 3, HEIGHT, WIDTH) and frames.isfinite().all()
    assert difference(frames[0], frames[1]) > 1e-3


def test_all_forms_of_a_clip_are_one(pipe: GroundAVideoPipeline, expected: torch.Tensor) -> None:
    array = random_frames(0)
    tensor = torch.from_numpy(array).permute(0, 3, 1, 2)
    images = [PIL.Image.fromarray(frame) for frame in array]
    forms: list[Any] = [
        images,
        [images],
        [array],
        list(array),
        array[None],
        array.astype(np.float32) / 255,
        tensor,
        tensor[None],
        [tensor],
        list(tensor),
        tensor.float() / 255,
        tensor.double() / 255,
        tuple(images),
    ]
    for form in forms:
        assert difference(pipe.preprocess_video(form), pipe.preprocess_video(array)) < 1e-6
    for form in (images, tensor.float() / 255):
        assert difference(edit(pipe, video=form), expected) < 1e-4
    for depth in ([PIL.Image.fromarray(frame) for frame in random_frames(1)], random_frames(1)[None] / 255):
        assert difference(edit(pipe, conditioning_frames=depth), expected) < 1e-4
    for flow in (random_flow().numpy(), [random_flow()], random_flow()[None], random_flow().double()):
        assert torch.equal(edit(pipe, flow=flow), expected)


def test_output_types_agree(pipe: GroundAVideoPipeline, expected: torch.Tensor) -> None:
    results = {kind: edit(pipe, **two_clips(output_type=kind)) for kind in ("pt", "np", "pil", "latent")}
    assert results["pt"].shape == (2, NUM_FRAMES, 3, HEIGHT, WIDTH)
    np.testing.assert_array_equal(results["np"], results["pt"].permute(0, 1, 3, 4, 2).numpy())
    pil = results["pil"]
    assert [len(clip) for clip in pil] == [NUM_FRAMES] * 2 and pil[0][0].size == (WIDTH, HEIGHT)
    np.testing.assert_array_equal(
        np.array([[np.asarray(frame) for frame in clip] for clip in pil]),
        (results["np"] * 255).round().astype(np.uint8),
    )
    latents = results["latent"]
    assert latents.shape == (2, NUM_FRAMES, 4, HEIGHT // 8, WIDTH // 8)
    with torch.no_grad():
        decoded = pipe.vae.decode(latents.flatten(0, 1) / pipe.vae.config.scaling_factor).sample
    raw = edit(pipe, **two_clips(), paste_back=False)
    assert difference(decoded.unflatten(0, (2, NUM_FRAMES)).clamp(-1, 1) / 2 + 0.5, raw) < 1e-5


def test_latents_take_the_place_of_inversion(pipe: GroundAVideoPipeline) -> None:
    ddim = {"inversion_method": "ddim"}
    inverted = pipe.invert(random_frames(0), grounding_of(), num_inference_steps=STEPS, **ddim)  # type: ignore[arg-type]
    assert not isinstance(inverted, list)
    latents = pipe.prepare_latents([inverted], [random_flow()])
    with counted_forwards(pipe.unet) as calls:
        result = edit(pipe, latents=latents, flow=None, source_prompt=None)
    assert len(calls) == 2 * STEPS
    assert difference(result, edit(pipe, **ddim)) < 1e-5


def test_latents_are_smoothed_by_the_threshold_of_the_call(pipe: GroundAVideoPipeline) -> None:
    inverted = pipe.invert(random_frames(0), grounding_of(), num_inference_steps=1, inversion_method="ddim")
    assert not isinstance(inverted, list)
    noise = inverted.noise_latents
    flow = [torch.full((NUM_FRAMES - 1, 2, HEIGHT, WIDTH), 1.0)]
    # sqrt(2) pixels are 0.18 cells of 8.
    assert torch.equal(pipe.prepare_latents([inverted], flow)[0], noise[:1].expand_as(noise))
    assert torch.equal(pipe.prepare_latents([inverted], flow, flow_threshold=0.17)[0], noise)
    assert torch.equal(pipe.prepare_latents([inverted], flow, relative_flow_threshold=True)[0], noise)
    opposite = [torch.full((NUM_FRAMES - 1, 2, HEIGHT, WIDTH), 1.0)]
    assert torch.equal(pipe.prepare_latents([inverted], flow, opposite)[0], noise)
    assert torch.equal(pipe.prepare_latents([inverted])[0], noise)


# Callbacks


def test_callback_gets_what_it_asks_for(pipe: GroundAVideoPipeline, expected: torch.Tensor) -> None:
    names = list(pipe._callback_tensor_inputs)
    seen: list[tuple[int, int, dict[str, Any]]] = []

    def callback(pipe: Any, step: int, timestep: int, kwargs: dict[str, Any]) -> dict[str, Any]:
        assert pipe.num_timesteps == STEPS
        seen.append((step, int(timestep), {name: tuple(value.shape) for name, value in kwargs.items()}))
        return {}

    for asked in (["latents"], names, None):
        seen.clear()
        result = edit(pipe, callback_on_step_end=callback, callback_on_step_end_tensor_inputs=asked)
        assert torch.equal(result, expected)
        assert [entry[:2] for entry in seen] == [(0, 501), (1, 1)]
        shapes = {
            "latents": (1, NUM_FRAMES, 4, 4, 6),
            "prompt_embeds": (1, 77, 32),
            "negative_prompt_embeds": (1, 77, 32),
        }
        assert all(entry[2] == {name: shapes[name] for name in asked or ["latents"]} for entry in seen)


def test_callback_changes_tensors(pipe: GroundAVideoPipeline) -> None:
    def zeros(pipe: Any, step: int, timestep: int, kwargs: dict[str, Any]) -> dict[str, Any]:
        return {name: torch.zeros_like(value) for name, value in kwargs.items()} if step == STEPS - 1 else kwargs

    names = list(pipe._callback_tensor_inputs)
    arguments = {"callback_on_step_end": zeros, "callback_on_step_end_tensor_inputs": names, "output_type": "latent"}
    assert (edit(pipe, **arguments) == 0).all()

    changes = [edit(pipe, output_type="latent")]
    for name in ("prompt_embeds", "negative_prompt_embeds"):

        def zero_one(pipe: Any, step: int, timestep: int, kwargs: dict[str, Any]) -> dict[str, Any]:
            return {name: torch.zeros_like(kwargs[name])}  # noqa: B023

        changes.append(edit(pipe, **arguments | {"callback_on_step_end": zero_one}))
    assert min(difference(a, b) for i, a in enumerate(changes) for b in changes[:i]) > 1e-3


def test_callback_changes_the_guidance(pipe: GroundAVideoPipeline) -> None:
    scales = []

    def more(pipe: Any, step: int, timestep: int, kwargs: dict[str, Any]) -> dict[str, Any]:
        scales.append(pipe.guidance_scale)
        pipe._guidance_scale += 1
        return kwargs

    def off(pipe: Any, step: int, timestep: int, kwargs: dict[str, Any]) -> dict[str, Any]:
        pipe._guidance_scale = 1.0
        return kwargs

    results = [edit(pipe, guidance_scale=4.0, callback_on_step_end=callback) for callback in (None, more)]
    assert scales == [4.0, 5.0] and pipe.guidance_scale == 6.0
    assert difference(*results) > 1e-4
    with counted_forwards(pipe.unet) as calls:
        edit(pipe, callback_on_step_end=off)
    assert len(calls) == STEPS + 2 + (STEPS - 1)


def test_callback_interrupts(pipe: GroundAVideoPipeline) -> None:
    latents = []

    def interrupt(pipe: Any, step: int, timestep: int, kwargs: dict[str, Any]) -> dict[str, Any]:
        latents.append(kwargs["latents"])
        pipe._interrupt = step == 1
        return kwargs

    arguments = {"num_inference_steps": 4, "output_type": "latent", "callback_on_step_end": interrupt}
    result = edit(pipe, **arguments)
    assert len(latents) == 2 and torch.equal(result, latents[1])
    # The next call is not interrupted.
    assert difference(edit(pipe, num_inference_steps=4, output_type="latent"), result) > 1e-3


# Text


def test_encode_prompt_works_in_isolation(components: dict[str, Any]) -> None:
    device = torch.device("cpu")
    whole = quiet(GroundAVideoPipeline(**components))
    expected = edit(whole, inversion_method="ddim")
    inverted = whole.invert(random_frames(0), grounding_of(), num_inference_steps=STEPS, inversion_method="ddim")

    text = {name: components[name] for name in ("text_encoder", "tokenizer")}
    text_only = GroundAVideoPipeline(**(dict.fromkeys(components) | text))
    prompt_embeds, negative_prompt_embeds = text_only.encode_prompt("a squirrel at a table", device, 1, True)
    phrase_embeds = text_only.encode_grounding(grounding_of(), NUM_FRAMES)["positive_embeddings"][0, :2]
    assert prompt_embeds.shape == (1, 77, 32) and phrase_embeds.shape == (2, 32)

    without_text = quiet(GroundAVideoPipeline(**(components | dict.fromkeys(text))))
    result = edit(
        without_text,
        prompt=None,
        source_prompt=None,
        prompt_embeds=prompt_embeds,
        negative_prompt_embeds=negative_prompt_embeds,
        phrase_embeds=phrase_embeds,
        inverted=inverted,
    )
    assert torch.equal(result, expected)


def test_encode_prompt_repeats_a_clips_text(pipe: GroundAVideoPipeline) -> None:
    prompts = ["a cat", "a dog"]
    embeds, negative = pipe.encode_prompt(prompts, torch.device("cpu"), 2, True, ["dull", ""])
    assert negative is not None and embeds.shape == negative.shape == (4, 77, 32)
    assert torch.equal(embeds[0], embeds[1]) and not torch.equal(embeds[1], embeds[2])
    assert torch.equal(negative[0], negative[1]) and not torch.equal(negative[1], negative[2])
    assert pipe.encode_prompt(prompts, torch.device("cpu"), 1, False)[1] is None
    again, _ = pipe.encode_prompt(None, torch.device("cpu"), 2, False, prompt_embeds=embeds[::2])
    assert torch.equal(again, embeds)


def test_clip_skip_takes_an_earlier_layer(pipe: GroundAVideoPipeline) -> None:
    ids = pipe.tokenizer("a cat", padding="max_length", return_tensors="pt").input_ids
    layers = pipe.text_encoder(ids, output_hidden_states=True).hidden_states
    for clip_skip, layer in ((None, layers[-1]), (0, layers[-1]), (1, layers[-2]), (2, layers[-3])):
        embeds, _ = pipe.encode_prompt("a cat", torch.device("cpu"), 1, False, clip_skip=clip_skip)
        torch.testing.assert_close(embeds, pipe.text_encoder.final_layer_norm(layer), atol=1e-6, rtol=0)


def test_a_prompt_that_is_too_long_is_cut_with_a_warning(
    pipe: GroundAVideoPipeline, caplog: pytest.LogCaptureFixture
) -> None:
    long = "word " * 25
    embeds, _ = pipe.encode_prompt(long, torch.device("cpu"), 1, False)
    assert embeds.shape == (1, 77, 32)
    messages = [record.message for record in caplog.records if record.name.startswith("diffusers_groundavideo")]
    assert len(messages) == 1 and "CLIP sees 77 tokens" in messages[0]


def test_grounding_tokens_of_each_side(pipe: GroundAVideoPipeline) -> None:
    grounding = VideoGrounding(
        [
            GroundedObject("rabbit", "squirrel", box=CHANGED_BOX),
            GroundedObject(None, "aurora", box=KEPT_BOX),
            GroundedObject("dog", None, boxes=[KEPT_BOX, None]),
        ]
    )
    source, target = (pipe.encode_grounding(grounding, 2, side) for side in ("source", "target"))
    assert source["masks"][:, :3].tolist() == [[1, 0, 1], [1, 0, 0]]
    assert target["masks"][:, :3].tolist() == [[1, 1, 0], [1, 1, 0]]
    ids = pipe.tokenizer(["rabbit", "squirrel"], padding="max_length", return_tensors="pt").input_ids
    pooled = pipe.text_encoder(ids).pooler_output
    torch.testing.assert_close(source["positive_embeddings"][:, 0], pooled[:1].expand(2, -1), atol=1e-5, rtol=0)
    torch.testing.assert_close(target["positive_embeddings"][:, 0], pooled[1:].expand(2, -1), atol=1e-5, rtol=0)


def load_lora(pipe: GroundAVideoPipeline, folder: Path, text_encoder: bool = False) -> None:
    """Trains nothing, writes a LoRA file as scripts do and loads it."""
    trained = build_components()
    config = LoraConfig(r=2, lora_alpha=2, target_modules=["to_k", "to_v"], init_lora_weights=False)
    text_config = LoraConfig(r=2, lora_alpha=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    layers: dict[str, Any] = {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        trained["unet"].add_adapter(config)
        layers["unet_lora_layers"] = convert_state_dict_to_diffusers(get_peft_model_state_dict(trained["unet"]))
        if text_encoder:
            trained["text_encoder"].add_adapter(text_config)
            state_dict = get_peft_model_state_dict(trained["text_encoder"])
            layers["text_encoder_lora_layers"] = convert_state_dict_to_diffusers(state_dict)
    GroundAVideoPipeline.save_lora_weights(folder, **layers)
    pipe.load_lora_weights(folder, adapter_name="style")


def lora_scales(pipe: GroundAVideoPipeline) -> list[dict[str, float]]:
    models = (pipe.unet, pipe.text_encoder)
    return [dict(m.scaling) for model in models for m in model.modules() if hasattr(m, "scale_layer")]


@pytest.mark.parametrize("text_encoder", [False, True])
def test_lora_has_effect_at_its_scale(
    tmp_path: Path, pipe: GroundAVideoPipeline, expected: torch.Tensor, text_encoder: bool
) -> None:
    load_lora(pipe, tmp_path, text_encoder)
    scales = lora_scales(pipe)
    assert len(scales) > 4
    whole = edit(pipe)
    assert difference(whole, expected) > 1e-3
    half = edit(pipe, cross_attention_kwargs={"scale": 0.5})
    assert min(difference(half, other) for other in (whole, expected)) > 1e-4
    assert difference(edit(pipe, cross_attention_kwargs={"scale": 0.0}), expected) < 1e-5
    assert torch.equal(edit(pipe, cross_attention_kwargs={"scale": 1.0}), whole)
    assert lora_scales(pipe) == scales
    # The scale of the call and the weight of the adapter multiply.
    pipe.set_adapters(["style"], [0.5])
    assert difference(edit(pipe), half) < 1e-5
    pipe.unload_lora_weights()
    assert torch.equal(edit(pipe), expected)


def test_lora_scale_is_put_back_by_an_exception(tmp_path: Path, pipe: GroundAVideoPipeline) -> None:
    load_lora(pipe, tmp_path, text_encoder=True)
    pipe.set_adapters(["style"], [0.7])
    scales = lora_scales(pipe)
    for model in (pipe.text_encoder.final_layer_norm, pipe.unet.mid_block, pipe.controlnet, pipe.vae.decoder):
        with pytest.raises(KeyError), failing_at(model, 0):
            edit(pipe, cross_attention_kwargs={"scale": 0.3})
        assert lora_scales(pipe) == scales


def test_a_fused_lora_is_one_with_scale_1(tmp_path: Path, pipe: GroundAVideoPipeline) -> None:
    load_lora(pipe, tmp_path)
    whole = edit(pipe)
    pipe.fuse_lora()
    assert difference(edit(pipe), whole) < 1e-3


def test_textual_inversion_is_used_in_prompts_and_phrases(pipe: GroundAVideoPipeline) -> None:
    plain = {"prompt": "a <thing> at a table", "grounding": grounding_of("<thing>")}
    before = {name: edit(pipe, **{name: value}) for name, value in plain.items()}
    embedding = torch.randn(32, generator=generator())
    pipe.load_textual_inversion({"<thing>": embedding})
    for name, value in plain.items():
        assert difference(edit(pipe, **{name: value}), before[name]) > 1e-4
    # A token of several vectors stands for all of them.
    pipe.load_textual_inversion({"<things>": torch.randn(3, 32, generator=generator())})
    embeds = [pipe.encode_prompt("<things>", torch.device("cpu"), 1, False)[0]]
    with torch.no_grad():
        pipe.text_encoder.get_input_embeddings().weight[pipe.tokenizer.convert_tokens_to_ids("<things>_2")] = 0
    embeds.append(pipe.encode_prompt("<things>", torch.device("cpu"), 1, False)[0])
    assert torch.equal(embeds[0][:, :3], embeds[1][:, :3]) and not torch.equal(embeds[0][:, 3], embeds[1][:, 3])


# Models of other kinds


def test_a_generation_unet_edits_too(components: dict[str, Any]) -> None:
    pipe = quiet(GroundAVideoPipeline(**(components | {"unet": build_components(in_channels=4)["unet"]})))
    for method in ("negative-prompt", "null-text"):
        result = edit(pipe, inversion_method=method, num_null_text_steps=1)
        assert result.isfinite().all()
        source = torch.from_numpy(random_frames(0)).permute(0, 3, 1, 2) / 255
        outside = torch.from_numpy(~opened_pixels())
        assert difference(result[0][..., outside], source[..., outside]) < 1e-6
        assert difference(result[0], source) > 0.05


def test_several_controlnets_add_up(components: dict[str, Any], expected: torch.Tensor) -> None:
    first, second = components["controlnet"], build_components(seed=1)["controlnet"]
    pipe = quiet(GroundAVideoPipeline(**(components | {"controlnet": [first, second]})))
    conditions = [random_frames(1), random_frames(4)]
    both = edit(pipe, conditioning_frames=conditions)
    assert difference(both, expected) > 1e-3
    only_first = edit(pipe, conditioning_frames=conditions, controlnet_conditioning_scale=[1.0, 0.0])
    assert difference(only_first, expected) < 1e-5
    never_second = edit(pipe, conditioning_frames=conditions, control_guidance_start=[0.0, 0.9])
    assert difference(never_second, expected) < 1e-5


def test_one_controlnet_may_serve_twice(components: dict[str, Any], expected: torch.Tensor) -> None:
    pipe = quiet(GroundAVideoPipeline(**(components | {"controlnet": [components["controlnet"]] * 2})))
    processors = all_processors(pipe)
    halves = edit(pipe, conditioning_frames=[random_frames(1)] * 2, controlnet_conditioning_scale=0.5)
    assert difference(halves, expected) < 1e-4
    assert all(a is b for a, b in zip(all_processors(pipe), processors, strict=True))


def test_several_controlnets_take_batches(components: dict[str, Any]) -> None:
    second = build_components(seed=1)["controlnet"]
    pipe = quiet(GroundAVideoPipeline(**(components | {"controlnet": [components["controlnet"], second]})))
    conditions = [[random_frames(1), random_frames(3)], [random_frames(4), random_frames(5)]]
    together = edit(pipe, **two_clips(conditioning_frames=conditions))
    for index in range(2):
        own = of_clip(index) | {"conditioning_frames": [batch[index] for batch in conditions]}
        assert difference(together[index], edit(pipe, **own, generator=generator(index))[0]) < 1e-4


@pytest.mark.parametrize(
    ("start", "end", "steps"),
    [(0.0, 1.0, [0, 1, 2, 3]), (0.5, 1.0, [2, 3]), (0.0, 0.5, [0, 1]), (0.3, 0.8, [2]), (0.0, 0.1, [])],
)
def test_controlnet_acts_between_start_and_end(
    pipe: GroundAVideoPipeline, start: float, end: float, steps: list[int]
) -> None:
    with counted_forwards(pipe.unet) as calls:
        edit(pipe, control_guidance_start=start, control_guidance_end=end, num_inference_steps=4)
    acts = ["mid_block_additional_residual" in kwargs for kwargs in calls]
    # None in the inversion; both branches of a step alike.
    assert acts == [False] * 4 + [step in steps for step in range(4) for _ in range(2)]


@pytest.mark.parametrize(("beta", "steps"), [(1.0, 4), (0.5, 2), (0.3, 1), (0.0, 0)])
def test_the_gate_is_on_for_its_share_of_the_steps(pipe: GroundAVideoPipeline, beta: float, steps: int) -> None:
    with counted_forwards(pipe.unet) as calls:
        edit(pipe, gligen_scheduled_sampling_beta=beta, num_inference_steps=4)
    grounded = ["gligen" in kwargs["cross_attention_kwargs"] for kwargs in calls]
    assert grounded == [True] * 4 + [step < steps for step in range(4) for _ in range(2)]


def test_with_the_gate_off_phrases_are_of_no_matter(pipe: GroundAVideoPipeline) -> None:
    results = [
        edit(pipe, gligen_scheduled_sampling_beta=0.0, grounding=grounding_of(p)) for p in ("squirrel", "train")
    ]
    assert torch.equal(*results)


def test_the_unconditional_branch_has_null_groundings(pipe: GroundAVideoPipeline) -> None:
    with counted_forwards(pipe.unet) as calls:
        edit(pipe)
    inversion, denoising = calls[:STEPS], calls[STEPS:]
    groundings = [kwargs["cross_attention_kwargs"]["gligen"] for kwargs in denoising]
    assert all(one["masks"].sum() == 2 * NUM_FRAMES for one in groundings[::2])
    assert not any(value.any() for one in groundings[1::2] for value in one.values())
    texts = [kwargs["encoder_hidden_states"] for kwargs in inversion]
    assert all(torch.equal(one, texts[0]) for one in texts) and len(texts[0]) == NUM_FRAMES
    assert torch.equal(denoising[1]["encoder_hidden_states"][0], texts[0][0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("method", ["negative-prompt", "null-text"])
def test_half_precision_gives_no_nan(pipe: GroundAVideoPipeline, dtype: torch.dtype, method: str) -> None:
    pipe.to(dtype)
    result = edit(pipe, inversion_method=method, num_null_text_steps=1)
    assert result.dtype == torch.float32 and result.isfinite().all()
    source = torch.from_numpy(random_frames(0)).permute(0, 3, 1, 2) / 255
    outside = torch.from_numpy(~opened_pixels())
    assert difference(result[0][..., outside], source[..., outside]) < 1e-6
    assert difference(result[0], source) > 0.05


def test_vae_slicing_gives_the_same(pipe: GroundAVideoPipeline, expected: torch.Tensor) -> None:
    pipe.vae.enable_slicing()
    assert difference(edit(pipe), expected) < 1e-4


def test_vae_tiling_edits_what_is_larger_than_a_tile(pipe: GroundAVideoPipeline) -> None:
    pipe.vae.enable_tiling()
    with counted_forwards(pipe.vae.decoder) as calls:
        result = edit(pipe, video=random_frames(0, 96, 128), num_inference_steps=1)
    assert result.shape == (1, NUM_FRAMES, 3, 96, 128) and result.isfinite().all()
    assert len(calls) > 1


@pytest.mark.parametrize("slice_size", ["auto", "max", 1])
def test_attention_slicing_gives_the_same(
    pipe: GroundAVideoPipeline, expected: torch.Tensor, slice_size: str | int
) -> None:
    pipe.enable_attention_slicing(slice_size)
    processors = all_processors(pipe)
    assert difference(edit(pipe), expected) < 1e-3
    assert all(a is b for a, b in zip(all_processors(pipe), processors, strict=True))
    pipe.disable_attention_slicing()
    assert torch.equal(edit(pipe), expected)


def test_fused_projections_give_the_same(pipe: GroundAVideoPipeline, expected: torch.Tensor) -> None:
    pipe.fuse_qkv_projections()
    processors = all_processors(pipe)
    assert difference(edit(pipe), expected) < 1e-4
    assert all(a is b for a, b in zip(all_processors(pipe), processors, strict=True))


def test_frames_a_forward_change_nothing(pipe: GroundAVideoPipeline, expected: torch.Tensor) -> None:
    with counted_forwards(pipe.unet) as calls:
        assert difference(edit(pipe, frame_batch_size=1), expected) < 1e-3
    assert len(calls) == NUM_FRAMES * STEPS + 2 * STEPS


# Sizes


@pytest.mark.parametrize("size", [(32, 48), (48, 32), (64, 16), (40, 24), (8, 32)])
def test_any_aspect_ratio(pipe: GroundAVideoPipeline, size: tuple[int, int]) -> None:
    result = edit(pipe, video=random_frames(0, *size))
    assert result.shape == (1, NUM_FRAMES, 3, *size) and result.isfinite().all()


@pytest.mark.parametrize(
    ("size", "given", "latent_size", "result_size"),
    [
        ((30, 45), {}, (4, 6), (30, 45)),
        ((33, 52), {}, (4, 6), (33, 52)),
        ((5, 60), {}, (1, 8), (5, 60)),
        ((30, 45), {"height": 40, "width": 48}, (5, 6), (40, 48)),
        ((32, 48), {"height": 40}, (5, 6), (40, 48)),
        ((30, 45), {"restore_size": False}, (4, 6), (32, 48)),
        ((30, 45), {"height": 64, "width": 32, "restore_size": True}, (8, 4), (30, 45)),
    ],
)
def test_the_size_at_work_and_of_the_result(
    pipe: GroundAVideoPipeline, size: tuple[int, int], given: dict[str, Any], latent_size: Any, result_size: Any
) -> None:
    video = random_frames(0, *size)
    assert edit(pipe, video=video, **given).shape[-2:] == result_size
    assert edit(pipe, video=video, **given, output_type="latent").shape[-2:] == latent_size


@pytest.mark.parametrize("size", [(32, 48), (30, 45), (64, 96)])
def test_what_was_not_opened_is_the_sources_own(pipe: GroundAVideoPipeline, size: tuple[int, int]) -> None:
    video = random_frames(0, *size)
    # Worked on at 32 x 48 whatever its size is.
    frames = edit(pipe, video=video, height=32, width=48, restore_size=True, output_type="pil")
    result = np.stack([np.asarray(frame) for frame in frames[0]])
    rows = ((np.arange(size[0]) + 0.5) * 4 / size[0]).astype(int)
    columns = ((np.arange(size[1]) + 0.5) * 6 / size[1]).astype(int)
    opened = opened_pixels(4, 6)[rows][:, columns]
    np.testing.assert_array_equal(result[:, ~opened], video[:, ~opened])
    assert (result[:, opened] != video[:, opened]).mean() > 0.9


def test_without_paste_back_nothing_is_pasted(pipe: GroundAVideoPipeline, expected: torch.Tensor) -> None:
    result = edit(pipe, paste_back=False)
    opened = torch.from_numpy(opened_pixels())
    assert torch.equal(result[..., opened], expected[..., opened])
    assert difference(result[..., ~opened], expected[..., ~opened]) > 0.01


def test_an_edit_of_nothing_is_the_source(pipe: GroundAVideoPipeline) -> None:
    for video in (random_frames(0), random_frames(0, 30, 45)):
        frames, opened_share = pipe(
            **arguments_of_an_edit(video=video, grounding=grounding_of("rabbit"), output_type="pil")
        )
        np.testing.assert_array_equal(np.stack([np.asarray(frame) for frame in frames[0]]), video)
        assert opened_share == [0.0]


def test_one_frame_is_a_clip(pipe: GroundAVideoPipeline, caplog: pytest.LogCaptureFixture) -> None:
    arguments = {"video": random_frames(0)[:1], "conditioning_frames": random_frames(1)[:1]}
    without_flow = edit(pipe, **arguments, flow=None)
    assert without_flow.shape == (1, 1, 3, HEIGHT, WIDTH)
    assert not caplog.records
    for empty in (torch.zeros(0, 2, 16, 24), np.zeros((0, 2, 16, 24), dtype=np.float32)):
        assert torch.equal(edit(pipe, **arguments, flow=empty), without_flow)
        assert torch.equal(edit(pipe, **arguments, flow=empty, backward_flow=empty), without_flow)


def test_a_frame_without_any_object_is_the_sources_own(pipe: GroundAVideoPipeline) -> None:
    grounding = VideoGrounding([GroundedObject("rabbit", "squirrel", boxes=[CHANGED_BOX, None, CHANGED_BOX])])
    frames = edit(pipe, grounding=grounding, output_type="pil")[0]
    same = [np.array_equal(np.asarray(frame), source) for frame, source in zip(frames, random_frames(0), strict=True)]
    assert same == [False, True, False]


# What a call leaves behind


def all_processors(pipe: GroundAVideoPipeline) -> list[object]:
    models = (pipe.unet, pipe.controlnet, pipe.vae)
    return [module.processor for model in models for module in model.modules() if isinstance(module, Attention)]


def state_of(pipe: GroundAVideoPipeline) -> dict[str, Any]:
    """All of the models that a call could leave changed, comparable with ==."""
    state: dict[str, Any] = {"processors": [id(processor) for processor in all_processors(pipe)]}
    for name in ("unet", "controlnet", "vae", "text_encoder"):
        model = getattr(pipe, name)
        state[f"{name} weights"] = {k: v.clone().numpy().tobytes() for k, v in model.state_dict().items()}
        state[f"{name} gradients"] = [(p.requires_grad, p.grad is None) for p in model.parameters()]
        state[f"{name} modules"] = [
            (module_name, type(m), m.training, sorted(vars(m)), len(m._forward_hooks), len(m._forward_pre_hooks))
            for module_name, m in model.named_modules()
        ]
    state["scheduler"] = (dict(pipe.scheduler.config), pipe.scheduler.num_inference_steps)
    state["timesteps"] = pipe.scheduler.timesteps.tolist()
    return state


@contextmanager
def failing_at(model: nn.Module, number: int) -> Iterator[None]:
    calls: list[int] = []

    def fail(module: nn.Module, args: Any) -> None:
        calls.append(len(calls))
        if len(calls) > number:
            raise KeyError("in the middle")

    hook = model.register_forward_pre_hook(fail)
    try:
        yield
    finally:
        hook.remove()


@pytest.mark.parametrize("method", ["negative-prompt", "null-text"])
def test_the_models_are_as_found_after_a_call(pipe: GroundAVideoPipeline, method: str) -> None:
    pipe.unet.conv_in.requires_grad_(False)
    pipe.unet.mid_block.attentions[0].transformer_blocks[0].attn1.set_processor(AttnProcessor())
    arguments = {"inversion_method": method, "num_null_text_steps": 1, "gradient_checkpointing": True}
    before = state_of(pipe)
    first = edit(pipe, **arguments)
    assert state_of(pipe) == before
    for failing, number in (
        (pipe.vae.encoder, 0),
        (pipe.text_encoder, 1),
        (pipe.unet, 1),
        (pipe.unet, STEPS + 1),
        (pipe.controlnet, 1),
        (pipe.unet.mid_block, 2 * STEPS + 1),
        (pipe.vae.decoder, 0),
    ):
        with pytest.raises(KeyError, match="in the middle"), failing_at(failing, number):
            edit(pipe, **arguments)
        assert state_of(pipe) == before
    assert torch.equal(edit(pipe, **arguments), first)


def test_a_callback_that_raises_leaves_the_models_as_found(pipe: GroundAVideoPipeline) -> None:
    before = state_of(pipe)

    def callback(*args: Any) -> dict[str, Any]:
        raise KeyError("in the middle")

    with pytest.raises(KeyError, match="in the middle"):
        edit(pipe, callback_on_step_end=callback)
    assert state_of(pipe) == before


def test_the_arguments_are_left_as_they_are(pipe: GroundAVideoPipeline) -> None:
    arguments = arguments_of_an_edit(cross_attention_kwargs={"scale": 0.5}, controlnet_conditioning_scale=[0.5])
    video, flow = arguments["video"].copy(), arguments["flow"].clone()
    pipe(**arguments)
    np.testing.assert_array_equal(arguments["video"], video)
    assert torch.equal(arguments["flow"], flow)
    assert arguments["cross_attention_kwargs"] == {"scale": 0.5}
    assert arguments["controlnet_conditioning_scale"] == [0.5]


@pytest.mark.parametrize("scheduler_class", [PNDMScheduler, EulerDiscreteScheduler])
def test_another_scheduler_is_converted_with_a_warning(
    components: dict[str, Any], caplog: pytest.LogCaptureFixture, scheduler_class: Any
) -> None:
    own = DDIMScheduler(**NOISE_SCHEDULE, clip_sample=True)
    assert GroundAVideoPipeline(**(components | {"scheduler": own})).scheduler is own
    assert not caplog.records
    # Says nothing of clipping, and Euler nothing of the last alpha: DDIM's own defaults would not do.
    other = scheduler_class(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1, timestep_spacing="linspace"
    )
    pipe = GroundAVideoPipeline(**(components | {"scheduler": other}))
    assert isinstance(pipe.scheduler, DDIMScheduler)
    assert [f"{scheduler_class.__name__} is converted" in record.message for record in caplog.records] == [True]
    config = pipe.scheduler.config
    assert (config.clip_sample, config.set_alpha_to_one, config.steps_offset) == (False, False, 1)
    assert config.timestep_spacing == "leading"
    assert torch.equal(pipe.scheduler.alphas_cumprod, components["scheduler"].alphas_cumprod)


# Messages


@pytest.fixture
def all_logs(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> pytest.LogCaptureFixture:
    """Also of diffusers and transformers, whose loggers do not hand on by themselves."""
    for name in ("diffusers", "transformers"):
        monkeypatch.setattr(logging.getLogger(name), "propagate", True)
    return caplog


@pytest.mark.filterwarnings("error")
def test_a_normal_call_logs_no_warning(pipe: GroundAVideoPipeline, all_logs: pytest.LogCaptureFixture) -> None:
    for method in ("negative-prompt", "null-text", "ddim"):
        edit(pipe, inversion_method=method, num_null_text_steps=1)
    edit(pipe, **two_clips(output_type="pil"), num_videos_per_prompt=1)
    assert [record.message for record in all_logs.records if record.levelno >= logging.WARNING] == []


def test_what_is_missing_is_said_once(pipe: GroundAVideoPipeline, all_logs: pytest.LogCaptureFixture) -> None:
    for _ in range(2):
        edit(pipe, conditioning_frames=None, flow=None)
    messages = [record.message for record in all_logs.records]
    assert len(messages) == 2
    assert "`conditioning_frames` is None" in messages[0] and "`flow` is None" in messages[1]


def test_progress_bars_name_the_stages(components: dict[str, Any], capsys: pytest.CaptureFixture) -> None:
    pipe = GroundAVideoPipeline(**components)
    edit(pipe, inversion_method="null-text", num_null_text_steps=1)
    bars = capsys.readouterr().err.replace("\r", "\n")
    positions = [bars.index(stage) for stage in ("DDIM inversion", "Null-text optimization", "Denoising")]
    assert positions == sorted(positions)
    assert bars.count(f"{STEPS}/{STEPS}") >= 3
    quiet(pipe)
    edit(pipe)
    assert capsys.readouterr().err == ""


# Devices


def test_devices(pipe: GroundAVideoPipeline) -> None:
    order = GroundAVideoPipeline.model_cpu_offload_seq.split("->")
    assert (
        set(order) <= set(pipe.components) and order[-1] == "vae" and order.index("text_encoder") < order.index("unet")
    )
    assert pipe._execution_device == torch.device("cpu")
    pipe.to("meta")
    assert {getattr(pipe, name).device.type for name in ("unet", "vae", "text_encoder", "controlnet")} == {"meta"}
    assert pipe._execution_device == pipe.device == torch.device("meta")


def test_dtypes(pipe: GroundAVideoPipeline, expected: torch.Tensor) -> None:
    pipe.to(torch.bfloat16)
    assert pipe.unet.dtype == pipe.vae.dtype == pipe.text_encoder.dtype == pipe.controlnet.dtype == torch.bfloat16
    assert difference(edit(pipe, paste_back=False), edit(pipe.to(torch.float32), paste_back=False)) < 1


def test_the_wrong_controlnet_is_told_from_a_missing_one(components: dict[str, Any]) -> None:
    pipe = quiet(GroundAVideoPipeline(**(components | {"controlnet": [build_controlnet()]})))
    assert isinstance(pipe.controlnet, MultiControlNetModel)
    assert all(isinstance(net, ControlNetModel) for net in pipe._controlnets)
    assert edit(pipe, conditioning_frames=[random_frames(1)]).isfinite().all()
