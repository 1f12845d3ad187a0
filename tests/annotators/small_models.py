"""Annotators' models: the real classes at small size with random weights, saved as their own checkpoints are.

They find nothing sensible. What they share with trained ones: every class, key name and file, and that the picture and
the words change the result.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import (
    BertConfig,
    BertTokenizer,
    CLIPTokenizer,
    DepthAnythingConfig,
    DepthAnythingForDepthEstimation,
    DPTConfig,
    DPTForDepthEstimation,
    DPTImageProcessor,
    EdgeTamVideoConfig,
    EdgeTamVideoModel,
    GroundingDinoConfig,
    GroundingDinoForObjectDetection,
    GroundingDinoImageProcessor,
    GroundingDinoProcessor,
    MMGroundingDinoConfig,
    MMGroundingDinoForObjectDetection,
    Owlv2Config,
    Owlv2ForObjectDetection,
    Owlv2ImageProcessor,
    Owlv2Processor,
    OwlViTConfig,
    OwlViTForObjectDetection,
    OwlViTImageProcessor,
    OwlViTProcessor,
    Sam2ImageProcessor,
    Sam2VideoConfig,
    Sam2VideoModel,
    Sam2VideoProcessor,
    Sam2VideoVideoProcessor,
    ZoeDepthConfig,
    ZoeDepthForDepthEstimation,
    ZoeDepthImageProcessor,
)

from small_checkpoint import build_vocabulary


def bert_vocabulary() -> dict[str, int]:
    """A vocabulary laid out as bert-base-uncased's where GroundingDINO knows ids by heart: 101, 102, 1012, 1029."""
    tokens = [f"[unused{index}]" for index in range(1100)]
    for index, token in {0: "[PAD]", 100: "[UNK]", 101: "[CLS]", 102: "[SEP]", 103: "[MASK]"}.items():
        tokens[index] = token
    letters = "abcdefghijklmnopqrstuvwxyz0123456789"
    for index, token in enumerate([*letters, *(f"##{letter}" for letter in letters), "rabbit", "red", "apple"]):
        tokens[200 + index] = token
    tokens[1012], tokens[1029] = ".", "?"
    return {token: index for index, token in enumerate(tokens)}


def save_grounding_dino(folder: Path, kind: str = "grounding-dino") -> Path:
    text_config = BertConfig(
        vocab_size=len(bert_vocabulary()),
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=4,
        intermediate_size=64,
        pad_token_id=0,
    )
    backbone_config = {
        "model_type": "swin",
        "image_size": 64,
        "embed_dim": 16,
        "depths": [1, 1, 1],
        "num_heads": [1, 2, 4],
        "window_size": 4,
        "out_features": ["stage2", "stage3"],
    }
    sizes: dict[str, Any] = {
        "backbone_config": backbone_config,
        "text_config": text_config,
        "d_model": 32,
        "encoder_layers": 1,
        "decoder_layers": 2,
        "encoder_ffn_dim": 64,
        "decoder_ffn_dim": 64,
        "encoder_attention_heads": 4,
        "decoder_attention_heads": 4,
        "num_queries": 20,
        "num_feature_levels": 3,
        "max_text_len": 48,
    }
    model: Any
    if kind == "grounding-dino":
        model = GroundingDinoForObjectDetection(GroundingDinoConfig(**sizes))
    else:
        model = MMGroundingDinoForObjectDetection(MMGroundingDinoConfig(**sizes))
    image_processor = GroundingDinoImageProcessor(size={"shortest_edge": 96, "longest_edge": 160})
    tokenizer = BertTokenizer(vocab=bert_vocabulary())
    with torch.no_grad():
        for parameter in model.bbox_embed.parameters():
            # New boxes are the proposals themselves, of one size.
            parameter.add_(0.3 * torch.randn_like(parameter))
    return _save(folder, model, GroundingDinoProcessor(image_processor, tokenizer))


def save_mm_grounding_dino(folder: Path) -> Path:
    return save_grounding_dino(folder, "mm-grounding-dino")


