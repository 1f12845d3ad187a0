import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from diffusers_groundavideo.smoothing import (
    absolute_motion_mask,
    inconsistent,
    relative_magnitude,
    relative_motion_mask,
    smooth_latents,
)


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def uniform_flow(x: float, y: float, height: int = 16, width: int = 24, pairs: int = 1) -> torch.Tensor:
    return torch.tensor([x, y]).view(1, 2, 1, 1).repeat(pairs, 1, height, width)


def test_relative_magnitude_by_hand() -> None:
    flow = torch.zeros(2, 2, 4, 4)
    # A magnitude of 5 in the upper left quarter and of 1 in the lower right one; in the second pair half of it.
    flow[0, 0, :2, :2], flow[0, 1, :2, :2] = 3.0, -4.0
    flow[0, 1, 2:, 2:] = 1.0
    flow[1] = flow[0] / 2
    expected = torch.tensor([[1.0, 0.0], [0.0, 0.2]]).expand(2, 1, 2, 2)
    torch.testing.assert_close(relative_magnitude(flow, 2, 2), expected, atol=1e-6, rtol=0)
    # Bilinear without antialiasing looks at the pixels around the centre of a cell: of 4 pixels the inner two.
    magnitude = torch.tensor([10.0, 4.0, 0.0, 10.0])
    flow = torch.stack([magnitude, torch.zeros(4)])[None, :, None, :].repeat(1, 1, 4, 1)
    torch.testing.assert_close(relative_magnitude(flow, 1, 1), torch.full((1, 1, 1, 1), 0.2), atol=1e-6, rtol=0)


def test_relative_mask_by_hand() -> None:
    flow = torch.zeros(1, 2, 2, 2)
    flow[0, 0] = torch.tensor([[10.0, -2.1], [2.0, 0.0]])
    # The threshold itself does not move.
    assert relative_motion_mask(flow, 2, 2).tolist() == [[[[True, True], [False, False]]]]
    assert relative_motion_mask(flow, 2, 2, threshold=0.5).tolist() == [[[[True, False], [False, False]]]]
    assert relative_motion_mask(flow, 2, 2, threshold=1.0).sum() == 0


def test_relative_threshold_means_another_speed_in_every_pair() -> None:
    flow = torch.cat([uniform_flow(8.0, 0), uniform_flow(0.008, 0)])
    assert relative_motion_mask(flow, 4, 6).all()


def test_a_pair_without_motion_does_not_move() -> None:
    flow = torch.cat([torch.zeros(1, 2, 16, 24), uniform_flow(1, 1)])
    for mask in (relative_motion_mask(flow, 4, 6), absolute_motion_mask(flow, 4, 6)):
        assert mask.shape == (2, 1, 4, 6) and mask.dtype == torch.bool
        assert not mask[0].any() and mask[1].all()
    assert relative_magnitude(flow, 4, 6).isfinite().all()


def test_absolute_threshold_is_in_latent_cells() -> None:
    # 4 pixels a cell: 0.25 cells are 1 pixel.
    for x, y, moves in ((1.01, 0, True), (0.99, 0, False), (0, -1.01, True), (0.6, 0.9, True), (0.6, 0.7, False)):
        assert absolute_motion_mask(uniform_flow(x, y), 4, 6).all() == moves
        assert absolute_motion_mask(uniform_flow(x, y), 4, 6).any() == moves
    assert not absolute_motion_mask(uniform_flow(7.9, 0), 4, 6, threshold=2).any()
    assert absolute_motion_mask(uniform_flow(8.1, 0), 4, 6, threshold=2).all()


def test_absolute_threshold_knows_cells_that_are_not_square() -> None:
    # 4 pixels a cell across, 2 down.
    assert not absolute_motion_mask(uniform_flow(0.9, 0), 8, 6).any()
    assert absolute_motion_mask(uniform_flow(0, 0.9), 8, 6).all()


