"""A whole edit of one clip: the published configuration against the defaults, and a second edit against the first.

    python benchmarks/edit.py

All runs share one process, one clip and one model: Stable Diffusion 1.4's layout with GLIGEN and a ControlNet at a
quarter of the channels, random weights, float32. So the ratios are the result; the seconds say what they stand on.
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

import torch
from diffusers import AutoencoderKL, ControlNetModel, DDIMScheduler, UNet2DConditionModel
from measuring import describe_machine
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from diffusers_groundavideo import GroundAVideoPipeline, GroundedObject, Inflation, VideoGrounding
from diffusers_groundavideo.smoothing import relative_motion_mask, smooth_latents


CHANNELS = (80, 160, 320, 320)
TEXT_CHANNELS = 192


def build_pipeline() -> GroundAVideoPipeline:
    """The whole stack at a quarter of Stable Diffusion 1.4's width; the autoencoder at an eighth."""
    torch.manual_seed(0)
    characters = [*map(chr, range(ord("a"), ord("z") + 1))]
    tokens = [*characters, *(f"{c}</w>" for c in characters), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    start, end = vocabulary["<|startoftext|>"], vocabulary["<|endoftext|>"]
    shared: dict[str, Any] = {
        "block_out_channels": CHANNELS,
        "cross_attention_dim": TEXT_CHANNELS,
        "attention_head_dim": 8,
        "norm_num_groups": 16,
    }
    return GroundAVideoPipeline(
        vae=AutoencoderKL(
            block_out_channels=(16, 32, 64, 64),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=2,
            norm_num_groups=16,
        ).eval(),
        text_encoder=CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(tokens),
                hidden_size=TEXT_CHANNELS,
                intermediate_size=4 * TEXT_CHANNELS,
                num_attention_heads=4,
                num_hidden_layers=4,
                bos_token_id=start,
                eos_token_id=end,
                pad_token_id=end,
            )
        ).eval(),
        tokenizer=CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=77),
        unet=UNet2DConditionModel(sample_size=64, in_channels=9, attention_type="gated", **shared).eval(),
        scheduler=DDIMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            clip_sample=False,
            set_alpha_to_one=False,
            steps_offset=1,
        ),
        controlnet=ControlNetModel(conditioning_embedding_out_channels=(16, 32, 96, 256), **shared).eval(),
    )


def seconds(run: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    result = run()
    return time.perf_counter() - start, result


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--size", type=int, default=64, help="height and width of the clip in pixels")
    parser.add_argument("--steps", type=int, default=50, help="denoising steps of both configurations")
    arguments = parser.parse_args()
    frames, size, steps = arguments.frames, arguments.size, arguments.steps

    pipe = build_pipeline()
    pipe.set_progress_bar_config(disable=True)
    video, depth = torch.rand(2, frames, 3, size, size)
    flow = torch.randn(frames - 1, 2, size, size)

    def grounding(target: str) -> VideoGrounding:
        rabbit = GroundedObject("rabbit", target, box=(0.1, 0.2, 0.6, 0.75))
        return VideoGrounding([rabbit, GroundedObject("table", "table", box=(0, 0.8, 1, 1))])

    source: dict[str, Any] = {"video": video, "source_prompt": "a rabbit on the table"}

    def edit(target: str, **arguments: Any) -> Any:
        return pipe(
            **source,
            grounding=grounding(target),
            prompt=f"a {target} on the table",
            conditioning_frames=depth,
            num_inference_steps=steps,
            generator=torch.Generator().manual_seed(0),
            output_type="np",
            **arguments,
        )

    def published() -> Any:
        """20 steps of empty-prompt inversion, 50 of denoising, relative threshold, all boxes open, no null-text."""
        inverted = pipe.invert(
            **source, grounding=grounding("squirrel"), num_inference_steps=2 * steps // 5, inversion_method="ddim"
        )
        moving = relative_motion_mask(flow, *inverted.noise_latents.shape[-2:])
        latents = smooth_latents(inverted.noise_latents, moving)[None]
        inflation = Inflation.published()
        return edit("squirrel", latents=latents, open_all_boxes=True, inflation=inflation)

    def first_edit() -> tuple[Any, Any]:
        inverted = pipe.invert(**source, grounding=grounding("squirrel"), num_inference_steps=steps)
        return inverted, edit("squirrel", inverted=inverted, flow=flow)

    # Once to warm up.
    edit("squirrel", latents=torch.randn(1, frames, 4, size // 8, size // 8))
    published_seconds, _ = seconds(published)
    first_seconds, (inverted, _) = seconds(first_edit)
    second_seconds, _ = seconds(lambda: edit("dog", inverted=inverted, flow=flow))

    print(f"{describe_machine()}; {frames} frames of {size} x {size}\n")
    print("| edit | seconds | against the published configuration |")
    print("| --- | ---: | ---: |")
    for name, taken in (
        (f"published configuration ({2 * steps // 5} + {steps} steps)", published_seconds),
        (f"defaults ({steps} + {steps} steps), first edit of a clip", first_seconds),
        ("defaults, second edit of the clip", second_seconds),
    ):
        print(f"| {name} | {taken:.1f} | {taken / published_seconds:.2f} x |")
    print(f"\nThe second edit takes {second_seconds / first_seconds:.2f} of the first.")


if __name__ == "__main__":
    main()