def save_owl(folder: Path, kind: str = "owlv2") -> Path:
    vocabulary = build_vocabulary()
    sizes: dict[str, Any] = {
        "text_config": {
            "vocab_size": len(vocabulary),
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "max_position_embeddings": 16,
            "bos_token_id": vocabulary["<|startoftext|>"],
            "eos_token_id": vocabulary["<|endoftext|>"],
            "pad_token_id": vocabulary["<|endoftext|>"],
        },
        "vision_config": {
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "image_size": 64,
            "patch_size": 16,
        },
        "projection_dim": 32,
    }
    tokenizer = CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=16)
    size = {"height": 64, "width": 64}
    model: Any
    processor: Any
    if kind == "owlv2":
        model = Owlv2ForObjectDetection(Owlv2Config(**sizes))
        processor = Owlv2Processor(Owlv2ImageProcessor(size=size), tokenizer)
    else:
        model = OwlViTForObjectDetection(OwlViTConfig(**sizes))
        processor = OwlViTProcessor(OwlViTImageProcessor(size=size), tokenizer)
    with torch.no_grad():
        # Else the boxes saturate at the borders.
        model.box_head.dense2.weight.mul_(0.02)
        model.box_head.dense2.bias.zero_()
    return _save(folder, model, processor)


def save_owlvit(folder: Path) -> Path:
    return save_owl(folder, "owlvit")


DETECTORS: dict[str, Callable[[Path], Path]] = {
    "grounding-dino": save_grounding_dino,
    "mm-grounding-dino": save_mm_grounding_dino,
    "owlv2": save_owl,
    "owlvit": save_owlvit,
}


def lively(model: torch.nn.Module) -> torch.nn.Module:
    """The model with weights that pass on what comes in: with its own, depth would be flat to the last digits."""
    for module in model.modules():
        if isinstance(module, (torch.nn.Linear, torch.nn.Conv2d, torch.nn.ConvTranspose2d)):
            torch.nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            # As much as it takes; more would pass on the rounding of one batch size or another as well.
            module.weight.data.mul_(0.85)
    return model


def save_depth_anything(folder: Path, estimation: str = "relative") -> Path:
    backbone = {
        "model_type": "dinov2",
        "image_size": 56,
        "patch_size": 14,
        "hidden_size": 32,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "out_features": ["stage1", "stage2", "stage3", "stage4"],
        "reshape_hidden_states": False,
    }
    config = DepthAnythingConfig(
        backbone_config=backbone,
        reassemble_hidden_size=32,
        neck_hidden_sizes=[8, 8, 16, 16],
        fusion_hidden_size=16,
        head_hidden_size=8,
        depth_estimation_type=estimation,
        max_depth=20 if estimation == "metric" else 1,
    )
    processor = DPTImageProcessor(size={"height": 56, "width": 56}, keep_aspect_ratio=True, ensure_multiple_of=14)
    return _save(folder, lively(DepthAnythingForDepthEstimation(config)), processor)


def save_depth_anything_metric(folder: Path) -> Path:
    return save_depth_anything(folder, "metric")


def save_dpt(folder: Path) -> Path:
    config = DPTConfig(
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=64,
        image_size=64,
        patch_size=16,
        backbone_out_indices=[0, 1, 2, 3],
        neck_hidden_sizes=[8, 8, 16, 16],
        fusion_hidden_size=16,
    )
    return _save(folder, lively(DPTForDepthEstimation(config)), DPTImageProcessor(size={"height": 64, "width": 64}))


def save_zoedepth(folder: Path) -> Path:
    config = ZoeDepthConfig(
        backbone_config={
            "model_type": "beit",
            "image_size": 64,
            "patch_size": 16,
            "hidden_size": 32,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "intermediate_size": 64,
            "use_relative_position_bias": True,
            "out_features": ["stage1", "stage2", "stage3", "stage4"],
            "reshape_hidden_states": False,
        },
        neck_hidden_sizes=[8, 8, 16, 16],
        fusion_hidden_size=16,
        bottleneck_features=16,
        num_relative_features=8,
        bin_embedding_dim=16,
        num_attractors=[4, 2, 2, 1],
        bin_configurations=[{"n_bins": 8, "min_depth": 0.001, "max_depth": 10.0, "name": "nyu"}],
    )
    processor = ZoeDepthImageProcessor(size={"height": 64, "width": 64}, ensure_multiple_of=32)
    return _save(folder, lively(ZoeDepthForDepthEstimation(config)), processor)


