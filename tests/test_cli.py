import json
import subprocess
import sys
from collections.abc import Callable
from inspect import signature
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from typer.main import get_command
from typer.testing import CliRunner, Result

from diffusers_groundavideo import GroundAVideoPipeline
from diffusers_groundavideo.cli import app
from diffusers_groundavideo.pipeline import InversionMethod
from diffusers_groundavideo.video import LABEL_HEIGHT, SEPARATOR_WIDTH, read_clip, write_clip
from small_checkpoint import save_checkpoint
from small_edit import OPENED_BOX, make_frames, opened_pixels, write_edit, write_frames


NUM_FRAMES = 4


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a clip (`clip/`, `clip.mp4`), an edit of it and what goes with it."""
    folder = tmp_path_factory.mktemp("inputs")
    write_frames(folder / "clip", make_frames())
    write_clip(folder / "clip.mp4", make_frames(), 12.5)
    write_frames(folder / "depth", make_frames()[::-1])
    write_edit(folder / "edit.json")
    # From standing still on the left to a quarter of a latent cell on the right.
    flow = torch.linspace(0, 1.5, 64).expand(NUM_FRAMES - 1, 2, 48, 64).contiguous()
    save_file({"flow": flow}, folder / "flow.safetensors")
    # It leads back to where it came from only in the lower half.
    backward_flow = -flow
    backward_flow[..., :24, :] += 3
    save_file({"flow": flow, "backward_flow": backward_flow}, folder / "both_flows.safetensors")
    return folder


@pytest.fixture
def invoke(inputs: Path, small_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Calls a command on the small checkpoint, with 2 steps and, unless another is given, seed 0.

    Arguments that name files of `inputs` may be relative to it.
    """
    monkeypatch.chdir(inputs)

    def call(command: str, clip: str, output: Path, *options: Any) -> Result:
        arguments = [command, clip, "-o", output, "--edit", "edit.json", "--model", small_checkpoint]
        arguments += ["--num-inference-steps", 2, *(["--seed", 0] if command == "edit" else []), *options]
        return CliRunner().invoke(app, [str(argument) for argument in arguments])

    return call


@pytest.fixture
def edit(invoke: Callable[..., Result], tmp_path: Path) -> Callable[..., np.ndarray]:
    """Edits the clip with some options, and reads the frames that come out."""

    def call(*options: Any, clip: str = "clip") -> np.ndarray:
        output = tmp_path / f"edited_{len(list(tmp_path.iterdir()))}"
        result = invoke("edit", clip, output, *options)
        assert result.exit_code == 0, result.output
        return read_clip(output).frames

    return call


@pytest.mark.parametrize("name", ["edited.mp4", "edited.gif"])
@pytest.mark.parametrize("working_size", [(), ("--height", 32, "--width", 96)])
def test_the_result_has_length_size_and_rate_of_the_clip(
    invoke: Callable[..., Result], tmp_path: Path, name: str, working_size: tuple[Any, ...]
) -> None:
    result = invoke("edit", "clip.mp4", tmp_path / name, *working_size)
    assert result.exit_code == 0, result.output
    clip = read_clip(tmp_path / name)
    assert clip.frames.shape == (NUM_FRAMES, 48, 64, 3)
    assert clip.fps == pytest.approx(12.5, rel=0.01)


def test_frames_of_a_folder_are_taken_in_numeric_order(edit: Callable[..., np.ndarray], tmp_path: Path) -> None:
    frames = make_frames(11)
    write_frames(tmp_path / "eleven", frames)
    edited = edit(clip=str(tmp_path / "eleven"))
    np.testing.assert_array_equal(edited[:, 0], frames[:, 0])


def test_what_was_not_opened_is_the_clip_itself(edit: Callable[..., np.ndarray]) -> None:
    frames, opened = make_frames(), opened_pixels()
    edited = edit()
    np.testing.assert_array_equal(edited[~opened], frames[~opened])
    assert (edited[opened] != frames[opened]).mean() > 0.5
    assert (edit("--no-paste-back")[~opened] != frames[~opened]).any()


