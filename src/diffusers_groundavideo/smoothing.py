"""Flow-guided smoothing of inverted latents (Ground-A-Video, section 3.4).

Where a clip stands still, its inverted latents should too: there each frame takes the latent of the frame before. Flow
is (F - 1, 2, H, W) in pixels of its own H x W grid, x before y, forward from frame i to i + 1 unless it is called
backward (from i + 1 to i). Both of the motion masks below are boolean of shape (F - 1, 1, h, w) at latent size.
"""

import torch
import torch.nn.functional as F


def relative_motion_mask(flow: torch.Tensor, height: int, width: int, threshold: float = 0.2) -> torch.Tensor:
    """The published mask: each magnitude map is divided by its own maximum before the threshold.

    So the threshold means another speed in every pair of frames, and in a nearly still pair noise counts as motion.

    Args:
        flow (`torch.Tensor` of shape (F - 1, 2, H, W)): Forward flow in pixels.
        height, width (`int`): Size of the latents.
        threshold (`float`): Share of the pair's largest magnitude, in [0, 1], above which a place moves.

    Returns:
        `torch.Tensor` of shape (F - 1, 1, height, width), boolean: what moves.
    """
    return relative_magnitude(flow, height, width) > threshold


def relative_magnitude(flow: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Flow magnitude over its maximum in the pair, resized to latent size: (F - 1, 1, height, width) in [0, 1]."""
    magnitude = flow.float().norm(dim=1, keepdim=True)
    peak = magnitude.amax(dim=(2, 3), keepdim=True)
    # A pair without any motion has no maximum to divide by, and nothing in it moves.
    magnitude = torch.where(peak > 0, magnitude / peak, 0.0)
    return F.interpolate(magnitude, (height, width), mode="bilinear", align_corners=False)


def absolute_motion_mask(
    flow: torch.Tensor,
    height: int,
    width: int,
    threshold: float = 0.25,
    backward_flow: torch.Tensor | None = None,
) -> torch.Tensor:
    """What moves by more than a fixed number of latent cells, or is not seen in the frame before.

    Args:
        flow (`torch.Tensor` of shape (F - 1, 2, H, W)): Forward flow in pixels.
        height, width (`int`): Size of the latents.
        threshold (`float`): Motion between two frames, in latent cells, above which a place moves. A latent cell moves
            if any of its pixels does.
        backward_flow (`torch.Tensor` of shape (F - 1, 2, H, W), *optional*): Flow from frame i + 1 to i. With it, what
            is uncovered or covered between the two frames (see [`inconsistent`]) counts as moving.

    Returns:
        `torch.Tensor` of shape (F - 1, 1, height, width), boolean: what moves.
    """
    cells_per_pixel = torch.tensor([width / flow.shape[3], height / flow.shape[2]], device=flow.device)
    moving = (flow.float() * cells_per_pixel[:, None, None]).norm(dim=1, keepdim=True) > threshold
    if backward_flow is not None:
        moving = moving | inconsistent(flow, backward_flow) | inconsistent(backward_flow, flow)
    return F.adaptive_max_pool2d(moving.float(), (height, width)).bool()


def inconsistent(flow: torch.Tensor, opposite_flow: torch.Tensor) -> torch.Tensor:
    """Where following `flow` and then `opposite_flow` does not lead back (Sundaram et al., ECCV 2010, equation 5).

    `|f(x) + b(x + f(x))|^2 > 0.01 (|f(x)|^2 + |b(x + f(x))|^2) + 0.5`, or `x + f(x)` lies outside the frame.

    Args:
        flow, opposite_flow (`torch.Tensor` of shape (pairs, 2, H, W)): Flows between the same frames, there and back,
            in pixels.

    Returns:
        `torch.Tensor` of shape (pairs, 1, H, W), boolean, on the grid that `flow` starts from.
    """
    flow, opposite_flow = flow.float(), opposite_flow.float()
    height, width = flow.shape[2:]
    y, x = torch.meshgrid(
        torch.arange(height, device=flow.device), torch.arange(width, device=flow.device), indexing="ij"
    )
    target_x, target_y = x + flow[:, 0], y + flow[:, 1]
    outside = (target_x < 0) | (target_x > width - 1) | (target_y < 0) | (target_y > height - 1)
    # grid_sample's coordinates with align_corners=False: pixel centres at (2 i + 1) / size - 1.
    grid = torch.stack([(2 * target_x + 1) / width - 1, (2 * target_y + 1) / height - 1], dim=-1)
    back = F.grid_sample(opposite_flow, grid, padding_mode="border", align_corners=False)
    gap = (flow + back).square().sum(dim=1)
    bound = 0.01 * (flow.square().sum(dim=1) + back.square().sum(dim=1)) + 0.5
    return ((gap > bound) | outside)[:, None]


def smooth_latents(latents: torch.Tensor, moving: torch.Tensor) -> torch.Tensor:
    """In frame order, what does not move takes the (already smoothed) latent of the frame before.

    Args:
        latents (`torch.Tensor` of shape (F, C, h, w)): Inverted latents of one clip.
        moving (`torch.Tensor` of shape (F - 1, 1, h, w)): Boolean, from one of the masks above.

    Returns:
        `torch.Tensor` of shape (F, C, h, w); the input is left as it is.
    """
    smoothed = [latents[0]]
    for latent, moves in zip(latents[1:], moving, strict=True):
        smoothed.append(torch.where(moves, latent, smoothed[-1]))
    return torch.stack(smoothed)