DEPTH_MODELS: dict[str, Callable[[Path], Path]] = {
    "depth-anything": save_depth_anything,
    "depth-anything-metric": save_depth_anything_metric,
    "dpt": save_dpt,
    "zoedepth": save_zoedepth,
}


def _save(folder: Path, model: Any, processor: Any) -> Path:
    model.eval().save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def save_sam2_video(folder: Path) -> Path:
    config = Sam2VideoConfig(
        vision_config={
            "model_type": "sam2_vision_model",
            "backbone_config": {
                "model_type": "sam2_hiera_det_model",
                "hidden_size": 8,
                "image_size": [128, 128],
                "blocks_per_stage": [1, 1, 2, 1],
                "embed_dim_per_stage": [8, 16, 32, 64],
                "num_attention_heads_per_stage": [1, 1, 2, 2],
                "window_size_per_stage": [4, 4, 4, 4],
                "global_attention_blocks": [3],
                "window_positional_embedding_background_size": [4, 4],
            },
            "backbone_channel_list": [64, 32, 16, 8],
            "backbone_feature_sizes": [[32, 32], [16, 16], [8, 8]],
            "fpn_hidden_size": 128,
        },
        **_video_segmenter_sizes(),
        memory_attention_feed_forward_hidden_size=64,
    )
    return _save(folder, Sam2VideoModel(config), _video_segmenter_processor())


def save_edgetam_video(folder: Path) -> Path:
    config = EdgeTamVideoConfig(
        vision_config={
            "model_type": "edgetam_vision_model",
            "backbone_config": {
                "model_type": "timm_wrapper",
                "architecture": "repvit_m1",
                "num_classes": 2,
                "model_args": {"in_chans": 3, "features_only": True, "out_indices": [0, 1, 2, 3]},
            },
            "backbone_channel_list": [384, 192, 96, 48],
            "backbone_feature_sizes": [[32, 32], [16, 16], [8, 8]],
            "fpn_hidden_size": 128,
        },
        **_video_segmenter_sizes(),
        memory_attention_mlp_hidden_size=64,
        memory_attention_rope_k_sizes=[4, 4],
        perceiver_resampler_num_latents=16,
        perceiver_resampler_num_latents_2d=16,
        perceiver_resampler_hidden_size=64,
        perceiver_resampler_mlp_intermediate_size=32,
        perceiver_resampler_attention_head_dim=64,
    )
    return _save(folder, EdgeTamVideoModel(config), _video_segmenter_processor())


def _video_segmenter_sizes() -> dict[str, Any]:
    return {
        "prompt_encoder_config": {"hidden_size": 128, "image_size": 128, "patch_size": 16},
        "mask_decoder_config": {"hidden_size": 128, "mlp_dim": 64, "num_attention_heads": 2},
        "image_size": 128,
        "memory_attention_hidden_size": 128,
        "memory_attention_num_layers": 1,
        "memory_attention_rope_feat_sizes": [8, 8],
        "memory_encoder_hidden_size": 128,
        "memory_encoder_output_channels": 64,
        "mask_downsampler_embed_dim": 128,
        "memory_fuser_embed_dim": 128,
        "memory_fuser_intermediate_dim": 64,
    }


def _video_segmenter_processor() -> Sam2VideoProcessor:
    sizes: dict[str, Any] = {"size": {"height": 128, "width": 128}, "mask_size": {"height": 32, "width": 32}}
    return Sam2VideoProcessor(Sam2ImageProcessor(**sizes), Sam2VideoVideoProcessor(**sizes))


SEGMENTERS: dict[str, Callable[[Path], Path]] = {
    "sam2-video": save_sam2_video,
    "edgetam-video": save_edgetam_video,
}
