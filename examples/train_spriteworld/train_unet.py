"""Train the gated 9-channel UNet: GLIGEN inpainting on pairs of frames before and after a perfect edit.

Needs the outputs of `train_judge.py`, `train_clip.py` and `train_vae.py` in the same folder.
Run: `python examples/train_spriteworld/train_unet.py --run-dir runs`
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, ControlNetModel, DDIMScheduler, UNet2DConditionModel
from edit_pairs import (
    LATENT_SIZE,
    MAX_TOKENS,
    NOTHING,
    EditPairs,
    TextConditions,
    box_cells,
    condition_channels,
    fresh_pairs,
    load_pairs,
    random_masks,
)
from grounded_attention import grounded_attention_loss, recorded_gated_attention
from train_clip import HIDDEN_SIZE
from training import TrainingRun, WeightAverage, learning_rate_at, psnr, start, training_parser
from transformers import CLIPTextModel, CLIPTokenizer

from diffusers_groundavideo.spriteworld.judge import JUDGE_CLASSES, SpriteJudge, crop_boxes


# Inversion has the groundings without a caption, the unconditional branch of guidance has neither.
CAPTION_DROP = 0.12
GROUNDING_DROP = 0.08
JOINT_DROP = 0.08
WHOLE_FRAME_SHARE = 0.12
KEPT_WEIGHT = 0.25
# A little noise that is the same all over a channel. Without it the mean of even the noisiest latents betrays the
# picture's colours, the UNet learns to read them there instead of in its conditions, and pictures started from pure
# noise turn out grey.
NOISE_OFFSET = 0.1
ATTENTION_WEIGHT = 0.05
# An edit starts from the inverted source, in which the old object still glimmers. So that it does not shine through,
# the noisiest latents are of the source in half of the cases, while the picture to be predicted is the target. The
# sprites themselves come first.
NOISED_SOURCE_SHARE = 0.5
NOISED_SOURCE_FROM_TIMESTEP = 700
NOISED_SOURCE_FROM_STEP = 1200


def build_unet() -> UNet2DConditionModel:
    """Transformer blocks only at 8x8: at 16x16 they would cost four times as much, and an 8-pixel cell is small
    enough to tell the objects apart, whose outlines the convolutions and the mask take care of."""
    unet = UNet2DConditionModel(
        sample_size=LATENT_SIZE,
        in_channels=9,
        out_channels=4,
        block_out_channels=(64, 128),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=HIDDEN_SIZE,
        attention_head_dim=4,
        norm_num_groups=16,
        attention_type="gated",
    )
    # GLIGEN adds its gates to a trained model and opens them slowly, from 0; trained from nothing they start open.
    for name, parameter in unet.named_parameters():
        if name.endswith(("alpha_attn", "alpha_dense")):
            torch.nn.init.ones_(parameter)
    return unet


def build_scheduler() -> DDIMScheduler:
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        timestep_spacing="leading",
        steps_offset=1,
    )


def timestep_weights(scheduler: DDIMScheduler) -> torch.Tensor:
    """Weight of the squared error of the noise at each timestep: (1000,).

    Uniform weights spend most of their gradient on fine detail at little noise. What is painted is decided at much
    noise, where an error of the picture is hardly an error of the noise; the weight 1 / sqrt(SNR) makes up for half
    of that (on a log scale), clipped where it would be all that counts.
    """
    snr = scheduler.alphas_cumprod / (1 - scheduler.alphas_cumprod)
    return snr.rsqrt().clamp(0.2, 4.0)


def control_residuals(
    controlnet: ControlNetModel | None,
    latents: torch.Tensor,
    timesteps: torch.Tensor,
    prompts: torch.Tensor,
    depth: torch.Tensor | None,
) -> dict[str, Any]:
    """The keyword arguments that hand a ControlNet's residuals to the UNet; none without a ControlNet."""
    if controlnet is None:
        return {}
    down, mid = controlnet(latents, timesteps, prompts, controlnet_cond=depth, return_dict=False)
    return {"down_block_additional_residuals": down, "mid_block_additional_residual": mid}


