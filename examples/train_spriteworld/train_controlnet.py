"""Train the depth ControlNet, the UNet frozen.

Its pictures are the depth *before* the edit, as in use, in three grades alike: as rendered, blurred, and as flat
boxes. An exact silhouette alone would teach it to force the old shape on the new object.

Needs the outputs of `train_unet.py`. Run: `python examples/train_spriteworld/train_controlnet.py --run-dir runs`
"""

import numpy as np
import torch
from diffusers import ControlNetModel, UNet2DConditionModel
from edit_pairs import EditPairs, edit_scenes, fresh_pairs, load_pairs
from PIL import Image, ImageFilter
from train_clip import HIDDEN_SIZE
from train_unet import (
    NOISED_SOURCE_SHARE,
    build_scheduler,
    build_unet,
    evaluate,
    load_conditions,
    timestep_weights,
    training_loss,
)
from training import TrainingRun, WeightAverage, learning_rate_at, start, training_parser

from diffusers_groundavideo.spriteworld import render


DEPTH_GRADES = ("sharp", "blurred", "boxes")


def build_controlnet(unet: UNet2DConditionModel) -> ControlNetModel:
    """A ControlNet of the UNet's shape, starting from the weights of its encoder."""
    controlnet = ControlNetModel(
        in_channels=4,
        block_out_channels=unet.config.block_out_channels,
        layers_per_block=unet.config.layers_per_block,
        down_block_types=unet.config.down_block_types,
        cross_attention_dim=HIDDEN_SIZE,
        attention_head_dim=unet.config.attention_head_dim,
        norm_num_groups=unet.config.norm_num_groups,
        # Two halvings, from pixels to latents.
        conditioning_embedding_out_channels=(16, 32, 64),
    )
    own, theirs = controlnet.state_dict(), unet.state_dict()
    # Of the 9 input channels a ControlNet sees the noised latents only; it has no gates.
    theirs["conv_in.weight"] = theirs["conv_in.weight"][:, :4]
    controlnet.load_state_dict({key: theirs.get(key, value) for key, value in own.items()})
    return controlnet


def depth_pictures(pairs: EditPairs, seed: int) -> torch.Tensor:
    """Depth before the edit, each picture in a grade drawn at random: (B, 3, 64, 64) in [0, 1], near bright."""
    rng = np.random.default_rng((seed, 7))
    pictures = []
    for scene_seed in pairs.seeds.tolist():
        before, _ = edit_scenes(scene_seed)
        rendered = render(before)
        depth = rendered.depth[0].copy()
        grade = DEPTH_GRADES[rng.integers(len(DEPTH_GRADES))]
        if grade == "boxes":
            for index in sorted(range(len(before.objects)), key=lambda position: before.objects[position].depth):
                box = rendered.boxes[0, index]
                if before.objects[index].name is not None and not np.isnan(box[0]):
                    x0, y0, x1, y1 = np.rint(box * before.size).astype(int)
                    depth[y0:y1, x0:x1] = before.objects[index].depth
        elif grade == "blurred":
            levels = Image.fromarray((255 * depth).astype(np.uint8))
            depth = np.asarray(levels.filter(ImageFilter.GaussianBlur(rng.uniform(1, 4))), dtype=np.float32) / 255
        pictures.append(depth)
    return torch.from_numpy(np.stack(pictures))[:, None].repeat(1, 3, 1, 1)


def main() -> None:
    parser = training_parser(__doc__, steps=1200, batch_size=16, learning_rate=5e-4)
    parser.add_argument("--num-pairs", type=int, default=16000)
    parser.add_argument("--num-fresh", type=int, default=128)
    parser.add_argument("--guidance-scale", type=float, default=2.0, help="of the evaluation")
    args = parser.parse_args()
    start(args)
    if args.smoke:
        args.num_pairs, args.num_fresh = 8, 4
    run = TrainingRun(args.run_dir / "controlnet_training", args.save_minutes)
    vae, text, judge = load_conditions(args)
    pairs = load_pairs(args.run_dir / "pairs", vae, args.seed, args.num_pairs)
    unet = build_unet()
    unet.load_state_dict(UNet2DConditionModel.from_pretrained(args.run_dir / "unet").float().state_dict())
    unet.eval().requires_grad_(False)
    controlnet = build_controlnet(unet)
    optimizer = torch.optim.AdamW(controlnet.parameters(), lr=args.learning_rate, weight_decay=1e-2)
    average = WeightAverage(controlnet, decay=0.995)
    first_step = 0
    if (state := run.resume()) is not None:
        controlnet.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        average.average, first_step = state["average"], state["step"]
    scheduler = build_scheduler()
    weights = timestep_weights(scheduler)
    losses: list[float] = []

    for step in range(first_step, args.steps):
        optimizer.param_groups[0]["lr"] = learning_rate_at(step, args.steps, args.learning_rate)
        step_seed = args.seed * 10**6 + step
        order = torch.Generator().manual_seed(step_seed)
        chosen = pairs.select(torch.randint(len(pairs), (args.batch_size,), generator=order))
        depth = depth_pictures(chosen, step_seed)
        loss, _ = training_loss(
            unet, scheduler, text, chosen, weights, step_seed, NOISED_SOURCE_SHARE, controlnet, depth
        )
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(controlnet.parameters(), 1.0)
        optimizer.step()
        average.update(controlnet, step)
        losses.append(loss.item())
        if step % 50 == 0 or step == args.steps - 1:
            run.log(step, loss=float(np.mean(losses)))
            losses = []
        if run.due():
            run.save(
                step + 1, model=controlnet.state_dict(), optimizer=optimizer.state_dict(), average=average.average
            )
    run.save(args.steps, model=controlnet.state_dict(), optimizer=optimizer.state_dict(), average=average.average)

    controlnet.load_state_dict(average.average)
    controlnet.eval().requires_grad_(False).half().save_pretrained(args.run_dir / "controlnet")
    controlnet.float()
    fresh = fresh_pairs(vae, args.num_fresh)
    depth = depth_pictures(fresh, seed=0)
    with torch.no_grad():
        without = training_loss(unet, scheduler, text, fresh, weights, 0, 0.0)[0].item()
        with_depth = training_loss(unet, scheduler, text, fresh, weights, 0, 0.0, controlnet, depth)[0].item()
    run.log(args.steps, fresh_loss_without=without, fresh_loss_with=with_depth)
    steps = 2 if args.smoke else 20
    run.log(args.steps, **evaluate(unet, vae, text, judge, fresh, steps, args.guidance_scale, controlnet, depth))


if __name__ == "__main__":
    main()
