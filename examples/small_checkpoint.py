"""Checkpoints of the real classes at small size with random weights, for tests and for trying out the code.

They edit nothing sensible. What they share with trained ones: every class, key name and file, and that each input (the
prompt, phrases, boxes, mask and depth) changes the result.
"""

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, ControlNetModel, DDIMScheduler, PNDMScheduler, UNet2DConditionModel
from diffusers.models.attention import GatedSelfAttentionDense
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from transformers import (
    CLIPConfig,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    CLIPVisionConfig,
)


VAE_SCALE_FACTOR = 8
# As Stable Diffusion 1.4 was trained.
NOISE_SCHEDULE: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "set_alpha_to_one": False,
    "steps_offset": 1,
}


def build_vocabulary() -> dict[str, int]:
    """CLIP's byte-level vocabulary before its first merge: each byte, each byte that ends a word, start and end.

    Returns:
        The 514 tokens with their ids. Without merges a word becomes one token a byte.
    """
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    # CLIP writes the other bytes, in order, as the characters from 256 on.
    characters = [chr(byte) for byte in printable] + [chr(256 + index) for index in range(256 - len(printable))]
    tokens = [*characters, *(f"{character}</w>" for character in characters), "<|startoftext|>", "<|endoftext|>"]
    return {token: index for index, token in enumerate(tokens)}


def build_tokenizer() -> CLIPTokenizer:
    return CLIPTokenizer(vocab=build_vocabulary(), merges=[], model_max_length=77)


def build_text_encoder() -> CLIPTextModel:
    """(B, 77) token ids to (B, 77, 32)."""
    vocab = build_vocabulary()
    config = CLIPTextConfig(
        vocab_size=len(vocab),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=77,
        projection_dim=32,
        # CLIP's usual deviation of 0.02 is made for 768 channels: at 32 all prompts would look alike.
        initializer_factor=5.0,
        bos_token_id=vocab["<|startoftext|>"],
        eos_token_id=vocab["<|endoftext|>"],
        pad_token_id=vocab["<|endoftext|>"],
    )
    return CLIPTextModel(config).eval()


def build_vae() -> AutoencoderKL:
    """(B, 3, H, W) to latents (B, 4, H/8, W/8)."""
    return AutoencoderKL(
        block_out_channels=(8, 8, 16, 16),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=64,
        scaling_factor=0.18215,
    ).eval()


def build_unet(in_channels: int = 9) -> UNet2DConditionModel:
    """A gated UNet for latents (B, 4, h, w), h and w even, prompts (B, 77, 32) and phrases (B, N, 32); gates open.

    Args:
        in_channels: 9 for an inpainting UNet, 4 for a generation UNet.
    """
    unet = UNet2DConditionModel(
        sample_size=8,
        in_channels=in_channels,
        out_channels=4,
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=8,
        attention_head_dim=4,
        cross_attention_dim=32,
        attention_type="gated",
    ).eval()
    for module in unet.modules():
        if isinstance(module, torch.nn.Linear):
            # PyTorch's own start shrinks what passes: after the position net, a box would change the noise by 1e-5.
            torch.nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        if isinstance(module, GatedSelfAttentionDense):
            # Gates start closed: a new gated UNet is one without grounding.
            torch.nn.init.constant_(module.alpha_attn, 0.5)
            torch.nn.init.constant_(module.alpha_dense, 0.5)
    return unet


def build_controlnet() -> ControlNetModel:
    """A ControlNet for `build_unet`, conditioned on pictures (B, 3, H, W) in [0, 1], that has effect."""
    controlnet = ControlNetModel(
        in_channels=4,
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        norm_num_groups=8,
        attention_head_dim=4,
        cross_attention_dim=32,
        conditioning_embedding_out_channels=(8, 16, 16, 16),
    ).eval()
    # A new ControlNet ends in zeros everywhere and adds nothing; its embedding would shrink what passes to nothing.
    outputs = torch.nn.ModuleList([*controlnet.controlnet_down_blocks, controlnet.controlnet_mid_block])
    for module in (*controlnet.controlnet_cond_embedding.modules(), *outputs.modules()):
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    return controlnet


