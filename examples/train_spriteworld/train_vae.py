"""Train the autoencoder: `AutoencoderKL`, 4x smaller latents with 4 channels, unit variance by construction.

Run: `python examples/train_spriteworld/train_vae.py --run-dir runs`
"""

import torch
from diffusers import AutoencoderKL
from training import (
    FRESH_SEED,
    TrainingRun,
    WeightAverage,
    batch_seeds,
    learning_rate_at,
    psnr,
    render_batch,
    start,
    training_parser,
)


def build_vae() -> AutoencoderKL:
    """64x64 pictures to (4, 16, 16) latents; narrow where the picture is large, which is where the time goes."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(24, 32, 64),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=64,
        scaling_factor=1.0,
    )


@torch.no_grad()
def standardise_latents(vae: AutoencoderKL, frames: torch.Tensor) -> None:
    """Give the latents zero mean and unit variance per channel, in place, without changing any reconstruction.

    `scaling_factor` could only scale all channels alike; the two 1x1 convolutions around the latents can do more.

    Args:
        vae: the autoencoder.
        frames: (B, 3, H, W) in [-1, 1] to measure on.
    """
    latents = vae.encode(frames).latent_dist.mean
    mean, std = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
    channels = len(mean)
    # The quant convolution puts out means, then log-variances.
    vae.quant_conv.weight[:channels] /= std[:, None, None, None]
    vae.quant_conv.bias[:channels] = (vae.quant_conv.bias[:channels] - mean) / std
    vae.quant_conv.bias[channels:] -= 2 * std.log()
    weight = vae.post_quant_conv.weight.clone()
    vae.post_quant_conv.bias += weight[:, :, 0, 0] @ mean
    vae.post_quant_conv.weight.copy_(weight * std[None, :, None, None])


def main() -> None:
    parser = training_parser(__doc__, steps=3200, batch_size=8, learning_rate=1.5e-3)
    parser.add_argument("--kl-weight", type=float, default=2e-4, help="of the divergence in nats per latent number")
    args = parser.parse_args()
    start(args)
    run = TrainingRun(args.run_dir / "vae_training", args.save_minutes)
    vae = build_vae()
    optimizer = torch.optim.AdamW(vae.parameters(), lr=args.learning_rate, weight_decay=1e-4)
    average = WeightAverage(vae, decay=0.998)
    first_step = 0
    if (state := run.resume()) is not None:
        vae.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        average.average, first_step = state["average"], state["step"]

    for step in range(first_step, args.steps):
        optimizer.param_groups[0]["lr"] = learning_rate_at(step, args.steps, args.learning_rate)
        _, _, frames = render_batch(batch_seeds(args.seed, step, args.batch_size))
        posterior = vae.encode(frames).latent_dist
        reconstruction = vae.decode(posterior.sample(torch.Generator().manual_seed(step))).sample
        error = reconstruction - frames
        divergence = posterior.kl().mean() / posterior.mean[0].numel()
        loss = error.abs().mean() + 5 * error.square().mean() + args.kl_weight * divergence
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        average.update(vae, step)
        if step % 100 == 0 or step == args.steps - 1:
            run.log(
                step, loss=loss.item(), psnr=psnr(reconstruction, frames).mean().item(), divergence=divergence.item()
            )
        if run.due():
            run.save(step + 1, model=vae.state_dict(), optimizer=optimizer.state_dict(), average=average.average)
    run.save(args.steps, model=vae.state_dict(), optimizer=optimizer.state_dict(), average=average.average)

    vae.load_state_dict(average.average)
    vae.eval()
    fresh = 4 if args.smoke else 256
    standardise_latents(vae, render_batch(batch_seeds(args.seed, 0, fresh))[2])
    # What ships is half precision, so that is what is measured.
    vae.half().save_pretrained(args.run_dir / "vae")
    vae = AutoencoderKL.from_pretrained(args.run_dir / "vae").float()
    _, _, frames = render_batch(list(range(FRESH_SEED, FRESH_SEED + fresh)))
    with torch.no_grad():
        latents = vae.encode(frames).latent_dist.mean
        figures = psnr(vae.decode(latents).sample.clamp(-1, 1), frames)
    run.log(args.steps, fresh_psnr=figures.mean().item(), fresh_psnr_worst=figures.min().item(), fresh_frames=fresh)


if __name__ == "__main__":
    main()
