"""`groundavideo evaluate`, on a sprite scene and an edit of it on disk."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner, Result

from diffusers_groundavideo import EditPreset, VideoGrounding
from diffusers_groundavideo.cli import app
from diffusers_groundavideo.evaluation import (
    ClipScorer,
    PickScorer,
    cross_instance_accuracy,
    edit_leakage,
    masked_lpips,
    masked_psnr,
    masked_ssim,
    q_edit,
    static_flicker,
    static_region,
    warp_error,
)
from diffusers_groundavideo.smoothing import inconsistent
from diffusers_groundavideo.spriteworld import grounding_dict, random_scene, render
from diffusers_groundavideo.video import read_clip, write_clip


SCENE = random_scene(12, num_objects=3, motion="leaving")
TARGET = SCENE.with_targets(["tree", None, SCENE.objects[2].name])
EDIT = grounding_dict(SCENE, TARGET)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`source/` and `edited/` (slightly darker all over), `edit.json`, `preset/` and `flow.safetensors`."""
    folder = tmp_path_factory.mktemp("evaluate")
    source, edited = render(SCENE), render(TARGET).frames // 16 * 15
    write_clip(folder / "source", source.frames, 8)
    write_clip(folder / "edited", edited, 8)
    (folder / "edit.json").write_text(json.dumps(EDIT))
    grounding = VideoGrounding.from_dict(EDIT)
    prompts = {"source_prompt": EDIT["source_prompt"], "prompt": EDIT["target_prompt"]}
    EditPreset.from_call(source.frames, grounding, 8, **prompts).save_pretrained(folder / "preset")
    flows = {"flow": torch.from_numpy(source.forward_flow), "backward_flow": torch.from_numpy(source.backward_flow)}
    save_file(flows, folder / "flow.safetensors")
    save_file({"flow": flows["flow"]}, folder / "forward.safetensors")
    return folder