def build_components(in_channels: int = 9, seed: int = 0) -> dict[str, Any]:
    """The components of a small `GroundAVideoPipeline`, on the CPU, in fp32 and in evaluation mode.

    Args:
        in_channels: of the UNet: 9 for inpainting, 4 for generation.
        seed: of the random weights; the global random state is left as it was.

    Returns:
        `vae, text_encoder, tokenizer, unet, scheduler, controlnet` by name.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return {
            "vae": build_vae(),
            "text_encoder": build_text_encoder(),
            "tokenizer": build_tokenizer(),
            "unet": build_unet(in_channels),
            "scheduler": DDIMScheduler(**NOISE_SCHEDULE, clip_sample=False),
            "controlnet": build_controlnet(),
        }


def save_checkpoint(folder: str | Path, in_channels: int = 9, seed: int = 0, controlnet: bool = True) -> Path:
    """Saves a small checkpoint as `GroundAVideoPipeline.save_pretrained` does, without the pipeline.

    Args:
        folder: where to; made if it is not there.
        in_channels, seed: as in `build_components`.
        controlnet: whether there is one.

    Returns:
        The folder.
    """
    folder = Path(folder)
    components = build_components(in_channels, seed)
    index: dict[str, Any] = {"_class_name": "GroundAVideoPipeline"}
    for name, component in components.items():
        if name == "controlnet" and not controlnet:
            index[name] = [None, None]
            continue
        component.save_pretrained(folder / name)
        index[name] = [type(component).__module__.partition(".")[0], type(component).__name__]
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
    return folder


def save_full_size_layout(folder: str | Path, in_channels: int = 9, seed: int = 0) -> Path:
    """Saves a small checkpoint file by file as GLIGEN's are published for Stable Diffusion 1.4.

    That is: a `StableDiffusionGLIGENPipeline` without ControlNet, with a PNDM scheduler, a safety checker and a slow
    tokenizer's files; pickled weights in fp32 and, as variant "fp16", in half precision; a text encoder with the key
    names of older CLIP models.

    Args:
        folder: where to; made if it is not there.
        in_channels: 9 as `masterful/gligen-1-4-inpainting-text-box`, 4 as `masterful/gligen-1-4-generation-text-box`.
        seed: as in `build_components`.

    Returns:
        The folder.
    """
    folder = Path(folder)
    components = build_components(in_channels, seed)

    for name in ("vae", "unet"):
        components[name].save_config(folder / name)
        _save_pickled(components[name].state_dict(), folder / name / "diffusion_pytorch_model")

    text_encoder = components["text_encoder"]
    text_encoder.config.architectures = ["CLIPTextModel"]
    text_encoder.config.save_pretrained(folder / "text_encoder")
    # Newer versions of CLIPTextModel have no `text_model` in their key names, older ones have.
    weights = {
        f"text_model.{key.removeprefix('text_model.')}": value for key, value in text_encoder.state_dict().items()
    }
    weights["text_model.embeddings.position_ids"] = torch.arange(77)[None]
    _save_pickled(weights, folder / "text_encoder" / "pytorch_model")

    _save_slow_tokenizer(folder / "tokenizer")
    PNDMScheduler(**NOISE_SCHEDULE, skip_prk_steps=True).save_config(folder / "scheduler")
    scheduler_file = folder / "scheduler" / "scheduler_config.json"
    # Stable Diffusion 1.4 came out before some of the keys, and with one that PNDM does not know.
    scheduler = json.loads(scheduler_file.read_text())
    for key in ("prediction_type", "timestep_spacing"):
        del scheduler[key]
    scheduler["clip_sample"] = False
    scheduler_file.write_text(json.dumps(scheduler, indent=2) + "\n")

    feature_extractor = {
        "crop_size": {"height": 32, "width": 32},
        "do_center_crop": True,
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "feature_extractor_type": "CLIPFeatureExtractor",
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_processor_type": "CLIPImageProcessor",
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "resample": 3,
        "rescale_factor": 0.00392156862745098,
        "size": {"shortest_edge": 32},
    }
    (folder / "feature_extractor").mkdir()
    (folder / "feature_extractor" / "preprocessor_config.json").write_text(
        json.dumps(feature_extractor, indent=2) + "\n"
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        safety_checker = StableDiffusionSafetyChecker(
            CLIPConfig(
                text_config={"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4},
                vision_config=CLIPVisionConfig(
                    hidden_size=32,
                    intermediate_size=64,
                    num_hidden_layers=1,
                    num_attention_heads=4,
                    image_size=32,
                    patch_size=16,
                    projection_dim=32,
                ).to_dict(),
                projection_dim=32,
            )
        )
    safety_checker.config.architectures = ["StableDiffusionSafetyChecker"]
    safety_checker.config.save_pretrained(folder / "safety_checker")
    _save_pickled(safety_checker.state_dict(), folder / "safety_checker" / "pytorch_model")

    index = {
        "_class_name": "StableDiffusionGLIGENPipeline",
        "_diffusers_version": "0.21.0.dev0",
        "feature_extractor": ["transformers", "CLIPImageProcessor"],
        "requires_safety_checker": True,
        "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
        "scheduler": ["diffusers", "PNDMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
    return folder


def _save_pickled(state_dict: dict[str, torch.Tensor], path: Path) -> None:
    """Writes `path` + ".bin" and ".fp16.bin"; whole numbers keep their type."""
    torch.save(state_dict, path.with_name(f"{path.name}.bin"))
    half = {key: value.half() if value.is_floating_point() else value for key, value in state_dict.items()}
    torch.save(half, path.with_name(f"{path.name}.fp16.bin"))


def _save_slow_tokenizer(folder: Path) -> None:
    """The four files of a CLIP tokenizer that has no `tokenizer.json`."""
    folder.mkdir(parents=True)
    (folder / "vocab.json").write_text(json.dumps(build_vocabulary(), ensure_ascii=False), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
    special_tokens = {
        "bos_token": "<|startoftext|>",
        "eos_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
        "unk_token": "<|endoftext|>",
    }
    (folder / "special_tokens_map.json").write_text(json.dumps(special_tokens, indent=2) + "\n")
    settings = {
        **special_tokens,
        "add_prefix_space": False,
        "do_lower_case": True,
        "errors": "replace",
        "model_max_length": 77,
        "tokenizer_class": "CLIPTokenizer",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")
