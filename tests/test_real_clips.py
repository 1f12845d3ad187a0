"""Real clips go through `groundavideo edit` on a small checkpoint: everything but the picture is checked."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from diffusers_groundavideo import GroundAVideoPipeline, VideoGrounding
from diffusers_groundavideo.cli import app
from diffusers_groundavideo.video import Clip, read_clip


CASES = ("car_turn", "cat_flower", "dog_walking", "rabbit_strawberry", "rabbit_watermelon", "swan")
# All clips are square. Latents of 12 x 12 cells.
WORKING_SIZE = 96
STEPS = 2

DOG: dict[str, Any] = {
    "source_prompt": "a dog is sniffing at the grass",
    "target_prompt": "a fox is sniffing at the grass",
    "objects": [
        {
            "source_phrase": "dog",
            "target_phrase": "fox",
            "keyframes": {"0": [0.0, 0.02, 0.68, 0.66], "3": [0.0, 0.08, 0.65, 0.72], "31": [0.1, 0.04, 0.52, 0.72]},
        }
    ],
}
FLAMINGO: dict[str, Any] = {
    "source_prompt": "a flamingo is walking through the water",
    "target_prompt": "a swan is walking through the water",
    "objects": [
        {
            "source_phrase": "flamingo",
            "target_phrase": "swan",
            "keyframes": {"0": [0.31, 0.23, 1, 0.86], "7": [0.3, 0.25, 1, 0.87], "31": [0.22, 0.22, 0.9, 0.83]},
        }
    ],
}


def single_object(edit: dict[str, Any]) -> dict[str, Any]:
    """The edit without the objects that cover the frame: only the first one changes, and only it is grounded."""
    return {**edit, "objects": edit["objects"][:1]}


def kept_others(edit: dict[str, Any]) -> dict[str, Any]:
    """The edit in which only the last object changes, and the others are kept."""
    kept = [{**grounded, "target_phrase": grounded["source_phrase"]} for grounded in edit["objects"][:-1]]
    return {**edit, "objects": [*kept, edit["objects"][-1]]}


# Name, and what is made of the edit of the case; the last two open a part of the frame only.
EDITS: list[tuple[str, Callable[[dict[str, Any]], dict[str, Any]]]] = [
    *((name, dict) for name in (*CASES, "dog.mp4", "flamingo.mp4")),
    ("rabbit_watermelon", single_object),
    ("rabbit_strawberry", kept_others),
]


@pytest.fixture(params=EDITS, ids=lambda one: f"{one[0]}-{one[1].__name__}")
def case(request: pytest.FixtureRequest, clips_dir: Path, tmp_path: Path) -> tuple[Path, Path]:
    """The path of a clip, and that of its edit."""
    name, change = request.param
    if name.endswith(".mp4"):
        clip, edit = clips_dir / "clips" / name, {"dog.mp4": DOG, "flamingo.mp4": FLAMINGO}[name]
    else:
        clip, edit = (
            clips_dir / "cases" / name / "frames",
            json.loads((clips_dir / "cases" / name / "edit.json").read_text()),
        )
    (tmp_path / "edit.json").write_text(json.dumps(change(edit)))
    return clip, tmp_path / "edit.json"


def opened_pixels(grounding: VideoGrounding, source: Clip) -> np.ndarray:
    """(F, H, W) bool: the cells of the latents that the edit opens, in pixels of the clip."""
    num_frames, height, width = source.frames.shape[:3]
    cells = WORKING_SIZE // 8
    opened = grounding.edit_mask(num_frames, cells, cells)[:, 0].numpy() == 0
    # A pixel belongs to the cell that its centre lies in.
    rows = ((np.arange(height) + 0.5) * cells / height).astype(int)
    columns = ((np.arange(width) + 0.5) * cells / width).astype(int)
    return opened[:, rows[:, None], columns]


def test_a_real_clip_is_edited(case: tuple[Path, Path], small_checkpoint: Path, tmp_path: Path) -> None:
    clip, edit = case
    arguments: list[Any] = ["edit", clip, "--edit", edit, "--model", small_checkpoint, "--depth", clip, "--seed", 0]
    arguments += ["--height", WORKING_SIZE, "--width", WORKING_SIZE, "--num-inference-steps", STEPS]
    results = [
        CliRunner().invoke(app, [*map(str, arguments), "-o", str(tmp_path / name)]) for name in ("frames", "clip.mp4")
    ]
    assert [result.exit_code for result in results] == [0, 0], results[0].output
    source, edited, encoded = read_clip(clip), read_clip(tmp_path / "frames"), read_clip(tmp_path / "clip.mp4")
    assert edited.frames.shape == encoded.frames.shape == source.frames.shape
    assert encoded.fps == source.fps

    records = [json.loads((tmp_path / f"{name}.run.json").read_text()) for name in ("frames", "clip")]
    assert records[0]["result_sha256"] == records[1]["result_sha256"]

    grounding = VideoGrounding.from_json(edit)
    opened = opened_pixels(grounding, source)
    np.testing.assert_array_equal(edited.frames[~opened], source.frames[~opened])
    assert (edited.frames[opened] != source.frames[opened]).mean() > 0.5
    share = records[0]["opened_share"]
    assert share == pytest.approx(opened.mean(), abs=0.01)
    assert f"Open to the edit: {share:.1%} of the clip." in results[0].stdout
    print(f"{clip}: {share:.1%} of the clip is open.")


@pytest.mark.parametrize(("name", "change"), EDITS[-2:], ids=["single_object", "kept_others"])
def test_the_edits_of_one_object_leave_a_part_of_the_clip_closed(
    clips_dir: Path, name: str, change: Callable[[dict[str, Any]], dict[str, Any]]
) -> None:
    folder = clips_dir / "cases" / name
    grounding = VideoGrounding.from_dict(change(json.loads((folder / "edit.json").read_text())))
    assert 0.05 < opened_pixels(grounding, read_clip(folder / "frames")).mean() < 0.75


def test_all_cases_are_known(clips_dir: Path) -> None:
    assert {folder.name for folder in (clips_dir / "cases").iterdir()} == set(CASES)


def state(pipe: GroundAVideoPipeline) -> dict[str, Any]:
    """Weights, processors, forward methods, training and gradient flags of all that an edit might leave changed."""
    found: dict[str, Any] = {}
    for name, model in (("unet", pipe.unet), ("controlnet", pipe.controlnet), ("vae", pipe.vae)):
        for key, value in model.state_dict().items():
            found[f"{name}.{key}"] = value.clone()
        for key, processor in model.attn_processors.items():
            found[f"{name}.{key}"] = processor
        for key, module in model.named_modules():
            own = {entry: value for entry, value in vars(module).items() if not entry.startswith("_")}
            hooks = [entry for entry, value in vars(module).items() if "hooks" in entry and value]
            found[f"{name}.{key} "] = (type(module), own, hooks)
        for key, parameter in model.named_parameters():
            found[f"{name}.{key} flags"] = (parameter.requires_grad, parameter.grad is None)
    return found


def assert_same_state(before: dict[str, Any], after: dict[str, Any]) -> None:
    assert before.keys() == after.keys()
    for name, value in before.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, after[name]), name
        else:
            assert value == after[name], name


class Stop(Exception):
    pass


@pytest.mark.parametrize("inversion_method", ["negative-prompt", "null-text"])
def test_the_models_are_as_before_an_edit_and_an_aborted_one(
    clips_dir: Path, small_checkpoint: Path, inversion_method: str
) -> None:
    folder = clips_dir / "cases" / "rabbit_watermelon"
    edit = json.loads((folder / "edit.json").read_text())
    video = read_clip(folder / "frames").frames
    pipe = GroundAVideoPipeline.from_pretrained(small_checkpoint)
    arguments: dict[str, Any] = {
        "video": video,
        "grounding": VideoGrounding.from_dict(edit),
        "source_prompt": edit["source_prompt"],
        "prompt": edit["target_prompt"],
        "conditioning_frames": video,
        "inversion_method": inversion_method,
        "num_null_text_steps": 1,
        "num_inference_steps": STEPS,
        "height": WORKING_SIZE,
        "width": WORKING_SIZE,
        "restore_size": True,
        "output_type": "np",
    }

    def stop(*_: Any) -> dict[str, Any]:
        during = state(pipe)
        assert any(during[name] is not processor for name, processor in before.items() if name.endswith("processor"))
        raise Stop

    before = state(pipe)
    frames = pipe(**arguments, generator=torch.Generator().manual_seed(0)).frames
    assert_same_state(before, state(pipe))
    with pytest.raises(Stop):
        pipe(**arguments, generator=torch.Generator().manual_seed(0), callback_on_step_end=stop)
    assert_same_state(before, state(pipe))
    again = pipe(**arguments, generator=torch.Generator().manual_seed(0)).frames
    np.testing.assert_array_equal(frames, again)
