"""Parity with the published implementation, on a tiny random model.

`tests/fixtures/reference` holds its inputs and outputs; the environment variable GROUNDAVIDEO_REFERENCE_DIR names
another folder of the same form, whose sizes may differ. Each stage is fed the stored inputs, so errors do not add up.
"""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import ControlNetModel, DDIMScheduler, UNet2DConditionModel
from safetensors import safe_open
from safetensors.torch import load_file

from diffusers_groundavideo import GroundAVideoPipeline, Inflation, inflated
from diffusers_groundavideo.attention import modulated_text
from diffusers_groundavideo.grounding import position_net_inputs
from diffusers_groundavideo.inversion import DDIMGrid, ddim_inversion, null_text_optimization
from diffusers_groundavideo.smoothing import relative_magnitude, relative_motion_mask, smooth_latents


FIXTURES = Path(__file__).parent / "fixtures" / "reference"
FOLDER = Path(os.environ.get("GROUNDAVIDEO_REFERENCE_DIR", FIXTURES))

BRANCHES = ("cond", "uncond")
PUBLISHED = Inflation.published()


def reference_file(name: str) -> Path:
    return FOLDER / name if (FOLDER / name).exists() else FIXTURES / name


class Reference:
    """The stored vectors, and the pipeline with the stored weights."""

    def __init__(self) -> None:
        vectors = reference_file("reference_vectors.safetensors")
        self.vectors = load_file(vectors)
        with safe_open(vectors, framework="pt") as file:
            self.scalars = file.metadata()
        self.num_steps, self.num_frames = self["blend_noise"].shape[:2]
        blocks = ("CrossAttnDownBlock2D",) * 2
        common: dict[str, Any] = {
            "down_block_types": blocks,
            "block_out_channels": (32, 64),
            "layers_per_block": 1,
            "cross_attention_dim": self["prompt_embeds_edit"].shape[-1],
            "attention_head_dim": 4,
            "norm_num_groups": 32,
        }
        self.unet = UNet2DConditionModel(
            sample_size=self["z0"].shape[-1],
            in_channels=9,
            up_block_types=("CrossAttnUpBlock2D",) * 2,
            attention_type="gated",
            **common,
        ).eval()
        self.unet.load_state_dict(load_file(reference_file("reference_unet.safetensors")))
        self.controlnet = ControlNetModel(conditioning_embedding_out_channels=(8, 16), **common).eval()
        self.controlnet.load_state_dict(load_file(reference_file("reference_controlnet.safetensors")))
        self.pipe = GroundAVideoPipeline(
            vae=None,
            text_encoder=None,
            tokenizer=None,
            unet=self.unet,
            scheduler=self.scheduler(steps_offset=1),
            controlnet=self.controlnet,
        )
        self.pipe.set_progress_bar_config(disable=True)

    def __getitem__(self, name: str) -> torch.Tensor:
        return self.vectors[name]

    @staticmethod
    def scheduler(steps_offset: int) -> DDIMScheduler:
        return DDIMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            clip_sample=False,
            set_alpha_to_one=False,
            steps_offset=steps_offset,
        )

    @property
    def inversion_grid(self) -> DDIMGrid:
        # The published implementation inverts and denoises on grids that lie one timestep apart.
        return DDIMGrid.from_scheduler(self.scheduler(steps_offset=0), self.num_steps)

    def grounding_tokens(self, side: str) -> dict[str, torch.Tensor]:
        present = torch.ones(self["boxes"].shape[:2], dtype=torch.bool)
        return position_net_inputs(self["boxes"], present, self[f"phrase_embeddings_{side}"])

    @property
    def inpainting(self) -> torch.Tensor:
        return torch.cat([self["z0"] * self["inpaint_mask"], self["inpaint_mask"]], dim=1)

    def predict_noise_in_inversion(
        self, latents: torch.Tensor, timestep: int, text: torch.Tensor, frames: torch.Tensor
    ) -> torch.Tensor:
        tokens = {name: value[frames] for name, value in self.grounding_tokens("source").items()}
        return self.pipe.predict_noise(latents, timestep, text, tokens, self.inpainting[frames])

    def branch(self, name: str) -> dict[str, Any]:
        """Text and grounding tokens of a branch at the stored timestep."""
        tokens = self.grounding_tokens("edit")
        if name == "cond":
            return {"text": self["prompt_embeds_edit"], "gligen": tokens}
        return {
            "text": modulated_text(self["null_embeddings"][:1]),
            "gligen": {name: torch.zeros_like(value) for name, value in tokens.items()},
        }

    def noise_pred(self, branch: str, inflation: Inflation = PUBLISHED) -> torch.Tensor:
        with inflated(self.unet, [self.controlnet], self.num_frames, inflation):
            return self.pipe.predict_noise(
                self["x_t"],
                self["timestep"],
                **self.branch(branch),
                inpainting=self.inpainting,
                conditioning_frames=[self["depth"]],
                conditioning_scale=[float(self.scalars["controlnet_conditioning_scale"])],
            )