def training_loss(
    unet: UNet2DConditionModel,
    scheduler: DDIMScheduler,
    text: TextConditions,
    pairs: EditPairs,
    weights: torch.Tensor,
    step_seed: int,
    noised_source_share: float,
    controlnet: ControlNetModel | None = None,
    depth: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The weighted noise-prediction error of one batch, and its `grounded_attention_loss`; everything random is drawn
    from `step_seed`.

    Args:
        unet, scheduler, text: the model and what it is conditioned with.
        pairs: B pairs.
        weights: (1000,) weight of each timestep.
        step_seed: seed of masks, dropouts, noise, timesteps and wording.
        noised_source_share: share of the noisiest latents that are made of the source.
        controlnet, depth: a ControlNet and its pictures, (B, 3, 64, 64) in [0, 1], near bright.
    """
    generator, rng = torch.Generator().manual_seed(step_seed), np.random.default_rng((step_seed, 5))
    count = len(pairs)
    masks = random_masks(pairs, generator, WHOLE_FRAME_SHARE)
    fate = torch.rand(count, generator=generator)
    drop_caption = fate < CAPTION_DROP + JOINT_DROP
    drop_grounding = (fate >= CAPTION_DROP) & (fate < CAPTION_DROP + JOINT_DROP + GROUNDING_DROP)
    new_background = pairs.backgrounds[:, 0] != pairs.backgrounds[:, 1]
    open_share = 1 - masks.mean((1, 2, 3))
    place = new_background | ((open_share == 1) & (torch.rand(count, generator=generator) < 0.4))

    target, source = pairs.target.float(), pairs.source.float()
    # One timestep from each of B equal parts of the schedule: as uniform as independent draws, with less variance.
    strata = (torch.arange(count) + torch.rand(count, generator=generator)) / count
    timesteps = (strata * scheduler.config.num_train_timesteps).long()
    noise = torch.randn(target.shape, generator=generator)
    noise += NOISE_OFFSET * torch.randn(*target.shape[:2], 1, 1, generator=generator)
    # 0 at NOISED_SOURCE_FROM_TIMESTEP, 1 at the last timestep.
    lateness = (timesteps - NOISED_SOURCE_FROM_TIMESTEP) / (999 - NOISED_SOURCE_FROM_TIMESTEP)
    source_share = lateness.clamp(0, 1) * (torch.rand(count, generator=generator) < noised_source_share)
    start_picture = torch.lerp(target, source, source_share[:, None, None, None])
    noisy = scheduler.add_noise(start_picture, noise, timesteps)
    # The noise that leads from the noisy latents to the target.
    signal = scheduler.alphas_cumprod[timesteps].sqrt()[:, None, None, None]
    noise = (noisy - signal * target) / (1 - signal.square()).sqrt()
    prompts = text.captions(pairs, rng, drop_caption)
    gligen = text.groundings(pairs, rng, drop_grounding, place)
    with recorded_gated_attention(unet, MAX_TOKENS) as logits:
        prediction = unet(
            torch.cat([noisy, condition_channels(source, masks)], dim=1),
            timesteps,
            encoder_hidden_states=prompts,
            cross_attention_kwargs={"gligen": dict(gligen)},
            **control_residuals(controlnet, noisy, timesteps, prompts, depth),
        ).sample
    region = masks * KEPT_WEIGHT + (1 - masks)
    error = (region * (prediction - noise).square()).mean((1, 2, 3)) / region.mean((1, 2, 3))
    return (weights[timesteps] * error).mean(), grounded_attention_loss(logits, gligen["boxes"], gligen["masks"])


@torch.no_grad()
def sample(
    unet: UNet2DConditionModel,
    scheduler: DDIMScheduler,
    text: TextConditions,
    pairs: EditPairs,
    masks: torch.Tensor,
    num_inference_steps: int,
    guidance_scale: float,
    controlnet: ControlNetModel | None = None,
    depth: torch.Tensor | None = None,
) -> torch.Tensor:
    """Edit single frames with plain DDIM, starting from the noised source, as an edit starts from the inverted one;
    from pure noise where the whole frame is open. Returns latents (B, 4, 16, 16)."""
    count, rng = len(pairs), np.random.default_rng(6)
    no, yes = torch.zeros(count, dtype=torch.bool), torch.ones(count, dtype=torch.bool)
    place = pairs.backgrounds[:, 0] != pairs.backgrounds[:, 1]
    prompts = torch.cat([text.captions(pairs, rng, yes), text.captions(pairs, rng, no)])
    with_objects = text.groundings(pairs, rng, no, place)
    gligen = {key: torch.cat([torch.zeros_like(value), value]) for key, value in with_objects.items()}
    condition = condition_channels(pairs.source.float(), masks)
    noise = torch.randn(pairs.source.shape, generator=torch.Generator().manual_seed(0))
    doubled_depth = None if depth is None else depth.repeat(2, 1, 1, 1)
    scheduler.set_timesteps(num_inference_steps)
    noised = scheduler.add_noise(pairs.source.float(), noise, scheduler.timesteps[:1].repeat(count))
    latents = torch.where((masks == 0).all(dim=(1, 2, 3), keepdim=True), noise, noised)
    for timestep in scheduler.timesteps:
        model_input = torch.cat([latents, condition], dim=1).repeat(2, 1, 1, 1)
        # A copy: the UNet takes the entry out of the dict it is given.
        prediction = unet(
            model_input,
            timestep,
            encoder_hidden_states=prompts,
            cross_attention_kwargs={"gligen": dict(gligen)},
            **control_residuals(controlnet, model_input[:, :4], timestep, prompts, doubled_depth),
        ).sample
        unconditional, conditional = prediction.chunk(2)
        guided = unconditional + guidance_scale * (conditional - unconditional)
        latents = scheduler.step(guided, timestep, latents).prev_sample
    return latents


@torch.no_grad()
def judged_right(judge: SpriteJudge, frames: torch.Tensor, pairs: EditPairs, asked: torch.Tensor) -> float:
    """Share of the boxes `asked` (B, 3) in which the judge finds what should be there after the edit."""
    rows, columns = asked.nonzero(as_tuple=True)
    if not len(rows):
        return float("nan")
    found = judge(crop_boxes(frames[rows], pairs.boxes[rows, columns])).argmax(-1)
    wanted = pairs.names[rows, columns]
    wanted = torch.where(wanted == NOTHING, JUDGE_CLASSES.index("nothing"), wanted)
    return (found == wanted).float().mean().item()


@torch.no_grad()
def evaluate(
    unet: UNet2DConditionModel,
    vae: AutoencoderKL,
    text: TextConditions,
    judge: SpriteJudge,
    pairs: EditPairs,
    num_inference_steps: int = 20,
    guidance_scale: float = 2.0,
    controlnet: ControlNetModel | None = None,
    depth: torch.Tensor | None = None,
) -> dict[str, float]:
    """Edits and generations of fresh single frames, as the judge sees them.

    Returns:
        `edited`: share of right sprites in boxes to be changed; `kept`: in the others; `edited_ceiling` and
        `kept_ceiling`: the same of the perfect edits through the autoencoder; `removed`: share of emptied boxes found
        empty; `generated`: share of right sprites in all boxes when the whole frame is open; `background_psnr`: dB,
        outside of what was opened, against the autoencoder's own reconstruction of the source.
    """
    scheduler = build_scheduler()
    named = pairs.names != NOTHING
    inside = ~pairs.boxes.isnan().any(-1)
    same_background = (pairs.backgrounds[:, 0] == pairs.backgrounds[:, 1])[:, None]
    opened = (box_cells(pairs.boxes) & pairs.changed[..., None, None]).any(1, keepdim=True)
    kept = (pairs.seen & ~pairs.changed[..., None, None]).any(1, keepdim=True)
    masks = torch.where(same_background[..., None, None], ~opened, kept).float()

    def decode(latents: torch.Tensor) -> torch.Tensor:
        return vae.decode(latents.float() / vae.config.scaling_factor).sample.clamp(-1, 1)

    arguments = (num_inference_steps, guidance_scale, controlnet, depth)
    edited = decode(sample(unet, scheduler, text, pairs, masks, *arguments))
    generated = decode(sample(unet, scheduler, text, pairs, torch.zeros_like(masks), *arguments))
    perfect, before = decode(pairs.target), decode(pairs.source)
    # Pixels that no open cell touches, where the background stays.
    rows = (same_background[:, 0] & (masks.mean((1, 2, 3)) > 0.2)).nonzero()[:, 0]
    still = torch.nn.functional.interpolate(masks[rows], size=edited.shape[-1], mode="nearest")
    background = psnr(edited[rows] * still, before[rows] * still) + 10 * still.mean((1, 2, 3)).log10()
    return {
        "edited": judged_right(judge, edited, pairs, pairs.changed & named & inside),
        "edited_ceiling": judged_right(judge, perfect, pairs, pairs.changed & named & inside),
        "removed": judged_right(judge, edited, pairs, pairs.changed & ~named & inside),
        "kept": judged_right(judge, edited, pairs, ~pairs.changed & named & inside),
        "kept_ceiling": judged_right(judge, perfect, pairs, ~pairs.changed & named & inside),
        "generated": judged_right(judge, generated, pairs, named & inside),
        "background_psnr": background.mean().item(),
    }


def load_conditions(args: argparse.Namespace) -> tuple[AutoencoderKL, TextConditions, SpriteJudge]:
    """The frozen parts, from the training folder."""
    vae = AutoencoderKL.from_pretrained(args.run_dir / "vae").float().eval().requires_grad_(False)
    text_encoder = CLIPTextModel.from_pretrained(args.run_dir / "text_encoder").requires_grad_(False)
    tokenizer = CLIPTokenizer.from_pretrained(args.run_dir / "tokenizer")
    judge = SpriteJudge.from_pretrained(args.run_dir / "judge.safetensors")
    return vae, TextConditions(text_encoder, tokenizer), judge


def export_average(module: UNet2DConditionModel, average: WeightAverage, folder: Path) -> None:
    """Write the averaged weights in half precision, and leave in `module` what was written: what ships is measured."""
    module.load_state_dict(average.average)
    module.half().save_pretrained(folder)
    module.float()


def main() -> None:
    parser = training_parser(__doc__, steps=5000, batch_size=16, learning_rate=1e-3)
    parser.add_argument("--num-pairs", type=int, default=16000, help="pairs of frames, encoded once")
    parser.add_argument("--num-fresh", type=int, default=128, help="pairs of the evaluation")
    parser.add_argument("--evaluate-every", type=int, default=1500, help="steps between evaluations of the average")
    parser.add_argument("--guidance-scale", type=float, default=2.0, help="of the evaluation")
    args = parser.parse_args()
    start(args)
    if args.smoke:
        args.num_pairs, args.num_fresh = 8, 4
    run = TrainingRun(args.run_dir / "unet_training", args.save_minutes)
    vae, text, judge = load_conditions(args)
    pairs = load_pairs(args.run_dir / "pairs", vae, args.seed, args.num_pairs)
    fresh = fresh_pairs(vae, args.num_fresh)
    run.log(0, pairs=len(pairs), parameters=sum(parameter.numel() for parameter in build_unet().parameters()))

    unet = build_unet()
    optimizer = torch.optim.AdamW(unet.parameters(), lr=args.learning_rate, betas=(0.9, 0.99), weight_decay=1e-2)
    average = WeightAverage(unet, decay=0.999)
    first_step = 0
    if (state := run.resume()) is not None:
        unet.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        average.average, first_step = state["average"], state["step"]
    averaged = build_unet().eval().requires_grad_(False)
    scheduler = build_scheduler()
    weights = timestep_weights(scheduler)
    losses: list[tuple[float, float]] = []

    for step in range(first_step, args.steps):
        optimizer.param_groups[0]["lr"] = learning_rate_at(step, args.steps, args.learning_rate)
        order = torch.Generator().manual_seed(args.seed * 10**6 + step)
        chosen = pairs.select(torch.randint(len(pairs), (args.batch_size,), generator=order))
        noised_source_share = NOISED_SOURCE_SHARE if step >= NOISED_SOURCE_FROM_STEP else 0.0
        loss, attention_loss = training_loss(
            unet, scheduler, text, chosen, weights, args.seed * 10**6 + step, noised_source_share
        )
        optimizer.zero_grad()
        (loss + ATTENTION_WEIGHT * attention_loss).backward()
        torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.step()
        average.update(unet, step)
        losses.append((loss.item(), attention_loss.item()))
        if step % 50 == 0 or step == args.steps - 1:
            noise_loss, gates_loss = np.mean(losses, axis=0)
            run.log(step, loss=float(noise_loss), attention_loss=float(gates_loss))
            losses = []
        if (step + 1) % args.evaluate_every == 0 and step + 1 < args.steps:
            export_average(averaged, average, args.run_dir / "unet")
            few = fresh.select(torch.arange(min(48, len(fresh))))
            run.log(step + 1, **evaluate(averaged, vae, text, judge, few, 10, args.guidance_scale))
        if run.due():
            run.save(step + 1, model=unet.state_dict(), optimizer=optimizer.state_dict(), average=average.average)
    run.save(args.steps, model=unet.state_dict(), optimizer=optimizer.state_dict(), average=average.average)

    export_average(averaged, average, args.run_dir / "unet")
    steps = 2 if args.smoke else 20
    run.log(args.steps, **evaluate(averaged, vae, text, judge, fresh, steps, args.guidance_scale))


if __name__ == "__main__":
    main()
