"""Weights of transformers' GroundingDINO under the names that the original package gives them."""

import re

import torch


_FFN = {"fc1": "linear1", "fc2": "linear2"}
# What the parts of the model are called here and there, and the modules in each; the first that fits counts.
_PARTS: dict[str, tuple[str, dict[str, str]]] = {
    r"model\.backbone\.conv_encoder\.model\.embeddings\.": (
        "backbone.0.patch_embed.",
        {"patch_embeddings.projection": "proj"},
    ),
    r"model\.backbone\.conv_encoder\.model\.encoder\.": (
        "backbone.0.",
        {
            "layernorm_before": "norm1",
            "layernorm_after": "norm2",
            "attention.self": "attn",
            "attention.output.dense": "attn.proj",
            "intermediate.dense": "mlp.fc1",
            "output.dense": "mlp.fc2",
        },
    ),
    r"model\.backbone\.conv_encoder\.model\.hidden_states_norms\.": (
        "backbone.0.",
        {"stage2": "norm1", "stage3": "norm2", "stage4": "norm3"},
    ),
    r"model\.input_proj_vision\.": ("input_proj.", {}),
    r"model\.text_backbone\.": ("bert.", {}),
    r"model\.text_projection\.": ("feat_map.", {}),
    r"model\.encoder\.layers\.(\d+)\.text_enhancer_layer\.": (
        r"transformer.encoder.text_layers.\1.",
        {"layer_norm_before": "norm1", "layer_norm_after": "norm2", **_FFN},
    ),
    r"model\.encoder\.layers\.(\d+)\.fusion_layer\.": (
        r"transformer.encoder.fusion_layers.\1.",
        {
            "vision_param": "gamma_v",
            "text_param": "gamma_l",
            "layer_norm_vision": "layer_norm_v",
            "layer_norm_text": "layer_norm_l",
            "vision_proj": "v_proj",
            "text_proj": "l_proj",
        },
    ),
    r"model\.encoder\.layers\.(\d+)\.deformable_layer\.": (
        r"transformer.encoder.layers.\1.",
        {"self_attn_layer_norm": "norm1", "final_layer_norm": "norm2", **_FFN},
    ),
    r"model\.decoder\.layers\.": (
        "transformer.decoder.layers.",
        {
            "encoder_attn_text_layer_norm": "catext_norm",
            "encoder_attn_text": "ca_text",
            "encoder_attn_layer_norm": "norm1",
            "encoder_attn": "cross_attn",
            "self_attn_layer_norm": "norm2",
            "final_layer_norm": "norm3",
            **_FFN,
        },
    ),
    r"model\.": (
        "transformer.",
        {
            "query_position_embeddings": "tgt_embed",
            "encoder_output_bbox_embed": "enc_out_bbox_embed",
            "reference_points_head": "ref_point_head",
            "decoder.layer_norm": "decoder.norm",
        },
    ),
}
# Queries, keys and values are three matrices here and one there.
_FUSED = {r"backbone\..*\.attn\.query\.": "qkv.", r"transformer\..*\.query\.": "in_proj_"}


def with_original_names(checkpoint: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What is in a file of weights of a `GroundingDinoForObjectDetection` on Swin, as groundingdino-py 0.4.0 names it.

    Left out is the norm at the end of the backbone, which the detector does not use and the package does not have.
    """
    weights = {_renamed(name): tensor for name, tensor in checkpoint.items() if ".swin.layernorm." not in name}
    for name in list(weights):
        for pattern, fused in _FUSED.items():
            if re.match(pattern, name):
                parts = [name.replace(".query.", part) for part in (".query.", ".key.", ".value.")]
                weights[name.replace("query.", fused)] = torch.cat([weights.pop(part) for part in parts])
    return weights


def _renamed(name: str) -> str:
    for pattern, (part, modules) in _PARTS.items():
        found = re.match(pattern, name)
        if found:
            rest = name[found.end() :]
            for module, original in modules.items():
                rest = rest.replace(module, original)
            return found.expand(part) + rest
    return name