@pytest.fixture(scope="module")
def reference() -> Reference:
    return Reference()


@pytest.fixture(autouse=True)
def no_grad() -> Any:
    with torch.no_grad():
        yield


def max_error(result: torch.Tensor, expected: torch.Tensor) -> float:
    assert result.shape == expected.shape
    return (result - expected).abs().max().item()


def test_ddim_inversion_gives_the_published_trajectory(reference):
    trajectory = ddim_inversion(
        reference.predict_noise_in_inversion,
        reference["z0"],
        reference["prompt_embeds_empty"][0],
        reference.inversion_grid,
    )
    assert max_error(trajectory, reference["ddim_trajectory"]) <= 1e-5


def test_null_text_optimization_gives_the_published_embeddings(reference):
    null_embeddings = null_text_optimization(
        reference.predict_noise_in_inversion,
        reference["ddim_trajectory"],
        reference["prompt_embeds_source"][0],
        reference["prompt_embeds_empty"][0],
        reference.inversion_grid,
        guidance_scale=float(reference.scalars["guidance"]),
        num_inner_steps=int(reference.scalars["null_inner_steps"]),
        early_stop_epsilon=None,
    )
    assert max_error(null_embeddings, reference["null_embeddings"]) <= 1e-4


def test_smoothing_gives_the_published_latents(reference):
    height, width = reference["z0"].shape[-2:]
    magnitude = relative_magnitude(reference["flow"], height, width)[:, 0]
    assert max_error(magnitude, reference["flow_magnitude"]) <= 1e-6
    moving = relative_motion_mask(reference["flow"], height, width, float(reference.scalars["flow_threshold"]))
    smoothed = smooth_latents(reference["ddim_trajectory"][-1], moving)
    assert max_error(smoothed, reference["smoothed_latents"]) <= 1e-6


@pytest.mark.parametrize("branch", BRANCHES)
def test_inflated_unet_predicts_the_published_noise(reference, branch):
    assert max_error(reference.noise_pred(branch), reference[f"noise_pred_{branch}"]) <= 1e-5


@pytest.mark.parametrize("branch", BRANCHES)
def test_inflated_controlnet_gives_the_published_residuals(reference, branch):
    with inflated(reference.unet, [reference.controlnet], reference.num_frames, PUBLISHED):
        _, mid = reference.controlnet(
            reference["x_t"],
            reference["timestep"],
            encoder_hidden_states=reference.branch(branch)["text"],
            controlnet_cond=reference["depth"],
            conditioning_scale=float(reference.scalars["controlnet_conditioning_scale"]),
            return_dict=False,
        )
    assert max_error(mid, reference[f"controlnet_mid_{branch}"]) <= 1e-5


def test_denoising_gives_the_published_edit(reference):
    edited = reference.pipe.denoise(
        reference["smoothed_latents"][None],
        reference["z0"][None],
        reference["inpaint_mask"][None],
        reference["prompt_embeds_edit"],
        reference["null_embeddings"][:, None],
        {name: value[None] for name, value in reference.grounding_tokens("edit").items()},
        num_inference_steps=reference.num_steps,
        guidance_scale=float(reference.scalars["guidance"]),
        inflation=PUBLISHED,
        blend_noise=reference["blend_noise"][:, None],
        conditioning_frames=[reference["depth"][None]],
        controlnet_conditioning_scale=float(reference.scalars["controlnet_conditioning_scale"]),
    )
    assert max_error(edited[0], reference["edited_latents"]) <= 5e-4


@pytest.mark.parametrize("branch", BRANCHES)
@pytest.mark.parametrize(
    "inflation",
    [
        pytest.param(replace(PUBLISHED, group_norm=False), id="group norm not inflated"),
        pytest.param(replace(PUBLISHED, self_attention="per-frame"), id="self-attention per frame"),
        pytest.param(replace(PUBLISHED, gated_attention="per-frame"), id="gated attention per frame"),
        pytest.param(replace(PUBLISHED, entropy_scaling=True), id="attention sharpened"),
    ],
)
def test_parity_is_lost_without_each_part_of_the_inflation(reference, inflation, branch):
    assert max_error(reference.noise_pred(branch, inflation), reference[f"noise_pred_{branch}"]) > 1e-3


def test_parity_is_lost_with_swapped_branches(reference):
    assert max_error(reference.noise_pred("uncond"), reference["noise_pred_cond"]) > 1e-2
    assert max_error(reference.noise_pred("cond"), reference["noise_pred_uncond"]) > 1e-2


def test_parity_is_lost_without_modulated_cross_attention(reference):
    unconditional = reference.branch("uncond") | {"text": reference["null_embeddings"][0]}
    with inflated(reference.unet, [], reference.num_frames, PUBLISHED):
        own = reference.pipe.predict_noise(
            reference["x_t"], reference["timestep"], **unconditional, inpainting=reference.inpainting
        )
        modulated = reference.pipe.predict_noise(
            reference["x_t"], reference["timestep"], **reference.branch("uncond"), inpainting=reference.inpainting
        )
    assert max_error(own, modulated) > 1e-4
