"""Cross-frame attention with keys and values shared by the frames, against keys and values repeated for every frame.

    python benchmarks/attention.py

The layers are those of Stable Diffusion 1.4 with GLIGEN: 8 heads, 8 frames, 32 x 32 latents (a 256 x 256 clip),
float32. Both layouts run in one process on the same layer and give the same result.
"""

import argparse

import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention
from measuring import describe_machine, median_seconds, peak_bytes

from diffusers_groundavideo.attention import CrossFrameAttnProcessor
from diffusers_groundavideo.grounding import MAX_OBJECTS


class RepeatedKeyValueAttnProcessor:
    """The published layout: every frame gets a copy of the keys and values of all frames."""

    def __init__(self, num_frames: int) -> None:
        self.num_frames = num_frames

    def __call__(
        self,
        attn: Attention,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        def heads(x: torch.Tensor) -> torch.Tensor:
            return x.unflatten(-1, (attn.heads, -1)).transpose(1, 2)

        def repeated(x: torch.Tensor) -> torch.Tensor:
            clips = x.unflatten(0, (-1, self.num_frames)).flatten(1, 2)
            return clips.repeat_interleave(self.num_frames, dim=0)

        query = heads(attn.to_q(hidden_states))
        key, value = heads(repeated(attn.to_k(hidden_states))), heads(repeated(attn.to_v(hidden_states)))
        attended = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        return attn.to_out[1](attn.to_out[0](attended))


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=7)
    arguments = parser.parse_args()
    frames = arguments.frames

    print(f"{describe_machine()}; {frames} frames, medians of {arguments.repeats}\n")
    print("| layer | tokens a frame | repeated, ms | shared, ms | faster | repeated, MB | shared, MB | smaller |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    for channels, side in ((320, 32), (640, 16), (1280, 8), (1280, 4)):
        for name, grounding_tokens in (("self", 0), ("gated", MAX_OBJECTS)):
            torch.manual_seed(0)
            attn = Attention(channels, heads=8, dim_head=channels // 8)
            hidden_states = torch.randn(frames, side * side + grounding_tokens, channels)
            seconds, peaks, results = [], [], []
            for processor in (RepeatedKeyValueAttnProcessor(frames), CrossFrameAttnProcessor(frames)):
                attn.set_processor(processor)
                results.append(attn(hidden_states))
                seconds.append(median_seconds(lambda: attn(hidden_states), arguments.repeats))  # noqa: B023
                peaks.append(peak_bytes(lambda: attn(hidden_states)))  # noqa: B023
            torch.testing.assert_close(*results, atol=1e-5, rtol=1e-4)
            print(
                f"| {name}, {channels} channels | {hidden_states.shape[1]} "
                f"| {seconds[0] * 1e3:.1f} | {seconds[1] * 1e3:.1f} | {seconds[0] / seconds[1]:.2f} x "
                f"| {peaks[0] / 1e6:.1f} | {peaks[1] / 1e6:.1f} | {peaks[0] / peaks[1]:.2f} x |"
            )


if __name__ == "__main__":
    main()
