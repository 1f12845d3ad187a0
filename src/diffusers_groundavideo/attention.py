"""How the frames of a clip see each other while they are edited (Ground-A-Video, sections 3.2 and 3.3).

The UNet and the ControlNet get all frames of a clip as one batch, frame-major: `(clips * frames, ...)`. The processors
here fold the frames of a clip into the length of the query, so keys and values are computed once for the clip and
shared by its frames, and clips never meet. [`inflated`] installs everything for the time of an edit.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from diffusers import ControlNetModel, UNet2DConditionModel
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import ResnetBlock2D
from torch import nn

from .grounding import MAX_OBJECTS


FrameAttention = Literal["cross-frame", "first-frame", "sparse-causal", "per-frame"]
GatedAttention = Literal["own-grounding", FrameAttention]


@dataclass(frozen=True)
class Inflation:
    """What the frames of a clip share during the edit.

    The defaults are Ground-A-Video with three changes, each for the same reason: what an image model was trained with
    is one frame. [`Inflation.published`] is without them, the rest is for comparison (benchmarks/RESULTS.md).

    Args:
        self_attention (`str`): Whose latents a frame's queries attend to in `attn1`: those of all frames
            (`"cross-frame"`, Ground-A-Video's spatial-temporal attention), of the first frame (`"first-frame"`,
            Text2Video-Zero), of the first and the previous frame (`"sparse-causal"`, Tune-A-Video), or its own
            (`"per-frame"`).
        gated_attention (`str`): The same for GLIGEN's gated attention, whose keys also hold the grounding tokens; or
            the latents of all frames and the tokens of a frame's own (`"own-grounding"`). Ground-A-Video's cross-frame
            gated attention is `"cross-frame"`, in which a phrase leaks to where its object is in other frames.
        modulated_cross_attention (`bool`): Whether in the unconditional branch a frame's queries attend to the null
            embeddings of all frames, not to its own alone. No difference without null-text optimisation.
        group_norm (`bool`): Whether the group norms of the ResNet blocks and of the UNet's output take their
            statistics over all frames of a clip, as in the published model, or each frame is normalised by itself.
        entropy_scaling (`bool`): Whether attention to several frames is sharpened, so that its entropy stays the same
            share of the largest possible: logits are multiplied by `sqrt(log(keys) / log(tokens of a frame))` (Jin et
            al., "Training-free Diffusion Model Adaptation for Variable-Sized Text-to-Image Synthesis", NeurIPS 2023,
            arXiv:2306.08645, there for larger pictures). The published model and its peers attend without.

    Raises:
        `ValueError`: If an attention scheme is unknown.
    """

    self_attention: FrameAttention = "cross-frame"
    gated_attention: GatedAttention = "own-grounding"
    modulated_cross_attention: bool = True
    group_norm: bool = False
    entropy_scaling: bool = True

    @classmethod
    def published(cls) -> "Inflation":
        """Ground-A-Video as published."""
        return cls(gated_attention="cross-frame", group_norm=True, entropy_scaling=False)

    def __post_init__(self) -> None:
        for name, schemes in (("self_attention", FrameAttention), ("gated_attention", GatedAttention)):
            scheme = getattr(self, name)
            if scheme not in get_args(schemes):
                raise ValueError(f"`{name}` has to be one of {get_args(schemes)}, but is {scheme!r}.")


class CrossFrameAttnProcessor:
    """Self-attention in which the queries of every frame attend to the keys and values of all frames of the clip.

    Serves `attn1` (spatial-temporal self-attention) and `fuser.attn` (cross-frame gated attention, whose input
    `[latents ; grounding tokens]` makes the grounding tokens of all frames part of the keys).

    Args:
        num_frames (`int`): Frames of a clip.
        entropy_scaling (`bool`): As in [`Inflation`].
    """

    def __init__(self, num_frames: int, entropy_scaling: bool = False) -> None:
        self.num_frames = num_frames
        self.entropy_scaling = entropy_scaling

    def __call__(
        self,
        attn: Attention,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Attends within each clip.

        Args:
            attn (`Attention`): The module that calls.
            hidden_states (`torch.Tensor` of shape (clips * frames, tokens, channels)): Frame-major.
            encoder_hidden_states, attention_mask: Part of the signature that `Attention` calls; always `None` here.

        Returns:
            `torch.Tensor` of the shape of `hidden_states`.
        """
        clips = hidden_states.unflatten(0, (-1, self.num_frames))
        query = attn.to_q(clips)
        attended = self.attend(query, *self.key_value(attn, clips), attn.heads)
        return _project_out(attn, attended.flatten(0, 1))

    def key_value(self, attn: Attention, clips: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of the frames that others attend to: (clips, frames, tokens, channels) each."""
        return attn.to_k(clips), attn.to_v(clips)

    def attend(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, heads: int) -> torch.Tensor:
        """Attention of `query` (clips, frames, tokens, channels) over `key` and `value` of the same form."""
        key, value = key.flatten(1, 2), value.flatten(1, 2)
        attended = _attention(query.flatten(1, 2), key, value, heads, self.sharpness(query, key))
        return attended.unflatten(1, query.shape[1:3])

    def sharpness(self, query: torch.Tensor, key: torch.Tensor) -> float:
        """The factor on the logits of `query` (..., tokens of a frame, channels) and `key` (..., keys, channels)."""
        if not self.entropy_scaling:
            return 1.0
        # The logarithm of a single token would be 0.
        return math.sqrt(math.log(max(key.shape[-2], 2)) / math.log(max(query.shape[-2], 2)))


class FirstFrameAttnProcessor(CrossFrameAttnProcessor):
    """Every frame attends to the first frame alone (Text2Video-Zero, section 3.3.3)."""

    def key_value(self, attn: Attention, clips: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return attn.to_k(clips[:, :1]), attn.to_v(clips[:, :1])


class SparseCausalAttnProcessor(CrossFrameAttnProcessor):
    """Every frame attends to the first and to the previous frame (Tune-A-Video, section 4.1)."""

    def attend(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, heads: int) -> torch.Tensor:
        frames = []
        for frame in range(self.num_frames):
            # Frames 0 and 1 have only the first one to look back at: naming it twice would change nothing.
            seen = [0] if frame <= 1 else [0, frame - 1]
            keys, values = key[:, seen].flatten(1, 2), value[:, seen].flatten(1, 2)
            frames.append(_attention(query[:, frame], keys, values, heads, self.sharpness(query, keys)))
        return torch.stack(frames, dim=1)


class PerFrameAttnProcessor(CrossFrameAttnProcessor):
    """Every frame attends to itself alone, as in the image model."""

    def attend(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, heads: int) -> torch.Tensor:
        attended = _attention(query.flatten(0, 1), key.flatten(0, 1), value.flatten(0, 1), heads)
        return attended.unflatten(0, query.shape[:2])


class OwnGroundingAttnProcessor(CrossFrameAttnProcessor):
    """Gated attention in which a frame attends to the latents of all frames, but to its own grounding tokens alone.

    Boxes are places in their own frame. Where things move, the tokens of other frames put a phrase where it was or
    will be; where two cross, into each other's place. A frame's own tokens stand for those of all frames, so that
    latents and tokens weigh against each other as they do within a frame.

    Args:
        num_frames (`int`): Frames of a clip.
        entropy_scaling (`bool`): As in [`Inflation`].
        num_grounding_tokens (`int`): Tokens at the end of the input that are no latents.
    """

    def __init__(
        self, num_frames: int, entropy_scaling: bool = False, num_grounding_tokens: int = MAX_OBJECTS
    ) -> None:
        super().__init__(num_frames, entropy_scaling)
        self.num_grounding_tokens = num_grounding_tokens

    def count_tokens(self, fuser: nn.Module, args: tuple[torch.Tensor, torch.Tensor]) -> None:
        """A hook on GLIGEN's layer, which knows the tokens apart from the latents."""
        self.num_grounding_tokens = args[1].shape[1]

    def attend(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, heads: int) -> torch.Tensor:
        def seen_by(frame: int, states: torch.Tensor) -> torch.Tensor:
            latents, tokens = states.tensor_split([-self.num_grounding_tokens], dim=2)
            return torch.cat([latents.flatten(1, 2), tokens[:, frame].repeat(1, self.num_frames, 1)], dim=1)

        frames = []
        # Frame by frame, so that keys and values take the memory of one clip.
        for frame in range(self.num_frames):
            keys, values = seen_by(frame, key), seen_by(frame, value)
            frames.append(_attention(query[:, frame], keys, values, heads, self.sharpness(query, keys)))
        return torch.stack(frames, dim=1)


_FRAME_ATTENTION: dict[str, type[CrossFrameAttnProcessor]] = {
    "own-grounding": OwnGroundingAttnProcessor,
    "cross-frame": CrossFrameAttnProcessor,
    "first-frame": FirstFrameAttnProcessor,
    "sparse-causal": SparseCausalAttnProcessor,
    "per-frame": PerFrameAttnProcessor,
}


class ModulatedCrossAttnProcessor:
    """Cross-attention in which all frames that share a text attend to it together.

    The branch is told by the text that is passed, never by a state of the module. In the conditional branch it is the
    prompt, once a clip. In the unconditional branch it is the null embeddings of all frames of the clip in a row
    (see [`modulated_text`]), which is modulated cross-attention (section 3.3). A text for every frame of its own gives
    ordinary cross-attention.
    """

    def __call__(
        self,
        attn: Attention,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Attends to the text.

        Args:
            attn (`Attention`): The module that calls.
            hidden_states (`torch.Tensor` of shape (clips * frames, tokens, channels)): Frame-major.
            encoder_hidden_states (`torch.Tensor` of shape (texts, text tokens, text channels)): One text a clip or one
                a frame, in the order of `hidden_states`.
            attention_mask: Part of the signature that `Attention` calls; always `None` here.

        Returns:
            `torch.Tensor` of the shape of `hidden_states`.
        """
        texts, (batch, tokens, _) = encoder_hidden_states.shape[0], hidden_states.shape
        query = attn.to_q(hidden_states).reshape(texts, batch // texts * tokens, -1)
        key, value = attn.to_k(encoder_hidden_states), attn.to_v(encoder_hidden_states)
        attended = _attention(query, key, value, attn.heads)
        return _project_out(attn, attended.reshape(batch, tokens, -1))


def modulated_text(null_embeddings: torch.Tensor) -> torch.Tensor:
    """The text of the unconditional branch: the null embeddings of all frames of a clip, one after the other.

    Args:
        null_embeddings (`torch.Tensor` of shape (clips, frames, tokens, channels)): The null embedding of each frame.

    Returns:
        `torch.Tensor` of shape (clips, frames * tokens, channels).
    """
    return null_embeddings.flatten(1, 2)


def _attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, heads: int, sharpness: float = 1.0
) -> torch.Tensor:
    """Multi-head attention over (batch, tokens, channels), the logits multiplied by `sharpness`."""
    query, key, value = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (query, key, value))
    scale = sharpness / math.sqrt(query.shape[-1])
    return F.scaled_dot_product_attention(query, key, value, scale=scale).transpose(1, 2).flatten(2)


def _project_out(attn: Attention, hidden_states: torch.Tensor) -> torch.Tensor:
    for layer in attn.to_out:
        hidden_states = layer(hidden_states)
    return hidden_states / attn.rescale_output_factor


@contextmanager
def inflated(
    unet: UNet2DConditionModel,
    controlnets: list[ControlNetModel],
    num_frames: int,
    inflation: Inflation | None = None,
) -> Iterator[None]:
    """Makes `unet` and `controlnets` treat a clip as one sample, and undoes it on leaving, also by an exception.

    Args:
        unet (`UNet2DConditionModel`): Its `attn1`, `attn2` and, if gated, `fuser.attn` get the processors above.
        controlnets (`list[ControlNetModel]`): Their `attn1` and `attn2` get them too.
        num_frames (`int`): Frames of a clip. The models' batches have to be `(clips * num_frames, ...)`.
        inflation ([`Inflation`], *optional*): What is shared between the frames; Ground-A-Video by default.
    """
    inflation = Inflation() if inflation is None else inflation
    self_attention = _FRAME_ATTENTION[inflation.self_attention](num_frames, inflation.entropy_scaling)
    gated_attention = _FRAME_ATTENTION[inflation.gated_attention](num_frames, inflation.entropy_scaling)
    cross_attention = ModulatedCrossAttnProcessor()
    found: list[tuple[Attention, object]] = []
    hooks: list[torch.utils.hooks.RemovableHandle] = []

    def install(attn: Attention, processor: object) -> None:
        found.append((attn, attn.processor))
        attn.set_processor(processor)

    try:
        # One ControlNet may serve several conditions; it is installed on once.
        for model in dict.fromkeys([unet, *controlnets]):
            for module in model.modules():
                if isinstance(module, BasicTransformerBlock):
                    install(module.attn1, self_attention)
                    install(module.attn2, cross_attention)
                    if hasattr(module, "fuser"):
                        install(module.fuser.attn, gated_attention)
                        if isinstance(gated_attention, OwnGroundingAttnProcessor):
                            hooks.append(module.fuser.register_forward_pre_hook(gated_attention.count_tokens))
                elif isinstance(module, ResnetBlock2D) and inflation.group_norm:
                    hooks += [*_inflate_norm(module.norm1, num_frames), *_inflate_norm(module.norm2, num_frames)]
        if inflation.group_norm:
            hooks += _inflate_norm(unet.conv_norm_out, num_frames)
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for attn, processor in found:
            attn.set_processor(processor)


def _inflate_norm(norm: nn.Module, num_frames: int) -> list[torch.utils.hooks.RemovableHandle]:
    """Makes a group norm see (clips, channels, frames, height, width), so that its statistics span the clip.

    Hooks, not another module in its place: parameters keep their names, and offloading keeps its own hooks on it.
    """

    def fold(module: nn.Module, args: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
        return (args[0].unflatten(0, (-1, num_frames)).transpose(1, 2),)

    def unfold(module: nn.Module, args: tuple[torch.Tensor], output: torch.Tensor) -> torch.Tensor:
        return output.transpose(1, 2).flatten(0, 1)

    return [norm.register_forward_pre_hook(fold), norm.register_forward_hook(unfold)]