def test_a_seed_decides_the_result(edit: Callable[..., np.ndarray], invoke: Callable[..., Result], tmp_path: Path):
    edited = edit()
    np.testing.assert_array_equal(edit(), edited)
    assert (edit("--seed", 1) != edited).any()


def test_without_a_seed_the_record_tells_the_one_that_was_drawn(
    edit: Callable[..., np.ndarray], inputs: Path, small_checkpoint: Path, tmp_path: Path
) -> None:
    arguments = ["edit", inputs / "clip", "--edit", inputs / "edit.json", "--model", small_checkpoint]
    arguments += ["-o", tmp_path / "drawn", "--num-inference-steps", 2]
    assert CliRunner().invoke(app, [str(argument) for argument in arguments]).exit_code == 0
    seed = json.loads((tmp_path / "drawn.run.json").read_text())["seed"]
    np.testing.assert_array_equal(edit("--seed", seed), read_clip(tmp_path / "drawn").frames)


@pytest.mark.parametrize("method", get_args(InversionMethod))
def test_a_saved_inversion_gives_the_frames_of_a_run_in_one_go(
    edit: Callable[..., np.ndarray], invoke: Callable[..., Result], tmp_path: Path, method: str
) -> None:
    options = ["--inversion-method", method, "--num-null-text-steps", 2]
    in_one_go = edit(*options, "--save-inverted", tmp_path / "new" / "kept.safetensors")
    result = invoke("invert", "clip", tmp_path / "inverted.safetensors", *options)
    assert result.exit_code == 0, result.output
    for name in ("inverted.safetensors", "new/kept.safetensors"):
        np.testing.assert_array_equal(edit("--inverted", tmp_path / name), in_one_go)


def test_an_inversion_keeps_finished_steps_for_the_same_clip_only(
    invoke: Callable[..., Result], tmp_path: Path
) -> None:
    def inverted(name: str, *options: Any) -> Result:
        return invoke("invert", "clip", tmp_path / name, "--checkpoint-dir", tmp_path / "steps", *options)

    assert inverted("first.safetensors").exit_code == 0
    assert inverted("second.safetensors").exit_code == 0
    assert (tmp_path / "first.safetensors").read_bytes() == (tmp_path / "second.safetensors").read_bytes()
    other = inverted("third.safetensors", "--source-prompt", "something else")
    assert other.exit_code == 2
    assert "source_prompt" in other.stderr
    assert not (tmp_path / "third.safetensors").exists()


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["--prompt", "a blue star on a ramp"],
        ["--source-prompt", "a square"],
        ["--inversion-method", "ddim"],
        ["--inversion-method", "ddim", "--negative-prompt", "blurry"],
        ["--inversion-method", "null-text", "--num-null-text-steps", 1],
        ["--inversion-method", "null-text", "--num-null-text-steps", 3],
        ["--depth", "depth"],
        ["--depth", "depth", "--controlnet-conditioning-scale", 0.5],
        ["--flow", "flow.safetensors"],
        ["--flow", "flow.safetensors", "--flow-threshold", 0.13],
        ["--flow", "flow.safetensors", "--flow-threshold", 0.6, "--relative-flow-threshold"],
        ["--flow", "both_flows.safetensors"],
        ["--guidance-scale", 3],
        ["--num-inference-steps", 3],
        ["--height", 64],
        ["--width", 32],
        ["--open-all-boxes"],
        ["--gligen-scheduled-sampling-beta", 0.5],
        ["--dtype", "bfloat16"],
        ["--seed", 5],
    ],
)
def test_every_option_has_effect(
    edit: Callable[..., np.ndarray], results: dict[bytes, list[Any]], options: list[Any]
) -> None:
    frames = edit(*options).tobytes()
    assert frames not in results, f"{options} gives the same frames as {results[frames]}"
    results[frames] = options


@pytest.fixture(scope="module")
def results() -> dict[bytes, list[Any]]:
    return {}


