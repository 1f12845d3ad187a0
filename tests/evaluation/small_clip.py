"""Folders of CLIPs as transformers saves them: a small one with random weights, and the one trained on sprites."""

from pathlib import Path

import torch
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPProcessor,
    CLIPTextConfig,
    CLIPTokenizer,
    CLIPVisionConfig,
)

from diffusers_groundavideo.spriteworld import mini_checkpoint
from small_checkpoint import build_tokenizer


TRAINED_CLIP = Path(__file__).parents[2] / "examples" / "train_spriteworld" / "finished" / "clip"


def save_random_clip(folder: Path) -> Path:
    """Images of 32x32 and texts to 16 dimensions; what comes in shows in what comes out."""
    tokenizer = build_tokenizer()
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    vision = CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=32,
        patch_size=8,
    )
    torch.manual_seed(0)
    model = CLIPModel(CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=16))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "projection" in name or "embedding" in name:
                # With the initial ones, all pictures are nearly alike.
                parameter.normal_(std=0.5)
    return _save(folder, model, 32, tokenizer)


def save_sprite_clip(folder: Path) -> Path:
    """Trained on sprites: images of 64x64 and texts to 64 dimensions."""
    tokenizer = CLIPTokenizer.from_pretrained(mini_checkpoint() / "tokenizer")
    return _save(folder, CLIPModel.from_pretrained(TRAINED_CLIP), 64, tokenizer)


def _save(folder: Path, model: CLIPModel, side: int, tokenizer: CLIPTokenizer) -> Path:
    image_processor = CLIPImageProcessor(
        size={"shortest_edge": side},
        crop_size={"height": side, "width": side},
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.5, 0.5, 0.5],
    )
    model.eval().save_pretrained(folder)
    CLIPProcessor(image_processor, tokenizer).save_pretrained(folder)
    return folder
