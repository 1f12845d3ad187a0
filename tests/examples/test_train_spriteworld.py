"""The training scripts run, resume, and end in a checkpoint that loads; their parts do what they say."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, ControlNetModel, DDIMScheduler, UNet2DConditionModel
from safetensors.torch import load_file
from transformers import CLIPTextModel, CLIPTokenizer

from diffusers_groundavideo.annotators import DepthEstimator, Detection, ObjectDetector
from diffusers_groundavideo.spriteworld import render


SCRIPTS = Path(__file__).resolve().parents[2] / "examples" / "train_spriteworld"
sys.path.insert(0, str(SCRIPTS))

from edit_pairs import NOTHING, box_cells, edit_scenes, encode_pairs, random_masks  # noqa: E402
from grounded_attention import grounded_attention_loss, recorded_gated_attention  # noqa: E402
from train_detector import NAMES, assign, average_precision, object_boxes  # noqa: E402
from train_unet import build_scheduler as build_training_scheduler  # noqa: E402
from train_unet import build_unet, timestep_weights  # noqa: E402
from train_vae import build_vae, standardise_latents  # noqa: E402
from training import WeightAverage, learning_rate_at, render_batch, single_frame_scene  # noqa: E402


def run_script(name: str, *arguments: str) -> None:
    environment = dict(os.environ, OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1")
    subprocess.run([sys.executable, str(SCRIPTS / name), *arguments], check=True, env=environment)


@pytest.fixture(scope="module")
def smoke_run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("spriteworld")
    arguments = ["--run-dir", str(folder / "runs"), "--output-dir", str(folder / "checkpoint"), "--smoke"]
    run_script("train_all.py", *arguments)
    return folder


def test_train_all_ends_in_a_checkpoint_that_loads_and_predicts(smoke_run):
    checkpoint = smoke_run / "checkpoint"
    index = json.loads((checkpoint / "model_index.json").read_text())
    assert index["_class_name"] == "GroundAVideoPipeline"
    unet = UNet2DConditionModel.from_pretrained(checkpoint / "unet")
    vae = AutoencoderKL.from_pretrained(checkpoint / "vae")
    controlnet = ControlNetModel.from_pretrained(checkpoint / "controlnet")
    text_encoder = CLIPTextModel.from_pretrained(checkpoint / "text_encoder")
    tokenizer = CLIPTokenizer.from_pretrained(checkpoint / "tokenizer")
    scheduler = DDIMScheduler.from_pretrained(checkpoint / "scheduler")
    # Stored in half precision, used in single unless asked otherwise.
    assert unet.dtype == vae.dtype == controlnet.dtype == text_encoder.dtype == torch.float32
    assert sum(path.stat().st_size for path in checkpoint.rglob("*") if path.is_file()) < 40e6
    assert not scheduler.config.clip_sample and not scheduler.config.set_alpha_to_one
    assert unet.config.attention_type == "gated" and unet.config.in_channels == 9

    tokens = tokenizer(["a zebra, the prompt's tail"], padding="max_length", return_tensors="pt").input_ids
    assert tokens.shape == (1, text_encoder.config.max_position_embeddings)
    encoded = text_encoder(tokens)
    assert text_encoder.config.eos_token_id == tokenizer.eos_token_id
    with torch.no_grad():
        latents = vae.encode(torch.zeros(1, 3, 64, 64)).latent_dist.mean
        down, mid = controlnet(latents, 500, encoded.last_hidden_state, torch.zeros(1, 3, 64, 64), return_dict=False)
        gligen = {
            "boxes": torch.zeros(1, 30, 4),
            "masks": torch.zeros(1, 30),
            "positive_embeddings": encoded.pooler_output[:, None].repeat(1, 30, 1),
        }
        prediction = unet(
            torch.cat([latents, torch.zeros(1, 5, 16, 16)], 1),
            500,
            encoded.last_hidden_state,
            cross_attention_kwargs={"gligen": gligen},
            down_block_additional_residuals=down,
            mid_block_additional_residual=mid,
        ).sample
    assert prediction.shape == latents.shape == (1, 4, 16, 16)


def test_train_all_ends_in_annotators_that_load_and_run(smoke_run):
    _, rendered, _ = render_batch([0])
    detections = ObjectDetector.from_pretrained(smoke_run / "runs" / "detector")(rendered[0].frames, ["dog"], 0.0)
    assert len(detections) == 1 and len(detections[0]["dog"]) > 0
    depth = DepthEstimator.from_pretrained(smoke_run / "runs" / "depth")(rendered[0].frames)
    assert depth.shape == (1, 64, 64)
    # The text tower is not trained along.
    before = load_file(smoke_run / "runs" / "text_encoder" / "model.safetensors")
    after = load_file(smoke_run / "runs" / "detector" / "model.safetensors")
    assert all(torch.equal(after[f"owlvit.text_model.{key}"], value) for key, value in before.items())


def test_patches_are_asked_for_what_they_are_in_the_middle_of():
    scenes = [single_frame_scene(seed) for seed in range(40)]
    rendered = [render(scene) for scene in scenes]
    targets = assign(scenes, rendered)
    asked = 0
    for scene, item, classes, boxes in zip(scenes, rendered, targets.classes, targets.boxes):
        assert NAMES[classes[0]] == scene.background and boxes[0].tolist() == [0, 0, 1, 1]
        for index, thing in enumerate(scene.objects):
            box = object_boxes(scene)[index]
            own = classes == NAMES.index(thing.name)
            asked += own.any()
            assert own.any() or np.isnan(box[0]) or item.visible_masks[0, index].mean() < 0.05
            assert (boxes[own] == torch.from_numpy(box).float()).all()
    assert asked > 50
    # Of those asked for one object the best is one, and better if it is surer.
    boxes = torch.where(targets.boxes.any(-1, keepdim=True), targets.boxes + torch.rand(targets.boxes.shape) / 50, 0)
    best = targets.best(torch.zeros(*targets.classes.shape, len(NAMES)), boxes)
    assert [len(row[row >= 0].unique()) for row in targets.classes] == best.sum(1).tolist()
    sure, last = torch.zeros(*targets.classes.shape, len(NAMES)), int((targets.classes[0] >= 0).nonzero()[-1])
    sure[0, last] = 5
    assert targets.best(sure, boxes)[0, last]


def test_average_precision_of_known_rankings():
    boxes = [[np.array([0.0, 0.0, 0.5, 0.5])], [np.array([0.5, 0.5, 1.0, 1.0])]]
    right = [[Detection((0.0, 0.0, 0.5, 0.5), 0.9)], [Detection((0.5, 0.5, 1.0, 1.0), 0.5)]]
    assert average_precision(right, boxes) == 1
    assert average_precision([right[0], []], boxes) == 0.5
    assert average_precision([[], []], boxes) == 0
    # One that is surer than the second right one, in the wrong place: precision 1 up to half of it, then 2/3.
    wrong = Detection((0.5, 0.0, 1.0, 0.5), 0.7)
    assert average_precision([right[0], [wrong, *right[1]]], boxes) == pytest.approx(0.5 + 0.5 * 2 / 3)
    # A true box is found once.
    again = Detection((0.0, 0.0, 0.5, 0.49), 0.8)
    assert average_precision([[*right[0], again], right[1]], boxes) == pytest.approx(0.5 + 0.5 * 2 / 3)


def test_every_script_logs_its_steps_and_its_own_evaluation(smoke_run):
    expected = {
        "judge": "fresh_accuracy",
        "clip_training": "fresh_crop_accuracy",
        "detector_training": "map50",
        "depth_training": "spearman",
        "vae_training": "fresh_psnr",
        "unet_training": "edited_ceiling",
        "controlnet_training": "fresh_loss_with",
    }
    for folder, figure in expected.items():
        records = [json.loads(line) for line in (smoke_run / "runs" / folder / "log.jsonl").read_text().splitlines()]
        assert all({"step", "seconds"} <= record.keys() for record in records)
        assert any("loss" in record for record in records) and any(figure in record for record in records)


def test_a_finished_run_resumes_at_its_end_with_its_weights(smoke_run):
    log = smoke_run / "runs" / "vae_training" / "log.jsonl"
    before = log.read_text().splitlines()
    trained = [record for record in map(json.loads, before) if "loss" in record][-1]["seconds"]
    run_script("train_vae.py", "--run-dir", str(smoke_run / "runs"), "--smoke")
    after = [json.loads(line) for line in log.read_text().splitlines()[len(before) :]]
    # No further step is trained; the evaluation alone is repeated, on the same weights.
    assert len(after) == 1 and after[0]["seconds"] >= trained
    assert after[0]["fresh_psnr"] == pytest.approx(json.loads(before[-1])["fresh_psnr"], abs=1e-3)


def test_standardised_latents_have_unit_variance_and_the_same_pictures():
    torch.manual_seed(0)
    vae = build_vae().eval()
    _, _, frames = render_batch(list(range(6)))
    with torch.no_grad():
        before = vae.decode(vae.encode(frames).latent_dist.mean).sample
        spread = vae.encode(frames).latent_dist.std * 1.0
        scale = vae.encode(frames).latent_dist.mean.std((0, 2, 3))
        standardise_latents(vae, frames)
        posterior = vae.encode(frames).latent_dist
        after = vae.decode(posterior.mean).sample
    torch.testing.assert_close(after, before, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(posterior.mean.mean((0, 2, 3)), torch.zeros(4), atol=1e-4, rtol=0)
    torch.testing.assert_close(posterior.mean.std((0, 2, 3)), torch.ones(4), atol=1e-3, rtol=0)
    torch.testing.assert_close(posterior.std, spread / scale[None, :, None, None], atol=1e-3, rtol=1e-3)


def test_boxes_open_every_cell_they_touch_and_absent_ones_none():
    boxes = torch.tensor([[0.0, 0.0, 1.0, 1.0], [0.25, 0.5, 0.5, 0.75], [0.26, 0.5, 0.49, 0.76], [torch.nan] * 4])
    cells = box_cells(boxes)
    assert cells[0].all() and not cells[3].any()
    assert cells[1, 8:12, 4:8].all() and cells[1].sum() == 16
    # Partly covered cells count: the fourth column to the eighth, and one row more.
    assert cells[2, 8:13, 4:8].all() and cells[2].sum() == 20


def test_what_changes_is_open_and_conditions_come_from_before_the_edit():
    vae = build_vae().eval()
    pairs = encode_pairs(vae, range(40))
    masks = random_masks(pairs, torch.Generator().manual_seed(0), whole_share=0.0)
    same = ~(pairs.changed.any(1) | (pairs.backgrounds[:, 0] != pairs.backgrounds[:, 1]))
    assert 5 < same.sum() < 35
    assert torch.equal(pairs.source[same], pairs.target[same])
    assert not any(torch.equal(a, b) for a, b in zip(pairs.source[~same], pairs.target[~same]))
    for index in range(len(pairs)):
        if pairs.backgrounds[index, 0] == pairs.backgrounds[index, 1]:
            opened = masks[index, 0] == 0
            changed = (box_cells(pairs.boxes[index]) & pairs.changed[index, :, None, None]).any(0)
            assert (opened | ~changed).all()
            assert not (opened & ~box_cells(pairs.boxes[index]).any(0)).any()
        else:
            assert masks[index].mean() < 0.8
    before, after = edit_scenes(int(pairs.seeds[0]))
    for column, item in enumerate(after.objects):
        assert (pairs.names[0, column] == NOTHING) == (item.name is None)
    assert random_masks(pairs, torch.Generator().manual_seed(0), whole_share=1.0).sum() == 0


def test_the_unet_starts_with_open_gates_and_few_enough_parameters():
    unet = build_unet()
    gates = [value for name, value in unet.named_parameters() if name.endswith(("alpha_attn", "alpha_dense"))]
    assert gates and all(gate == 1 for gate in gates)
    assert sum(parameter.numel() for parameter in unet.parameters()) * 2 < 25e6


def test_timestep_weights_favour_noise_within_limits():
    weights = timestep_weights(build_training_scheduler())
    assert weights.shape == (1000,) and (weights.diff() >= 0).all()
    assert weights.min() >= 0.2 and weights.max() <= 4


def test_learning_rate_warms_up_rests_and_decays():
    rates = [learning_rate_at(step, 1000, 1e-3) for step in range(1000)]
    assert rates[0] == pytest.approx(1e-5) and max(rates) == pytest.approx(1e-3) and rates[-1] < 1e-4
    assert rates[100:700] == [1e-3] * 600


def test_a_weight_average_of_constant_weights_is_these_weights():
    module = torch.nn.Linear(3, 3)
    average = WeightAverage(module)
    for step in range(5):
        average.update(module, step)
    torch.testing.assert_close(average.average, dict(module.state_dict()))


def test_the_attention_loss_asks_for_the_object_whose_box_a_pixel_is_in():
    left, right, whole = [0.0, 0.0, 0.5, 1.0], [0.5, 0.0, 1.0, 1.0], [0.0, 0.0, 1.0, 1.0]
    boxes, masks = torch.tensor([[left, right, whole]]), torch.ones(1, 3)
    # 2 heads, 2 x 2 visual tokens, then the 3 objects; the columns of pixels are left, right, left, right.
    matched, swapped = torch.zeros(1, 2, 4, 7), torch.zeros(1, 2, 4, 7)
    for pixel, side in enumerate([0, 1, 0, 1]):
        matched[0, 0, pixel, 4 + side] = swapped[0, 0, pixel, 5 - side] = 30
    assert grounded_attention_loss([matched], boxes, masks).item() == pytest.approx(0, abs=1e-6)
    assert grounded_attention_loss([swapped], boxes, masks).item() == pytest.approx(30, abs=1e-3)
    # The second half of the heads is free, and without objects anything but their slots may be read.
    matched[0, 1] = swapped[0, 0]
    assert grounded_attention_loss([matched], boxes, masks).item() == pytest.approx(0, abs=1e-6)
    assert grounded_attention_loss([swapped], boxes, 0 * masks).item() == pytest.approx(0, abs=1e-6)


def test_recorded_gated_attention_is_what_the_layers_compute():
    unet = build_unet().eval()
    gates = [module for module in unet.modules() if type(module).__name__ == "GatedSelfAttentionDense"]
    inputs: list[torch.Tensor] = []
    outputs: list[torch.Tensor] = []

    def keep(_: torch.nn.Module, arguments: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        inputs.append(arguments[0])
        outputs.append(output)

    handle = gates[0].attn.register_forward_hook(keep)
    gligen = {
        "boxes": torch.rand(2, 30, 4),
        "masks": torch.ones(2, 30),
        "positive_embeddings": torch.randn(2, 30, unet.config.cross_attention_dim),
    }
    with torch.no_grad(), recorded_gated_attention(unet, 30) as logits:
        text = torch.randn(2, 8, unet.config.cross_attention_dim)
        unet(torch.randn(2, 9, 16, 16), 500, text, cross_attention_kwargs={"gligen": gligen})
    handle.remove()
    assert len(logits) == len(gates) and logits[0].shape == (2, 4, 64, 94)
    attention = gates[0].attn
    with torch.no_grad():
        value = attention.to_v(inputs[0]).unflatten(-1, (attention.heads, -1)).transpose(1, 2)
        read = (logits[0].softmax(-1) @ value).transpose(1, 2).flatten(2)
        torch.testing.assert_close(attention.to_out[0](read), outputs[0][:, :64], atol=1e-5, rtol=1e-4)
    assert not gates[0].attn._forward_pre_hooks
