"""Checkpoints as others publish them: the layout of Stable Diffusion 1.4's GLIGEN, made small."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import ControlNetModel, DDIMScheduler, MultiControlNetModel, StableDiffusionPipeline

from diffusers_groundavideo import GroundAVideoPipeline, GroundedObject, VideoGrounding
from small_checkpoint import build_components, save_full_size_layout


VIDEO = np.random.default_rng(0).integers(0, 256, (3, 32, 48, 3), dtype=np.uint8)
DEPTH = np.random.default_rng(1).integers(0, 256, (3, 32, 48, 3), dtype=np.uint8)


def edit(pipe: Any, conditioning_frames: Any = None) -> np.ndarray:
    """(F, H, W, 3) uint8."""
    pipe.set_progress_bar_config(disable=True)
    frames = pipe(
        video=VIDEO,
        grounding=VideoGrounding([GroundedObject("rabbit", "squirrel", box=(0.0, 0.0, 0.5, 1.0))]),
        source_prompt="a rabbit",
        prompt="a squirrel",
        conditioning_frames=conditioning_frames,
        flow=torch.zeros(2, 2, 8, 12),
        num_inference_steps=2,
        generator=torch.Generator().manual_seed(0),
        output_type="np",
    ).frames[0]
    return (frames * 255).round().astype(np.uint8)


def assert_same_weights(pipe: Any, components: dict[str, Any], dtype: torch.dtype = torch.float32) -> None:
    for name in ("vae", "unet", "text_encoder"):
        found, expected = getattr(pipe, name).state_dict(), components[name].state_dict()
        assert found.keys() == expected.keys()
        for key, value in found.items():
            assert value.dtype == dtype and torch.equal(value, expected[key].to(dtype)), f"{name}.{key}"


@pytest.fixture
def all_logs(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> pytest.LogCaptureFixture:
    """Also of diffusers and transformers, whose loggers do not hand on by themselves."""
    for name in ("diffusers", "transformers"):
        monkeypatch.setattr(logging.getLogger(name), "propagate", True)
    return caplog


@pytest.mark.parametrize(
    ("arguments", "dtype"),
    [
        ({}, torch.float32),
        ({"variant": "fp16", "dtype": torch.float16}, torch.float16),
        ({"dtype": torch.bfloat16}, torch.bfloat16),
    ],
    ids=["float32", "variant fp16", "bfloat16"],
)
def test_pickled_weights_and_variants_load(
    full_size_layout: Path, components: dict[str, Any], arguments: dict[str, Any], dtype: torch.dtype
) -> None:
    pipe = GroundAVideoPipeline.from_pretrained(full_size_layout, controlnet=None, **arguments)
    assert_same_weights(pipe, components, dtype)


def test_a_variant_that_is_not_there(full_size_layout: Path) -> None:
    with pytest.raises((OSError, ValueError), match="fp8"):
        GroundAVideoPipeline.from_pretrained(full_size_layout, controlnet=None, variant="fp8")


def test_the_old_key_names_of_the_text_encoder_are_really_loaded(
    full_size_layout: Path, components: dict[str, Any]
) -> None:
    pipe = GroundAVideoPipeline.from_pretrained(full_size_layout, controlnet=None)
    texts = ["a rabbit is eating a watermelon", ""]
    ids = components["tokenizer"](texts, padding="max_length", return_tensors="pt").input_ids
    with torch.no_grad():
        expected = components["text_encoder"](ids)
        hidden, pooled = pipe._encode_text(texts)
    assert torch.equal(hidden, expected.last_hidden_state) and torch.equal(pooled, expected.pooler_output)


@pytest.mark.parametrize("argument", [{}, {"controlnet": None}])
def test_without_controlnet(full_size_layout: Path, components: dict[str, Any], argument: dict[str, Any]) -> None:
    pipe = GroundAVideoPipeline.from_pretrained(full_size_layout, **argument)
    assert pipe.controlnet is None
    expected = GroundAVideoPipeline(**(components | {"controlnet": None}))
    np.testing.assert_array_equal(edit(pipe), edit(expected))


def test_with_a_controlnet(full_size_layout: Path, tmp_path: Path, components: dict[str, Any]) -> None:
    components["controlnet"].save_pretrained(tmp_path)
    controlnet = ControlNetModel.from_pretrained(tmp_path)
    pipe = GroundAVideoPipeline.from_pretrained(full_size_layout, controlnet=controlnet)
    assert pipe.controlnet is controlnet
    with_controlnet = edit(pipe, DEPTH)
    np.testing.assert_array_equal(with_controlnet, edit(GroundAVideoPipeline(**components), DEPTH))
    assert (with_controlnet != edit(pipe)).any()


def test_with_several_controlnets(full_size_layout: Path, components: dict[str, Any]) -> None:
    controlnets = [components["controlnet"], build_components(seed=1)["controlnet"]]
    pipe = GroundAVideoPipeline.from_pretrained(full_size_layout, controlnet=controlnets)
    assert isinstance(pipe.controlnet, MultiControlNetModel)
    expected = GroundAVideoPipeline(**(components | {"controlnet": controlnets}))
    np.testing.assert_array_equal(edit(pipe, [DEPTH, VIDEO]), edit(expected, [DEPTH, VIDEO]))


def test_pndm_becomes_ddim_with_the_settings_that_inversion_needs(
    full_size_layout: Path, components: dict[str, Any], all_logs: pytest.LogCaptureFixture
) -> None:
    scheduler = GroundAVideoPipeline.from_pretrained(full_size_layout, controlnet=None).scheduler
    assert isinstance(scheduler, DDIMScheduler)
    settings = {
        "clip_sample": False,
        "set_alpha_to_one": False,
        "timestep_spacing": "leading",
        "steps_offset": 1,
        "prediction_type": "epsilon",
        "num_train_timesteps": 1000,
    }
    assert {name: scheduler.config[name] for name in settings} == settings
    assert torch.equal(scheduler.alphas_cumprod, components["scheduler"].alphas_cumprod)
    assert scheduler.final_alpha_cumprod == scheduler.alphas_cumprod[0]
    (message,) = [r.message for r in all_logs.records if r.name.startswith("diffusers_groundavideo")]
    assert "the PNDMScheduler is converted to a DDIMScheduler" in message


def test_a_ddim_scheduler_is_taken_as_it_is(full_size_layout: Path, all_logs: pytest.LogCaptureFixture) -> None:
    mine = DDIMScheduler(beta_end=0.013, clip_sample=True, timestep_spacing="trailing")
    pipe = GroundAVideoPipeline.from_pretrained(full_size_layout, controlnet=None, scheduler=mine)
    assert pipe.scheduler is mine
    assert not [r for r in all_logs.records if r.name.startswith("diffusers_groundavideo")]


def test_the_safety_checker_is_left_out(full_size_layout: Path) -> None:
    pipe = GroundAVideoPipeline.from_pretrained(full_size_layout, controlnet=None)
    assert set(pipe.components) == {"vae", "text_encoder", "tokenizer", "unet", "scheduler", "controlnet"}
    assert not hasattr(pipe, "safety_checker")


def test_a_generation_checkpoint(tmp_path: Path) -> None:
    folder = save_full_size_layout(tmp_path, in_channels=4)
    pipe = GroundAVideoPipeline.from_pretrained(folder, controlnet=None)
    assert pipe.unet.config.in_channels == 4
    result = edit(pipe)
    np.testing.assert_array_equal(result[:, :, 24:], VIDEO[:, :, 24:])
    assert (result[:, :, :24] != VIDEO[:, :, :24]).mean() > 0.9


@pytest.mark.parametrize("with_controlnet", [False, True])
def test_saved_and_loaded_again(
    full_size_layout: Path, tmp_path: Path, components: dict[str, Any], with_controlnet: bool
) -> None:
    controlnet = components["controlnet"] if with_controlnet else None
    pipe = GroundAVideoPipeline.from_pretrained(full_size_layout, controlnet=controlnet)
    pipe.save_pretrained(tmp_path)
    again = GroundAVideoPipeline.from_pretrained(tmp_path)
    assert_same_weights(again, components)
    assert isinstance(again.scheduler, DDIMScheduler)
    configs = [{k: v for k, v in each.scheduler.config.items() if k[0] != "_"} for each in (again, pipe)]
    assert configs[0] == configs[1]
    assert (again.controlnet is not None) == with_controlnet
    depth = DEPTH if with_controlnet else None
    result = edit(again, depth)
    np.testing.assert_array_equal(result, edit(pipe, depth))
    np.testing.assert_array_equal(result[:, :, 24:], VIDEO[:, :, 24:])
    assert (result[:, :, :24] != VIDEO[:, :, :24]).mean() > 0.9


def test_loading_what_was_saved_says_nothing(
    full_size_layout: Path, tmp_path: Path, components: dict[str, Any], all_logs: pytest.LogCaptureFixture
) -> None:
    GroundAVideoPipeline(**components).save_pretrained(tmp_path)
    all_logs.clear()
    GroundAVideoPipeline.from_pretrained(tmp_path)
    GroundAVideoPipeline.from_pretrained(tmp_path, controlnet=components["controlnet"])
    assert [record.message for record in all_logs.records if record.levelno >= logging.WARNING] == []


def test_the_components_of_another_pipeline_can_be_taken(components: dict[str, Any]) -> None:
    names = ("vae", "text_encoder", "tokenizer", "unet", "scheduler")
    other = StableDiffusionPipeline(
        **{name: components[name] for name in names}, safety_checker=None, feature_extractor=None,
        requires_safety_checker=False,
    )  # fmt: skip
    pipe = GroundAVideoPipeline.from_pipe(other, controlnet=components["controlnet"])
    assert all(getattr(pipe, name) is components[name] for name in (*names, "controlnet"))
    np.testing.assert_array_equal(edit(pipe, DEPTH), edit(GroundAVideoPipeline(**components), DEPTH))