def test_absolute_threshold_does_not_depend_on_other_places_or_pairs() -> None:
    flow = random(3, 2, 16, 24)
    together = absolute_motion_mask(flow, 4, 6, threshold=0.5)
    assert together.any() and not together.all()
    for pair in range(3):
        assert torch.equal(absolute_motion_mask(flow[[pair]], 4, 6, threshold=0.5)[0], together[pair])
    fast = flow.clone()
    fast[:, :, :4, :4] = 1000
    assert torch.equal(absolute_motion_mask(fast, 4, 6, threshold=0.5)[..., 1:, 1:], together[..., 1:, 1:])


@settings(deadline=None)
@given(st.integers(1, 5), st.floats(-3, 3), st.floats(-3, 3))
def test_absolute_threshold_does_not_depend_on_the_resolution_of_the_flow(factor: int, x: float, y: float) -> None:
    # Half a cell a pixel; not where rounding decides.
    assume(all(abs(0.5 * math.hypot(x, y) / slower - 0.26) > 1e-4 for slower in (1, 8)))
    flow = uniform_flow(x, y, height=8, width=12)
    flow[..., 4:, :] /= 8
    finer = flow.repeat_interleave(factor, dim=2).repeat_interleave(factor, dim=3) * factor
    assert torch.equal(absolute_motion_mask(finer, 4, 6, threshold=0.26), absolute_motion_mask(flow, 4, 6, 0.26))


def test_a_cell_moves_if_any_of_its_pixels_does() -> None:
    flow = torch.zeros(1, 2, 16, 24)
    flow[0, 0, 7, 8] = 2.0
    expected = torch.zeros(1, 1, 4, 6, dtype=torch.bool)
    expected[0, 0, 1, 2] = True
    assert torch.equal(absolute_motion_mask(flow, 4, 6), expected)


@pytest.mark.parametrize("size", [(4, 6), (5, 7), (16, 24), (20, 30)])
def test_masks_have_latent_size_whatever_the_flows(size: tuple[int, int]) -> None:
    flow = random(2, 2, 16, 24)
    assert relative_motion_mask(flow, *size).shape == (2, 1, *size)
    assert absolute_motion_mask(flow, *size, 0.25, -flow).shape == (2, 1, *size)


