"""Train a small Depth Anything on the true depth of sprite scenes.

Depth is inverse (near is large) and known exactly; it is learned as it is, without the shift and scale that real data
need. An object that stands lower in the frame is nearer, and so is the ground.

Run: `python examples/train_spriteworld/train_depth.py --run-dir runs`
With `--evaluate-only` the finished model of the run is measured through the annotators, and nothing is trained; the
shipped one with `--run-dir src/diffusers_groundavideo/spriteworld --evaluate-only`.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy.stats import spearmanr
from training import (
    FRESH_SEED,
    TrainingRun,
    WeightAverage,
    batch_seeds,
    learning_rate_at,
    render_batch,
    start,
    training_parser,
    with_noise,
)
from transformers import DepthAnythingConfig, DepthAnythingForDepthEstimation, DPTImageProcessor

from diffusers_groundavideo.annotators import DepthEstimator
from diffusers_groundavideo.spriteworld import random_scene, render


IMAGE_SIZE = 64
PATCH_SIZE = 8


def build_depth_model() -> DepthAnythingForDepthEstimation:
    backbone = {
        "model_type": "dinov2",
        "image_size": IMAGE_SIZE,
        "patch_size": PATCH_SIZE,
        "hidden_size": 96,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "mlp_ratio": 2,
        "out_features": ["stage1", "stage2", "stage3", "stage4"],
        "reshape_hidden_states": False,
        "use_mask_token": False,
    }
    config = DepthAnythingConfig(
        backbone_config=backbone,
        patch_size=PATCH_SIZE,
        reassemble_hidden_size=96,
        neck_hidden_sizes=[24, 32, 48, 48],
        fusion_hidden_size=24,
        head_hidden_size=16,
    )
    model = DepthAnythingForDepthEstimation(config)
    for module in (*model.neck.modules(), *model.head.modules()):
        # Its own initialisation is for wider layers: here they would pass on next to nothing.
        if isinstance(module, (torch.nn.Conv2d, torch.nn.ConvTranspose2d)):
            module.reset_parameters()
    # It ends in a ReLU, which must not start shut.
    torch.nn.init.constant_(model.head.conv3.get_parameter("bias"), 0.5)
    return model


def depth_loss(model: DepthAnythingForDepthEstimation, frames: torch.Tensor, depth: torch.Tensor) -> torch.Tensor:
    """Mean absolute error, of depth and of its steps from pixel to pixel, by which edges are sharp.

    Args:
        frames: (B, 3, 64, 64) in [-1, 1].
        depth: (B, 64, 64) in [0, 1], near is large.
    """
    predicted = model(frames).predicted_depth
    steps = sum(F.l1_loss(predicted.diff(dim=axis), depth.diff(dim=axis)) for axis in (1, 2))
    return F.l1_loss(predicted, depth) + steps


def depth_figures(estimator: DepthEstimator, seeds: Sequence[int]) -> dict[str, float]:
    """Spearman's rank correlation of estimated and true depth over all pixels of a clip, on clips of 8 frames: the
    mean, the worst, and the mean over the pixels of objects alone."""
    whole, objects = [], []
    for seed in seeds:
        rendered = render(random_scene(seed))
        estimated = estimator(rendered.frames).numpy()
        whole.append(spearmanr(estimated.ravel(), rendered.depth.ravel()).statistic)
        covered = rendered.visible_masks.any(1)
        if np.ptp(rendered.depth[covered]) > 0:
            objects.append(spearmanr(estimated[covered], rendered.depth[covered]).statistic)
    return {
        "spearman": float(np.mean(whole)),
        "worst_spearman": float(np.min(whole)),
        "spearman_objects": float(np.mean(objects)),
    }


def evaluate(folder: Path, num_clips: int = 100) -> dict[str, float]:
    """The figures of a finished model, as the annotators load it, on fresh clips."""
    return depth_figures(DepthEstimator.from_pretrained(folder), range(FRESH_SEED, FRESH_SEED + num_clips))


def save(model: DepthAnythingForDepthEstimation, folder: Path) -> None:
    """In half precision, with the image processor."""
    half: Any = [0.5, 0.5, 0.5]
    model.half().save_pretrained(folder)
    size = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    DPTImageProcessor(size=size, image_mean=half, image_std=half).save_pretrained(folder)


def main() -> None:
    parser = training_parser(__doc__, steps=2400, batch_size=16, learning_rate=1e-3)
    parser.add_argument("--evaluate-only", action="store_true", help="measure the finished model of the run")
    args = parser.parse_args()
    start(args)
    if args.evaluate_only:
        print(json.dumps(evaluate(args.run_dir / "depth"), indent=1))
        return

    run = TrainingRun(args.run_dir / "depth_training", args.save_minutes)
    model = build_depth_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.learning_rate, weight_decay=1e-2)
    average = WeightAverage(model, decay=0.995)
    first_step = 0
    if (state := run.resume()) is not None:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        average.average = state["average"]
        first_step = state["step"]

    model.train()
    for step in range(first_step, args.steps):
        optimizer.param_groups[0]["lr"] = learning_rate_at(step, args.steps, args.learning_rate)
        _, rendered, frames = render_batch(batch_seeds(args.seed, step, args.batch_size))
        frames = with_noise(frames, torch.Generator().manual_seed(step))
        loss = depth_loss(model, frames, torch.from_numpy(np.concatenate([item.depth for item in rendered])))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        average.update(model, step)
        if step % 25 == 0 or step == args.steps - 1:
            run.log(step, loss=loss.item())
        if run.due():
            run.save(step + 1, model=model.state_dict(), optimizer=optimizer.state_dict(), average=average.average)
    run.save(args.steps, model=model.state_dict(), optimizer=optimizer.state_dict(), average=average.average)

    model.load_state_dict(average.average)
    save(model, args.run_dir / "depth")
    run.log(args.steps, **evaluate(args.run_dir / "depth", 2 if args.smoke else 100))


if __name__ == "__main__":
    main()
