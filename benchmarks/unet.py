"""One denoising forward of a whole GLIGEN UNet of Stable Diffusion 1.4's size on a clip, with random weights.

    python benchmarks/unet.py

Prints its FLOPs (counted by PyTorch), its time, and which share of this machine's matrix product peak that is: for the
plain UNet, frame by frame, and inflated over the clip.
"""

import argparse
from contextlib import nullcontext

import torch
from diffusers import UNet2DConditionModel
from measuring import count_flops, describe_machine, matmul_peak, median_seconds, peak_bytes

from diffusers_groundavideo import inflated
from diffusers_groundavideo.grounding import MAX_OBJECTS


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=4)
    parser.add_argument("--size", type=int, default=256, help="height and width of the clip in pixels")
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    frames, side = arguments.frames, arguments.size // 8

    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=64, in_channels=9, cross_attention_dim=768, attention_head_dim=8, attention_type="gated"
    ).eval()
    latents = torch.randn(frames, 9, side, side)
    text = torch.randn(1, 77, 768)
    gligen = {
        "boxes": torch.rand(frames, MAX_OBJECTS, 4),
        "masks": torch.ones(frames, MAX_OBJECTS),
        "positive_embeddings": torch.randn(frames, MAX_OBJECTS, 768),
    }

    peak = matmul_peak()
    parameters = sum(parameter.numel() for parameter in unet.parameters())
    print(f"{describe_machine()}; matrix product peak {peak / 1e9:.0f} GFLOP/s")
    print(f"{parameters / 1e6:.0f} M parameters, {frames} frames of {arguments.size} x {arguments.size}, float32\n")
    print("| UNet | TFLOP a forward | seconds | share of the peak | peak activations, MB |")
    print("| --- | ---: | ---: | ---: | ---: |")
    for name, context, texts in (
        ("plain, frame by frame", nullcontext(), text.expand(frames, -1, -1)),
        ("inflated over the clip", inflated(unet, [], frames), text),
    ):

        def forward(texts: torch.Tensor = texts) -> None:
            unet(latents, 500, texts, cross_attention_kwargs={"gligen": gligen})

        with context:
            flops = count_flops(forward)
            seconds = median_seconds(forward, arguments.repeats)
            share = flops / seconds / peak
            print(f"| {name} | {flops / 1e12:.2f} | {seconds:.2f} | {share:.0%} | {peak_bytes(forward) / 1e6:.0f} |")


if __name__ == "__main__":
    main()