@pytest.fixture(autouse=True)
def _in_the_folder(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(files)


def evaluate(*arguments: Any) -> Result:
    return CliRunner().invoke(app, ["evaluate", *map(str, arguments)])


def figures(tmp_path: Path, *arguments: Any) -> dict[str, Any]:
    """What the command writes."""
    result = evaluate(*arguments, "-o", tmp_path / "metrics.json", "--cache-dir", tmp_path / "cache")
    assert result.exit_code == 0, result.output
    return json.loads((tmp_path / "metrics.json").read_text())


@pytest.mark.usefixtures("lpips_backbone")
def test_the_figures_are_those_of_the_metrics(tmp_path: Path, random_clip: Path) -> None:
    models = ("--clip-model", random_clip, "--pick-score-model", random_clip, "--lpips", "squeeze")
    report = figures(tmp_path, "source", "edited", "--grounding", "edit.json", "--flow", "flow.safetensors", *models)

    scene = render(SCENE)
    source, edited = scene.frames, read_clip("edited").frames
    opened = VideoGrounding.from_dict(EDIT).edit_mask(8, 64, 64).numpy()[:, 0] == 0
    assert report["opened_share"] == pytest.approx(opened.mean())
    expected_outside = {
        "outside_psnr": masked_psnr(source, edited, ~opened),
        "outside_ssim": masked_ssim(source, edited, ~opened),
        "outside_lpips": masked_lpips(source, edited, ~opened),
        "outside_change": edit_leakage(source, edited, opened),
    }
    assert {name: report["edited"][name] for name in expected_outside} == pytest.approx(expected_outside, rel=1e-6)
    assert not any(name.startswith("outside") for name in report["source"])

    flow, backward = torch.from_numpy(scene.forward_flow), torch.from_numpy(scene.backward_flow)
    occluded = inconsistent(flow, backward).numpy()[:, 0]
    scorer, pick_scorer = ClipScorer.from_pretrained(random_clip), PickScorer.from_pretrained(random_clip)
    prompt, phrases = EDIT["target_prompt"], [item["target_phrase"] for item in EDIT["objects"]]
    for name, frames in (("edited", edited), ("source", source)):
        error, alignment = warp_error(frames, scene.forward_flow, occluded), scorer.text_alignment(frames, prompt)
        expected = {
            "warp_error": error,
            "static_flicker": static_flicker(frames, static_region(scene.forward_flow, occluded)),
            "text_alignment": alignment,
            "frame_consistency_consecutive": scorer.frame_consistency(frames),
            "frame_consistency_all": scorer.frame_consistency(frames, "all"),
            "q_edit": q_edit(alignment, error),
            "cross_instance_accuracy": cross_instance_accuracy(frames, scene.boxes, phrases, scorer),
            "pick_score": pick_scorer.score(frames, prompt),
        }
        assert {key: report[name][key] for key in expected} == pytest.approx(expected, rel=1e-4)
        of_objects = scorer.object_alignment(frames, scene.boxes, phrases)
        assert report[name]["object_alignment"][1] is None
        assert report[name]["object_alignment"][::2] == pytest.approx(of_objects[::2], rel=1e-4)
    assert report["phrases"] == phrases
    assert report["prompt"] == prompt


def test_a_preset_says_the_same_as_its_edit_file(tmp_path: Path, random_clip: Path) -> None:
    options = ("--flow", "flow.safetensors", "--clip-model", random_clip)
    of_file = figures(tmp_path, "source", "edited", "--grounding", "edit.json", *options)
    of_preset = figures(tmp_path, "source", "edited", "--preset", "preset", *options)
    for name in ("edited", "source", "phrases", "prompt", "opened_share"):
        assert of_preset[name] == of_file[name]


def test_without_models_and_flow_it_reads_the_flow_off_videos(tmp_path: Path) -> None:
    for name in ("source", "edited"):
        write_clip(tmp_path / f"{name}.mp4", read_clip(name).frames, 8)
    clips = (tmp_path / "source.mp4", tmp_path / "edited.mp4")
    report = figures(tmp_path, *clips, "--grounding", "edit.json")
    assert set(report["edited"]) == {
        *("outside_psnr", "outside_ssim", "outside_change", "warp_error", "static_flicker")
    }
    # By DIS, of a compressed clip: of the size of that of exact flow.
    source = render(SCENE)
    exact = warp_error(source.frames, source.forward_flow, source.forward_occlusion)
    assert exact / 4 < report["source"]["warp_error"] < 4 * exact


def test_the_table_shows_what_is_written(tmp_path: Path) -> None:
    arguments = ("source", "edited", "--grounding", "edit.json", "--flow", "flow.safetensors")
    report, output = figures(tmp_path, *arguments), evaluate(*arguments).output
    assert f"{report['edited']['outside_psnr']:.5g}" in output
    assert f"{1000 * report['source']['warp_error']:.5g}" in output
    assert f"{report['opened_share']:.0%} of the clip" in output


def test_what_is_undefined_is_null_and_what_is_infinite_says_so(tmp_path: Path) -> None:
    for name in ("source", "edited"):
        write_clip(tmp_path / name, read_clip("source", max_frames=1).frames, 8)
    edit = {**EDIT, "objects": [{"source_phrase": "a", "target_phrase": "b", "box": [0, 0, 0.5, 1]}]}
    (tmp_path / "one.json").write_text(json.dumps(edit))
    report = figures(tmp_path, tmp_path / "source", tmp_path / "edited", "--grounding", tmp_path / "one.json")
    assert report["edited"]["outside_psnr"] == "inf"
    assert report["edited"]["warp_error"] is None
    assert math.isinf(float(report["edited"]["outside_psnr"]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("source", "edited"), "One of --preset and --grounding"),
        (("source", "edited", "--preset", "preset", "--grounding", "edit.json"), "One of --preset and --grounding"),
        (("source", "nowhere", "--grounding", "edit.json"), "nothing at nowhere"),
        (("source", "short", "--grounding", "edit.json"), "one length and size"),
        (("source", "edited", "--grounding", "edit.json", "-o", "metrics.csv"), "ends in .json"),
        (("source", "edited", "--grounding", "edit.json", "--flow", "forward.safetensors"), "`backward_flow`"),
        (("source", "edited", "--grounding", "edit.json", "--clip-model", "nowhere"), "could not be loaded as a CLIP"),
    ],
)
def test_bad_input_is_one_line(files: Path, arguments: tuple[str, ...], message: str) -> None:
    if not (files / "short").exists():
        write_clip(files / "short", np.zeros((2, 64, 64, 3), dtype=np.uint8), 8)
    result = evaluate(*arguments)
    assert result.exit_code == 2
    assert message in result.output
    assert "Traceback" not in result.output
