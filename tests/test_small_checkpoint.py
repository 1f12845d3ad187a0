"""The random checkpoints the other tests stand on: they load as published ones do, and every input has effect."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, ControlNetModel, DDIMScheduler, PNDMScheduler, UNet2DConditionModel
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from transformers import CLIPImageProcessor, CLIPTextModel, CLIPTokenizer

from small_checkpoint import NOISE_SCHEDULE, VAE_SCALE_FACTOR, build_components, save_checkpoint


MODELS = {
    "vae": AutoencoderKL,
    "unet": UNet2DConditionModel,
    "controlnet": ControlNetModel,
    "text_encoder": CLIPTextModel,
}


def assert_same_weights(first: torch.nn.Module, second: torch.nn.Module, dtype: torch.dtype = torch.float32) -> None:
    expected = {key: value.to(dtype) for key, value in second.state_dict().items()}
    found = first.state_dict()
    assert found.keys() == expected.keys()
    for key, value in found.items():
        assert value.dtype == dtype
        assert torch.equal(value, expected[key]), key


def predict_noise(components: dict[str, Any], **changes: torch.Tensor) -> torch.Tensor:
    """One forward pass of ControlNet and UNet, (1, 4, 8, 8), with some of its inputs changed."""
    generator = torch.Generator().manual_seed(0)
    unet, controlnet = components["unet"], components["controlnet"]
    inputs: dict[str, torch.Tensor] = {
        "sample": torch.randn(1, unet.config.in_channels, 8, 8, generator=generator),
        "prompt": torch.randn(1, 77, 32, generator=generator),
        "boxes": torch.tensor([[[0.1, 0.2, 0.5, 0.6], [0.5, 0.5, 1.0, 1.0]]]),
        "masks": torch.ones(1, 2),
        "phrases": torch.randn(1, 2, 32, generator=generator),
        "depth": torch.rand(1, 3, 64, 64, generator=generator),
        **changes,
    }
    with torch.no_grad():
        down, mid = controlnet(
            inputs["sample"][:, :4], 500, inputs["prompt"], controlnet_cond=inputs["depth"], return_dict=False
        )
        gligen = {"boxes": inputs["boxes"], "masks": inputs["masks"], "positive_embeddings": inputs["phrases"]}
        return unet(
            inputs["sample"],
            500,
            inputs["prompt"],
            cross_attention_kwargs={"gligen": gligen},
            down_block_additional_residuals=down,
            mid_block_additional_residual=mid,
        ).sample


@pytest.mark.parametrize("in_channels", [9, 4])
def test_a_seed_gives_the_same_weights_and_touches_no_other_state(in_channels: int) -> None:
    state = torch.random.get_rng_state()
    first, second, other = (build_components(in_channels, seed) for seed in (0, 0, 1))
    assert torch.equal(torch.random.get_rng_state(), state)
    for name in MODELS:
        assert_same_weights(first[name], second[name])
        key = next(key for key in first[name].state_dict() if key.endswith("weight"))
        assert not torch.equal(first[name].state_dict()[key], other[name].state_dict()[key])
    assert predict_noise(first).shape == (1, 4, 8, 8)


@pytest.mark.parametrize(
    "changes",
    [
        {"boxes": torch.tensor([[[0.6, 0.2, 1.0, 0.6], [0.5, 0.5, 1.0, 1.0]]])},
        {"masks": torch.tensor([[1.0, 0.0]])},
        {"phrases": torch.zeros(1, 2, 32)},
        {"prompt": torch.zeros(1, 77, 32)},
        {"depth": torch.zeros(1, 3, 64, 64)},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_every_input_changes_the_noise(components: dict[str, Any], changes: dict[str, torch.Tensor]) -> None:
    before, after = predict_noise(components), predict_noise(components, **changes)
    assert before.isfinite().all()
    assert 0.02 < (before - after).std() / before.std() < 2


def test_the_mask_and_the_kept_picture_change_the_noise(components: dict[str, Any]) -> None:
    sample = torch.randn(1, 9, 8, 8, generator=torch.Generator().manual_seed(0))
    before = predict_noise(components, sample=sample)
    for channels in (slice(4, 8), slice(8, 9)):
        changed = sample.clone()
        changed[:, channels] = 0
        assert (before - predict_noise(components, sample=changed)).std() > 0.02 * before.std()


def test_phrases_differ(components: dict[str, Any]) -> None:
    phrases = ["rabbit", "squirrel", "a watermelon on the table", ""]
    tokens = components["tokenizer"](phrases, padding="max_length", return_tensors="pt")
    assert tokens.input_ids.shape == (4, 77)
    with torch.no_grad():
        encoded = components["text_encoder"](tokens.input_ids)
    for pooled, hidden, ids in zip(encoded.pooler_output, encoded.last_hidden_state, tokens.input_ids):
        # Pooled at the first end of text, not at the last of the padding.
        assert torch.equal(pooled, hidden[ids.tolist().index(components["tokenizer"].eos_token_id)])
    distances = torch.cdist(encoded.pooler_output, encoded.pooler_output)
    assert distances[~torch.eye(4, dtype=torch.bool)].min() > 1


def test_tokenizer_writes_all_that_it_reads(components: dict[str, Any]) -> None:
    tokenizer = components["tokenizer"]
    text = "a ruddy shelduck, 3 ümlauts & 雪"
    ids = tokenizer(text).input_ids
    assert tokenizer.decode(ids, skip_special_tokens=True).replace(" ", "") == text.replace(" ", "")
    assert ids[0] == tokenizer.bos_token_id and ids.count(tokenizer.eos_token_id) == 1
    assert len(tokenizer("word " * 50, truncation=True).input_ids) == tokenizer.model_max_length == 77


def test_the_vae_is_eight_times_smaller(components: dict[str, Any]) -> None:
    with torch.no_grad():
        latents = components["vae"].encode(torch.rand(2, 3, 48, 64)).latent_dist.mean
        assert latents.shape == (2, 4, 48 // VAE_SCALE_FACTOR, 64 // VAE_SCALE_FACTOR)
        assert components["vae"].decode(latents).sample.shape == (2, 3, 48, 64)
    assert latents.std() > 0.01


def test_a_saved_checkpoint_loads(small_checkpoint: Path, components: dict[str, Any]) -> None:
    for name, model_class in MODELS.items():
        assert_same_weights(model_class.from_pretrained(small_checkpoint / name), components[name])
    scheduler = DDIMScheduler.from_pretrained(small_checkpoint / "scheduler")
    assert {key: scheduler.config[key] for key in NOISE_SCHEDULE} == NOISE_SCHEDULE
    assert not scheduler.config.clip_sample
    tokenizer = CLIPTokenizer.from_pretrained(small_checkpoint / "tokenizer")
    assert tokenizer("a cat").input_ids == components["tokenizer"]("a cat").input_ids
    index = json.loads((small_checkpoint / "model_index.json").read_text())
    assert index["_class_name"] == "GroundAVideoPipeline"
    assert index["text_encoder"] == ["transformers", "CLIPTextModel"]
    assert index["controlnet"] == ["diffusers", "ControlNetModel"]


def test_a_checkpoint_without_controlnet(tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path / "checkpoint", in_channels=4, controlnet=False)
    assert json.loads((folder / "model_index.json").read_text())["controlnet"] == [None, None]
    assert not (folder / "controlnet").exists()
    assert UNet2DConditionModel.from_pretrained(folder / "unet").config.in_channels == 4


@pytest.mark.parametrize(("variant", "dtype"), [(None, torch.float32), ("fp16", torch.float16)])
def test_the_published_layout_loads(
    full_size_layout: Path, components: dict[str, Any], variant: str | None, dtype: torch.dtype
) -> None:
    for name in ("vae", "unet", "text_encoder"):
        model = MODELS[name].from_pretrained(full_size_layout / name, variant=variant, dtype=dtype)
        assert_same_weights(model, components[name], dtype)
    StableDiffusionSafetyChecker.from_pretrained(full_size_layout / "safety_checker", variant=variant, dtype=dtype)


def test_the_published_layout_is_that_of_older_versions(full_size_layout: Path) -> None:
    files = {str(file.relative_to(full_size_layout)) for file in full_size_layout.rglob("*") if file.is_file()}
    assert files == {
        "model_index.json",
        "feature_extractor/preprocessor_config.json",
        "safety_checker/config.json",
        "safety_checker/pytorch_model.bin",
        "safety_checker/pytorch_model.fp16.bin",
        "scheduler/scheduler_config.json",
        "text_encoder/config.json",
        "text_encoder/pytorch_model.bin",
        "text_encoder/pytorch_model.fp16.bin",
        "tokenizer/merges.txt",
        "tokenizer/special_tokens_map.json",
        "tokenizer/tokenizer_config.json",
        "tokenizer/vocab.json",
        "unet/config.json",
        "unet/diffusion_pytorch_model.bin",
        "unet/diffusion_pytorch_model.fp16.bin",
        "vae/config.json",
        "vae/diffusion_pytorch_model.bin",
        "vae/diffusion_pytorch_model.fp16.bin",
    }
    keys = torch.load(full_size_layout / "text_encoder" / "pytorch_model.bin", weights_only=True).keys()
    assert "text_model.embeddings.position_ids" in keys
    assert all(key.startswith("text_model.") for key in keys)


def test_the_published_tokenizer_and_scheduler_load(full_size_layout: Path, components: dict[str, Any]) -> None:
    tokenizer = CLIPTokenizer.from_pretrained(full_size_layout / "tokenizer")
    text = "a rabbit is eating a watermelon"
    arguments: dict[str, Any] = {"padding": "max_length", "truncation": True}
    assert tokenizer(text, **arguments).input_ids == components["tokenizer"](text, **arguments).input_ids
    assert tokenizer.model_max_length == 77
    scheduler = PNDMScheduler.from_pretrained(full_size_layout / "scheduler")
    assert scheduler.config.steps_offset == 1
    assert torch.equal(scheduler.alphas_cumprod, components["scheduler"].alphas_cumprod)
    assert CLIPImageProcessor.from_pretrained(full_size_layout / "feature_extractor").crop_size["height"] == 32