def moving_square(step: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    """Flow there and back of an 8 x 8 square on a still ground that moves right by `step` pixels, from (8, 4)."""
    forward, backward = torch.zeros(1, 2, 24, 24), torch.zeros(1, 2, 24, 24)
    forward[0, 0, 8:16, 4:12] = step
    backward[0, 0, 8:16, 4 + step : 12 + step] = -step
    return forward, backward


def test_what_a_moving_square_covers_and_uncovers_is_inconsistent() -> None:
    forward, backward = moving_square()
    covered, uncovered = torch.zeros(2, 1, 1, 24, 24, dtype=torch.bool)
    # The ground before the square's front is hidden in the next frame; that behind its back was hidden before.
    covered[0, 0, 8:16, 12:16] = True
    uncovered[0, 0, 8:16, 4:8] = True
    assert torch.equal(inconsistent(forward, backward), covered)
    assert torch.equal(inconsistent(backward, forward), uncovered)


def test_what_is_covered_and_uncovered_counts_as_moving() -> None:
    forward, backward = moving_square()
    # At 4 pixels a cell: the square in columns 1 and 2, what it covers in column 3.
    one_way = torch.zeros(1, 1, 6, 6, dtype=torch.bool)
    one_way[..., 2:4, 1:3] = True
    both_ways = one_way.clone()
    both_ways[..., 2:4, 3] = True
    assert torch.equal(absolute_motion_mask(forward, 6, 6), one_way)
    assert torch.equal(absolute_motion_mask(forward, 6, 6, backward_flow=backward), both_ways)
    # Too slow for the threshold, but not seen before.
    slow = absolute_motion_mask(forward, 6, 6, threshold=5, backward_flow=backward)
    expected = torch.zeros(1, 1, 6, 6, dtype=torch.bool)
    expected[..., 2:4, [1, 3]] = True
    assert torch.equal(slow, expected)


def test_what_leaves_the_frame_is_inconsistent() -> None:
    forward, backward = uniform_flow(3, 0), uniform_flow(-3, 0)
    expected = torch.zeros(1, 1, 16, 24, dtype=torch.bool)
    expected[..., -3:] = True
    assert torch.equal(inconsistent(forward, backward), expected)
    assert torch.equal(inconsistent(backward, forward), expected.flip(-1))


def test_consistency_forgives_little_and_more_where_it_is_fast() -> None:
    # The bound is 0.01 (|f|^2 + |b|^2) + 0.5.
    for x, gap, bad in ((0.0, 0.7, False), (0.0, 0.72, True), (10.0, 1.5, False), (10.0, 1.7, True)):
        forward, backward = uniform_flow(x, 0), uniform_flow(-x, gap)
        inner = inconsistent(forward, backward)[..., 2:-2, :-11]
        assert inner.all() if bad else not inner.any()


def test_flow_between_pixels_is_followed_to_its_place() -> None:
    # A backward flow that grows across the frame, met half a pixel on.
    forward = uniform_flow(0.5, 0)
    backward = -forward
    backward[0, 1] = torch.arange(24.0) * 0.2
    met = (torch.arange(24.0) + 0.5) * 0.2
    expected = met.square() > 0.01 * (0.5 + met.square()) + 0.5
    assert torch.equal(inconsistent(forward, backward)[0, 0, 3, :-1], expected[:-1])


def test_a_still_frame_takes_the_smoothed_frame_before() -> None:
    latents = random(4, 4, 3, 3)
    before = latents.clone()
    moving = torch.zeros(3, 1, 3, 3, dtype=torch.bool)
    moving[0, 0, 0, 0] = moving[1, 0, 1, 1] = moving[2, 0, 0, 0] = True
    smoothed = smooth_latents(latents, moving)
    assert torch.equal(latents, before)
    # Each place by hand: the number of the frame whose latent it holds.
    origin = torch.zeros(4, 3, 3, dtype=torch.long)
    origin[1, 0, 0] = 1
    origin[2, 0, 0], origin[2, 1, 1] = 1, 2
    origin[3, 0, 0], origin[3, 1, 1] = 3, 2
    expected = torch.gather(latents, 0, origin[:, None].expand(-1, 4, -1, -1))
    assert torch.equal(smoothed, expected)


def test_smoothing_follows_the_published_rule() -> None:
    latents, flow = random(5, 4, 6, 6), random(4, 2, 24, 24, seed=1)
    moving = relative_motion_mask(flow, 6, 6, threshold=0.4)
    assert moving.any() and not moving.all()
    expected = [latents[0]]
    for i in range(1, 5):
        expected.append(expected[-1] + moving[i - 1].float() * (latents[i] - expected[-1]))
    torch.testing.assert_close(smooth_latents(latents, moving), torch.stack(expected), atol=1e-6, rtol=0)


def test_all_frames_of_a_still_clip_take_the_first() -> None:
    latents, flow = random(5, 4, 6, 6), torch.zeros(4, 2, 24, 24)
    for moving in (relative_motion_mask(flow, 6, 6), absolute_motion_mask(flow, 6, 6, backward_flow=flow)):
        assert torch.equal(smooth_latents(latents, moving), latents[:1].expand(5, -1, -1, -1))


def test_a_clip_that_moves_everywhere_is_left_alone() -> None:
    latents = random(5, 4, 6, 6)
    assert torch.equal(smooth_latents(latents, absolute_motion_mask(uniform_flow(9, 9, pairs=4), 6, 6)), latents)


def test_one_frame_has_nothing_to_smooth() -> None:
    latents, flow = random(1, 4, 6, 6), torch.zeros(0, 2, 24, 24)
    for moving in (relative_motion_mask(flow, 6, 6), absolute_motion_mask(flow, 6, 6, backward_flow=flow)):
        assert torch.equal(smooth_latents(latents, moving), latents)


def test_a_mask_for_another_clip_is_refused() -> None:
    with pytest.raises(ValueError):
        smooth_latents(random(5, 4, 6, 6), torch.zeros(3, 1, 6, 6, dtype=torch.bool))