def test_frames_in_small_batches_give_the_same_edit(edit: Callable[..., np.ndarray]) -> None:
    difference = edit("--frame-batch-size", 1).astype(int) - edit().astype(int)
    assert abs(difference).max() <= 1


def test_several_controlnets(edit: Callable[..., np.ndarray], small_checkpoint: Path) -> None:
    one = ["--controlnet", small_checkpoint / "controlnet", "--depth", "depth"]
    own = edit("--depth", "depth")
    np.testing.assert_array_equal(edit(*one), own)
    scales = ["--controlnet-conditioning-scale", 1, "--controlnet-conditioning-scale", 0]
    np.testing.assert_array_equal(edit(*one, *one, *scales), own)
    assert (edit(*one, *one) != own).any()


def test_only_the_first_frames(edit: Callable[..., np.ndarray], inputs: Path) -> None:
    edited = edit("--max-frames", 3, "--depth", "depth", "--flow", "flow.safetensors")
    assert len(edited) == 3
    np.testing.assert_array_equal(edited[:, 0], make_frames()[:3, 0])


def test_side_by_side_with_the_clip(edit: Callable[..., np.ndarray], tmp_path: Path) -> None:
    edited = edit("--side-by-side", tmp_path / "both")
    both = read_clip(tmp_path / "both").frames
    assert both.shape == (NUM_FRAMES, 48 + LABEL_HEIGHT, 2 * 64 + SEPARATOR_WIDTH, 3)
    np.testing.assert_array_equal(both[:, LABEL_HEIGHT:, :64], make_frames())
    np.testing.assert_array_equal(both[:, LABEL_HEIGHT:, -64:], edited)


def test_the_plan_is_said(invoke: Callable[..., Result], tmp_path: Path) -> None:
    objects = [
        {"source_phrase": "[yellow] square", "target_phrase": None, "box": OPENED_BOX},
        {"source_phrase": None, "target_phrase": "red circle", "box": OPENED_BOX},
        {"source_phrase": "square", "target_phrase": "circle", "box": OPENED_BOX},
        {"source_phrase": "ramp", "target_phrase": "ramp", "box": [0, 0.9, 1, 1]},
    ]
    write_edit(tmp_path / "roles.json", objects=objects)
    said = invoke("edit", "clip", tmp_path / "edited.mp4", "--edit", tmp_path / "roles.json").stdout.splitlines()
    assert "Clip: 4 frames of 64x48 at 8 frames a second." in said
    assert "To be: a red circle on a ramp" in said
    assert "  removed  [yellow] square" in said
    assert "  new      red circle" in said
    assert "  changed  square -> circle" in said
    assert "  kept     ramp" in said
    assert "Open to the edit: 33.3% of the clip." in said


def test_run_record_of_an_edit(invoke: Callable[..., Result], tmp_path: Path, small_checkpoint: Path) -> None:
    assert invoke("edit", "clip.mp4", tmp_path / "edited.mp4", "--height", 32, "--dtype", "float32").exit_code == 0
    assert {path.name for path in tmp_path.iterdir()} == {"edited.mp4", "edited.preset.json", "edited.run.json"}
    record = json.loads((tmp_path / "edited.run.json").read_text())
    assert set(record["versions"]) == {"diffusers-groundavideo", "diffusers", "transformers", "torch", "python"}
    assert record["arguments"]["model"] == str(small_checkpoint)
    assert record["arguments"]["height"] == 32
    assert record["arguments"]["guidance_scale"] == 12.5
    assert record["arguments"]["edit"] == "edit.json"
    assert record["seed"] == 0
    assert record["clip"]["num_frames"] == NUM_FRAMES
    assert (record["clip"]["height"], record["clip"]["width"]) == (48, 64)
    assert record["clip"]["fps"] == 12.5
    assert len(record["clip"]["sha256"]) == len(record["result_sha256"]) == 64
    # At a height of 32 the latents have 4 rows, and the box reaches into each of them: 4 x 4 of 4 x 8 cells.
    assert record["opened_share"] == 0.5
    assert set(record["seconds"]) == {"load", "invert", "edit", "write"}
    assert all(seconds > 0 for seconds in record["seconds"].values())
    assert record["peak_memory_bytes"] > 2**26


