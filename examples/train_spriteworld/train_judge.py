"""Train the judge: a small classifier of what stands in a box, independent of the generative models.

Run: `python examples/train_spriteworld/train_judge.py --run-dir runs`
"""

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from training import (
    FRESH_SEED,
    TrainingRun,
    batch_seeds,
    frames_to_tensor,
    learning_rate_at,
    single_frame_scene,
    start,
    training_parser,
)

from diffusers_groundavideo.spriteworld import render
from diffusers_groundavideo.spriteworld.judge import JUDGE_CLASSES, SpriteJudge, crop_boxes


# Objects of which less than this share is seen are asked of nobody.
MIN_SEEN_SHARE = 0.6


def crop_batch(seeds: list[int], jitter: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Crops and labels of all well visible objects of some scenes, and of one empty place each.

    Args:
        seeds: scene seeds.
        jitter: the corners of the boxes are moved by up to this share of the box.

    Returns:
        crops (M, 3, 32, 32) in [-1, 1] and labels (M,), indices of `JUDGE_CLASSES`.
    """
    crops, labels = [], []
    for seed in seeds:
        rng = np.random.default_rng((seed, 2))
        scene = single_frame_scene(seed)
        rendered = render(scene)
        boxes, names = [], []
        for index, item in enumerate(scene.objects):
            full = rendered.full_masks[0, index].sum()
            if np.isnan(rendered.boxes[0, index, 0]) or not full or item.name is None:
                continue
            if rendered.visible_masks[0, index].sum() >= MIN_SEEN_SHARE * full:
                boxes.append(rendered.boxes[0, index])
                names.append(item.name)
        for _ in range(4):
            corner, extent = rng.uniform(0, 0.7, size=2), rng.uniform(0.25, 0.5, size=2)
            box = np.concatenate([corner, np.minimum(corner + extent, 1)]).astype(np.float32)
            x0, y0, x1, y1 = np.rint(box * scene.size).astype(int)
            if not rendered.full_masks[0, :, y0:y1, x0:x1].any():
                boxes.append(box)
                names.append("nothing")
                break
        for box, name in zip(boxes, names):
            extent = np.tile(box[2:] - box[:2], 2)
            moved = box + jitter * extent * rng.uniform(-1, 1, size=4).astype(np.float32)
            crops.append(crop_boxes(frames_to_tensor(rendered.frames), torch.from_numpy(moved)[None]))
            labels.append(JUDGE_CLASSES.index(name))
    return torch.cat(crops), torch.tensor(labels)


def main() -> None:
    parser = training_parser(__doc__, steps=500, batch_size=32, learning_rate=2e-3)
    args = parser.parse_args()
    start(args)
    run = TrainingRun(args.run_dir / "judge", args.save_minutes)
    judge = SpriteJudge()
    optimizer = torch.optim.AdamW(judge.parameters(), lr=args.learning_rate, weight_decay=1e-2)
    first_step = 0
    if (state := run.resume()) is not None:
        judge.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        first_step = state["step"]

    for step in range(first_step, args.steps):
        optimizer.param_groups[0]["lr"] = learning_rate_at(step, args.steps, args.learning_rate)
        crops, labels = crop_batch(batch_seeds(args.seed, step, args.batch_size), jitter=0.08)
        generator = torch.Generator().manual_seed(step)
        # Generated pictures are noisier and softer than rendered ones; the judge must not be put off by that.
        strength = 0.15 * torch.rand(len(crops), 1, 1, 1, generator=generator)
        noisy = crops + strength * torch.randn(crops.shape, generator=generator)
        soft = F.avg_pool2d(F.pad(noisy, (1, 1, 1, 1), mode="replicate"), 3, 1)
        crops = torch.where(torch.rand(len(crops), 1, 1, 1, generator=generator) < 0.3, soft, noisy)
        loss = F.cross_entropy(judge(crops), labels, label_smoothing=0.05)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 50 == 0 or step == args.steps - 1:
            run.log(step, loss=loss.item())
        if run.due():
            run.save(step + 1, model=judge.state_dict(), optimizer=optimizer.state_dict())
    run.save(args.steps, model=judge.state_dict(), optimizer=optimizer.state_dict())

    judge.eval()
    fresh = 8 if args.smoke else 1000
    crops, labels = crop_batch(list(range(FRESH_SEED, FRESH_SEED + fresh)), jitter=0.0)
    with torch.no_grad():
        right = (judge(crops).argmax(-1) == labels).float()
    run.log(args.steps, fresh_accuracy=right.mean().item(), fresh_crops=len(right))
    save_file(judge.half().state_dict(), args.run_dir / "judge.safetensors")


if __name__ == "__main__":
    main()
