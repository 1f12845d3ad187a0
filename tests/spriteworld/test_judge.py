"""The judge reads the shipped sprites, also small, soft and elsewhere, and crops what it is told to."""

import numpy as np
import pytest
import torch

from diffusers_groundavideo.spriteworld import random_scene, random_targets, render
from diffusers_groundavideo.spriteworld.judge import SpriteJudge, crop_boxes


def test_crops_are_the_boxes():
    rows, columns = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    frames = torch.stack([columns, rows, torch.zeros(64, 64)])[None]
    crop = crop_boxes(frames, torch.tensor([[0.25, 0.5, 0.75, 1.0]]))[0]
    # A box of 32 pixels cropped to 32: pixel for pixel.
    torch.testing.assert_close(crop[:2], frames[0, :2, 32:, 16:48], atol=1e-3, rtol=0)
    whole = crop_boxes(frames, torch.tensor([[0.0, 0.0, 1.0, 1.0]]), crop_size=64)
    torch.testing.assert_close(whole, frames, atol=1e-3, rtol=0)


@pytest.mark.parametrize("edited", [False, True])
def test_the_judge_reads_fresh_renders(edited):
    judge = SpriteJudge.from_pretrained()
    right = []
    for seed in range(5_000_000_000_000, 5_000_000_000_040):
        scene = random_scene(seed, motion="linear", num_objects=1)
        if edited:
            scene = random_targets(scene, seed)
        rendered = render(scene)
        frames = torch.from_numpy(rendered.frames).permute(0, 3, 1, 2).float() / 127.5 - 1
        right += [
            name == scene.objects[0].name for name in judge.names(frames, torch.from_numpy(rendered.boxes[:, 0]))
        ]
        removed = render(scene.with_targets([None]))
        frames = torch.from_numpy(removed.frames[:1]).permute(0, 3, 1, 2).float() / 127.5 - 1
        right += [name == "nothing" for name in judge.names(frames, torch.from_numpy(removed.boxes[:1, 0]))]
    assert np.mean(right) >= 0.99