def test_the_preset_of_an_edit_gives_the_same_edit(
    invoke: Callable[..., Result], tmp_path: Path, small_checkpoint: Path
) -> None:
    options = ("--depth", "depth", "--flow", "both_flows.safetensors")
    result = invoke("edit", "clip", tmp_path / "edited", *options, "--guidance-scale", 3, "--width", 96)
    assert result.exit_code == 0, result.output
    again = ["preset", "run", tmp_path / "edited.preset.json", "clip", "-o", tmp_path / "again", *options]
    result = CliRunner().invoke(app, [str(argument) for argument in [*again, "--model", small_checkpoint]])
    assert result.exit_code == 0, result.output
    np.testing.assert_array_equal(read_clip(tmp_path / "again").frames, read_clip(tmp_path / "edited").frames)


def test_run_record_of_an_inversion(invoke: Callable[..., Result], tmp_path: Path) -> None:
    assert invoke("invert", "clip", tmp_path / "kept.safetensors").exit_code == 0
    assert {path.name for path in tmp_path.iterdir()} == {"kept.safetensors", "kept.run.json"}
    record = json.loads((tmp_path / "kept.run.json").read_text())
    assert set(record["seconds"]) == {"load", "invert", "write"}
    assert record["clip"]["num_frames"] == NUM_FRAMES


def test_the_same_clip_has_the_same_hash_wherever_it_lies(invoke: Callable[..., Result], tmp_path: Path) -> None:
    write_clip(tmp_path / "copy", make_frames(), 8)
    hashes = set()
    for clip in ("clip", str(tmp_path / "copy"), "clip.mp4"):
        assert invoke("edit", clip, tmp_path / "edited.mp4").exit_code == 0
        hashes.add(json.loads((tmp_path / "edited.run.json").read_text())["clip"]["sha256"])
    assert len(hashes) == 2


@pytest.mark.parametrize("command", ["edit", "invert"])
def test_defaults_are_those_of_the_pipeline(command: str) -> None:
    methods: dict[str, Any] = {"edit": GroundAVideoPipeline.__call__, "invert": GroundAVideoPipeline.invert}
    parameters = signature(methods[command]).parameters
    # Their defaults are said in the help: a list has no other way to be a single number.
    exceptions = {"controlnet_conditioning_scale"}
    shared = [
        option
        for option in get_command(app).commands[command].params  # type: ignore[attr-defined]
        if option.name in parameters and not option.required and option.name not in exceptions
    ]
    assert len(shared) > 5
    assert {option.name: option.default for option in shared} == {
        option.name: parameters[option.name].default for option in shared
    }


