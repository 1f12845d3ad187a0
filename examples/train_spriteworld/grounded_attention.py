"""An auxiliary loss that teaches the gated attention which box a pixel is in.

The noise-prediction loss alone needs many thousand steps to find out that the object token to read at a place is the
one whose box holds it: the UNet knows positions only from the zero padding of its convolutions. Naming the right token
directly teaches both, the positions and the match, in a few hundred.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention import GatedSelfAttentionDense


@contextmanager
def recorded_gated_attention(unet: UNet2DConditionModel, num_objects: int) -> Iterator[list[torch.Tensor]]:
    """Record the attention logits of every gated attention of a forward pass.

    Yields:
        A list that a forward pass fills with one tensor (B, heads, N visual tokens, N + `num_objects`) a layer, before
        the softmax.
    """
    recorded: list[torch.Tensor] = []

    def record(attention: Any, arguments: tuple[torch.Tensor, ...]) -> None:
        tokens = arguments[0]
        query = attention.to_q(tokens[:, :-num_objects]).unflatten(-1, (attention.heads, -1)).transpose(1, 2)
        key = attention.to_k(tokens).unflatten(-1, (attention.heads, -1)).transpose(1, 2)
        recorded.append(attention.scale * query @ key.transpose(-1, -2))

    gates = [module for module in unet.modules() if isinstance(module, GatedSelfAttentionDense)]
    handles = [gate.attn.register_forward_pre_hook(record) for gate in gates]
    try:
        yield recorded
    finally:
        for handle in handles:
            handle.remove()


def grounded_attention_loss(logits: list[torch.Tensor], boxes: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """Mean negative log of the attention that goes where it should, over half of the heads of every layer.

    A visual token whose centre lies in boxes should read one of their objects; one in none should read no object. The
    other half of the heads stays free.

    Args:
        logits: of each layer, (B, heads, N, N + M), N = side * side visual tokens before M object tokens.
        boxes: (B, M, 4) xyxy in [0, 1]; a box of the whole frame grounds the background and counts as no object.
        masks: (B, M), 1 where there is an object.
    """
    whole = (boxes == torch.tensor([0.0, 0.0, 1.0, 1.0])).all(-1)
    losses = []
    for layer in logits:
        heads, tokens = layer.shape[1] // 2, layer.shape[2]
        side = int(tokens**0.5)
        centre = (torch.arange(side) + 0.5) / side
        inside_x = (centre > boxes[..., 0:1]) & (centre < boxes[..., 2:3])
        inside_y = (centre > boxes[..., 1:2]) & (centre < boxes[..., 3:4])
        inside = (inside_y[..., :, None] & inside_x[..., None, :]).flatten(2) & ((masks > 0) & ~whole)[..., None]
        inside = inside.transpose(1, 2)
        nowhere = ~inside.any(-1, keepdim=True)
        # In no box: anything but the objects. Padding slots are objects of masks 0 and may be read.
        neutral = nowhere & ((masks == 0) | whole)[:, None, :]
        wanted = torch.cat([nowhere.expand(-1, -1, tokens), inside | neutral], dim=-1)[:, None]
        log_share = layer[:, :heads].log_softmax(-1).masked_fill(~wanted, -torch.inf).logsumexp(-1)
        losses.append(-log_share.mean())
    return torch.stack(losses).mean()