@pytest.mark.parametrize(
    ("clip", "options", "named"),
    [
        ("nothing.mp4", [], ["nothing.mp4"]),
        ("truncated.mp4", [], ["truncated.mp4"]),
        ("edit.json", [], ["edit.json"]),
        ("clip", ["--edit", "nothing.json"], ["--edit", "nothing.json"]),
        ("clip", ["--edit", "broken.json"], ["--edit", "broken.json", "JSON"]),
        ("clip", ["--edit", "list.json"], ["--edit", "list.json", "objects"]),
        ("clip", ["--edit", "no_prompt.json"], ["no_prompt.json", "target_prompt", "--prompt"]),
        ("clip", ["--edit", "no_source_prompt.json"], ["source_prompt"]),
        ("clip", ["--edit", "three_boxes.json"], ["yellow square", "3 boxes", "4 frames"]),
        ("clip", ["--max-frames", 0], ["max_frames"]),
        ("clip", ["--height", 50], ["height", "50"]),
        ("clip", ["--num-inference-steps", 0], ["num_inference_steps"]),
        ("clip", ["--guidance-scale", -1], ["guidance_scale"]),
        ("clip", ["--inversion-method", "none"], ["--inversion-method"]),
        ("clip", ["--inversion-method", "null-text", "--num-null-text-steps", 0], ["num_null_text_steps"]),
        ("clip", ["--frame-batch-size", 0], ["frame_batch_size"]),
        ("clip", ["--negative-prompt", "blurry"], ["negative_prompt"]),
        ("clip", ["--gligen-scheduled-sampling-beta", 2], ["gligen_scheduled_sampling_beta"]),
        ("clip", ["--flow-threshold", -1], ["flow_threshold"]),
        ("clip", ["--model", "nowhere"], ["--model nowhere"]),
        ("clip", ["--controlnet", "nowhere", "--depth", "depth"], ["--controlnet nowhere"]),
        ("clip", ["--device", "abacus"], ["--device abacus"]),
        ("clip", ["--depth", "nothing"], ["nothing"]),
        ("clip", ["--depth", "short_depth"], ["--depth short_depth", "2 frames"]),
        ("clip", ["--depth", "depth", "--depth", "depth"], ["--depth", "2"]),
        ("clip", ["--flow", "nothing.safetensors"], ["--flow nothing.safetensors"]),
        ("clip", ["--flow", "edit.json"], ["edit.json", "RAFT"]),
        ("clip", ["--flow", "short_flow.safetensors"], ["--flow short_flow.safetensors"]),
        ("clip", ["--flow", "other_flow.safetensors"], ["--flow other_flow.safetensors", "forward"]),
        ("clip", ["--inverted", "edit.json"], ["edit.json"]),
        ("clip", ["--inverted", "of_another_clip.safetensors"], ["inverted", "video"]),
        ("clip", ["--inverted", "of_another_clip.safetensors", "--save-inverted", "x.safetensors"], ["--inverted"]),
        ("clip", ["--save-inverted", "inversion.pt"], ["--save-inverted", "inversion.pt"]),
        ("clip", ["--side-by-side", "both.webm"], ["both.webm"]),
    ],
)
def test_what_is_wrong_is_said_in_a_line_and_nothing_is_written(
    invoke: Callable[..., Result],
    inputs: Path,
    bad_inputs: None,
    tmp_path: Path,
    clip: str,
    options: list[Any],
    named: list[str],
) -> None:
    before = set(inputs.rglob("*"))
    result = invoke("edit", clip, tmp_path / "edited.mp4", *options)
    assert result.exit_code == 2
    error = next(line for line in result.stderr.splitlines() if line.startswith("Error: "))
    assert all(name in error for name in named), error
    assert "Traceback" not in result.output
    # No stage in which a model works had begun.
    assert "invert:" not in result.stdout
    assert not list(tmp_path.iterdir())
    assert set(inputs.rglob("*")) == before


@pytest.fixture(scope="module")
def bad_inputs(inputs: Path, small_checkpoint: Path) -> None:
    """Writes to `inputs` what the commands have to refuse."""
    whole = (inputs / "clip.mp4").read_bytes()
    (inputs / "truncated.mp4").write_bytes(whole[: len(whole) // 2])
    (inputs / "broken.json").write_text("{")
    (inputs / "list.json").write_text("[]")
    write_edit(inputs / "no_prompt.json", target_prompt=None)
    write_edit(inputs / "no_source_prompt.json", source_prompt=None)
    grounded = {"source_phrase": "yellow square", "target_phrase": "red circle", "boxes": [OPENED_BOX] * 3}
    write_edit(inputs / "three_boxes.json", objects=[grounded])
    write_frames(inputs / "short_depth", make_frames(2))
    save_file({"flow": torch.zeros(2, 2, 48, 64)}, inputs / "short_flow.safetensors")
    save_file({"forward": torch.zeros(3, 2, 48, 64)}, inputs / "other_flow.safetensors")
    write_frames(inputs / "other_clip", make_frames()[::-1])
    arguments = ["invert", inputs / "other_clip", "-o", inputs / "of_another_clip.safetensors"]
    arguments += ["--edit", inputs / "edit.json", "--model", small_checkpoint, "--num-inference-steps", 2]
    assert CliRunner().invoke(app, [str(argument) for argument in arguments]).exit_code == 0


@pytest.mark.parametrize("name", ["edited.webm", "folder.mp4", "full"])
def test_an_output_that_cannot_be_is_refused_before_anything_else(
    invoke: Callable[..., Result], tmp_path: Path, name: str
) -> None:
    (tmp_path / "folder.mp4").mkdir()
    write_frames(tmp_path / "full", make_frames(1))
    before = set(tmp_path.rglob("*"))
    result = invoke("edit", "clip", tmp_path / name)
    assert result.exit_code == 2
    assert name in result.stderr
    assert result.stdout == ""
    assert set(tmp_path.rglob("*")) == before


def test_the_clip_is_not_written_over(invoke: Callable[..., Result], tmp_path: Path) -> None:
    write_clip(tmp_path / "clip.mp4", make_frames(), 8)
    before = (tmp_path / "clip.mp4").read_bytes()
    result = invoke("edit", str(tmp_path / "clip.mp4"), tmp_path / "clip.mp4")
    assert result.exit_code == 2
    assert "the clip itself" in result.stderr
    assert (tmp_path / "clip.mp4").read_bytes() == before


@pytest.mark.parametrize("name", ["inverted.pt", "folder.safetensors"])
def test_an_inversion_goes_to_a_safetensors_file(invoke: Callable[..., Result], tmp_path: Path, name: str) -> None:
    (tmp_path / "folder.safetensors").mkdir()
    result = invoke("invert", "clip", tmp_path / name)
    assert result.exit_code == 2
    assert name in result.stderr


def test_a_model_without_controlnet(
    invoke: Callable[..., Result], edit: Callable[..., np.ndarray], tmp_path: Path, small_checkpoint: Path
) -> None:
    model = ["--model", save_checkpoint(tmp_path / "plain", controlnet=False)]
    np.testing.assert_array_equal(edit(*model), edit())
    controlnet = ["--controlnet", small_checkpoint / "controlnet"]
    np.testing.assert_array_equal(edit(*model, *controlnet, "--depth", "depth"), edit("--depth", "depth"))
    for options in (["--depth", "depth"], controlnet):
        result = invoke("edit", "clip", tmp_path / "refused.mp4", *model, *options)
        assert result.exit_code == 2
        assert "--depth" in result.stderr
        assert not (tmp_path / "refused.mp4").exists()


def test_full_size_layout_with_its_variant(
    edit: Callable[..., np.ndarray], full_size_layout: Path, small_checkpoint: Path
) -> None:
    model = ["--model", full_size_layout, "--variant", "fp16"]
    edited = edit(*model, "--controlnet", small_checkpoint / "controlnet", "--depth", "depth")
    np.testing.assert_array_equal(edited[~opened_pixels()], make_frames()[~opened_pixels()])


def test_installed_command(inputs: Path, small_checkpoint: Path, tmp_path: Path) -> None:
    def run(clip: str) -> subprocess.CompletedProcess[str]:
        command: list[Any] = [Path(sys.executable).with_name("groundavideo"), "edit", inputs / clip]
        command += ["-o", tmp_path / "edited.gif", "--edit", inputs / "edit.json", "--model", small_checkpoint]
        return subprocess.run([*command, "--num-inference-steps", "1"], capture_output=True, text=True)

    failed = run("nothing.mp4")
    assert failed.returncode == 2
    assert failed.stderr.splitlines() == [failed.stderr.strip()]
    assert not list(tmp_path.iterdir())
    done = run("clip")
    assert done.returncode == 0, done.stderr
    assert len(read_clip(tmp_path / "edited.gif").frames) == NUM_FRAMES


def test_help_does_not_wait_for_torch() -> None:
    code = "import sys, diffusers_groundavideo.cli; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
