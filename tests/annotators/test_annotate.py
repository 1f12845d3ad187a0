"""`groundavideo annotate`, and what `groundavideo edit` makes of words."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer
from safetensors.torch import load_file
from typer.testing import CliRunner, Result

from diffusers_groundavideo import VideoGrounding
from diffusers_groundavideo.cli import app as command_line
from diffusers_groundavideo.cli.annotate import ClipReader, EditWords, annotate_clip, ground_words
from diffusers_groundavideo.cli.running import Run
from diffusers_groundavideo.spriteworld import random_scene, render
from diffusers_groundavideo.video import LABEL_HEIGHT, SEPARATOR_WIDTH, Clip, read_clip, write_clip


app = typer.Typer()
app.command()(annotate_clip)

NUM_FRAMES = 4


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sprite scene of 64 x 64 pixels, 4 frames at 12 a second."""
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    write_clip(path, render(random_scene(3, num_frames=NUM_FRAMES)).frames, 12)
    return path


@pytest.fixture
def annotate(saved_model: Callable[[str], Path], tmp_path: Path, clip: Path) -> Callable[..., Result]:
    """Annotates with small models; writes `edit.json` unless told otherwise, and keeps results in `cache`."""

    def call(*options: Any, clip: Path = clip, objects: str = "rabbit@1, red apple@largest") -> Result:
        arguments: list[Any] = [clip, "--objects", objects, "-o", tmp_path / "edit.json", "--threshold", 0.06]
        arguments += ["--detector", saved_model("owlvit"), "--depth-model", saved_model("depth-anything")]
        arguments += ["--cache-dir", tmp_path / "cache", "--device", "cpu", *options]
        return CliRunner().invoke(app, [str(argument) for argument in arguments])

    return call


def succeeded(result: Result) -> str:
    assert result.exit_code == 0, (result.output, result.exception)
    return result.stdout


@pytest.mark.parametrize(("case", "max_frames"), [("swan", 8), ("car_turn", 2), ("cat_flower", 2), ("dog_walking", 2)])
def test_real_clips(
    annotate: Callable[..., Result], clips_dir: Path, tmp_path: Path, case: str, max_frames: int
) -> None:
    folder = clips_dir / "cases" / case / "frames"
    stdout = succeeded(annotate("--preview", tmp_path / "preview.mp4", "--max-frames", max_frames, clip=folder))
    source, preview = read_clip(folder, max_frames=max_frames), read_clip(tmp_path / "preview.mp4")
    num_frames, height, width = source.frames.shape[:3]
    grounding = VideoGrounding.from_json(tmp_path / "edit.json")
    assert grounding.phrases("source") == grounding.phrases("target") == ["rabbit", "red apple"]
    boxes, present = grounding.frame_boxes(num_frames)
    assert boxes.shape == (num_frames, 2, 4) and present.any(dim=0).all()
    assert preview.frames.shape == (num_frames, height + LABEL_HEIGHT, 3 * width + 2 * SEPARATOR_WIDTH, 3)
    assert preview.fps == source.fps
    record = json.loads((tmp_path / "edit.run.json").read_text())
    assert set(record["seconds"]) == {"objects", "depth", "flow", "write"}
    assert all(seconds > 0 for seconds in record["seconds"].values())
    assert "rabbit 0." in stdout and f"of {num_frames} frames)" in stdout
    print(f"{case}: {width}x{height}, {record['seconds']}")


def test_a_second_run_reuses_the_results(annotate: Callable[..., Result], tmp_path: Path) -> None:
    first = succeeded(annotate("--preview", tmp_path / "first.mp4"))
    assert "reused" not in first
    edit, preview = (tmp_path / "edit.json").read_bytes(), read_clip(tmp_path / "first.mp4").frames
    second = succeeded(annotate("--preview", tmp_path / "second.mp4"))
    assert [line for line in second.splitlines() if "reused" in line] == [
        f"{kind}: reused from {tmp_path / 'cache'}" for kind in ("objects", "depth", "flow")
    ]
    assert (tmp_path / "edit.json").read_bytes() == edit
    np.testing.assert_array_equal(read_clip(tmp_path / "second.mp4").frames, preview)
    assert json.loads((tmp_path / "edit.run.json").read_text())["reused"] == ["objects", "depth", "flow"]
    # Another threshold reads the same detections; other words or another method are other results.
    assert "objects: reused" in succeeded(annotate("--threshold", 0.07))
    assert "reused" not in succeeded(annotate(objects="sky@1"))
    assert "reused" not in succeeded(annotate("--max-frames", 3))


def test_depth_and_flow_are_what_edit_reads(annotate: Callable[..., Result], tmp_path: Path, clip: Path) -> None:
    succeeded(annotate("--save-depth", tmp_path / "depth", "--save-flow", tmp_path / "new" / "flow.safetensors"))
    depth = read_clip(tmp_path / "depth").frames
    assert depth.shape == (NUM_FRAMES, 64, 64, 3)
    assert (depth.min(), depth.max()) == (0, 255)
    flow = load_file(tmp_path / "new" / "flow.safetensors")
    shapes = {name: tuple(tensor.shape) for name, tensor in flow.items()}
    assert shapes == dict.fromkeys(("flow", "backward_flow"), (NUM_FRAMES - 1, 2, 64, 64))


def test_only_what_is_asked_for_is_computed(annotate: Callable[..., Result], tmp_path: Path) -> None:
    stdout = succeeded(annotate("--depth-model", "nowhere", "--flow", "nothing"))
    assert "depth" not in stdout and "flow" not in stdout
    assert {path.name for path in tmp_path.iterdir()} == {"edit.json", "edit.run.json", "cache"}


def test_masks(annotate: Callable[..., Result], saved_model: Callable[[str], Path], tmp_path: Path) -> None:
    succeeded(annotate("--mask-model", saved_model("sam2-video")))
    for grounded in VideoGrounding.from_json(tmp_path / "edit.json").objects:
        assert grounded.masks is not None
        assert grounded.masks.shape == (NUM_FRAMES, 64, 64)
        assert grounded.boxes is not None
    assert "masks: reused" in succeeded(annotate("--mask-model", saved_model("sam2-video")))


def test_a_clip_of_one_frame(annotate: Callable[..., Result], tmp_path: Path) -> None:
    succeeded(annotate("--max-frames", 1, "--preview", tmp_path / "preview"))
    assert len(read_clip(tmp_path / "preview").frames) == 1


def test_a_phrase_that_is_not_found_stops_before_anything_is_written(
    annotate: Callable[..., Result], tmp_path: Path
) -> None:
    result = annotate("--threshold", 0.999999, "--preview", tmp_path / "preview.mp4")
    assert result.exit_code != 0
    said = str(result.exception)
    assert "'rabbit' was not found" in said and "'red apple' was not found" in said and "would find it" in said
    assert {path.name for path in tmp_path.iterdir()} == {"cache"}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--objects", "rabbit,,table"], "phrase"),
        (["--objects", ""], "phrase"),
        (["--objects", "rabbit, Rabbit"], "named twice"),
        (["--objects", "rabbit@behind"], "behind"),
        (["-o", "edit.txt"], ".json"),
        (["--preview", "preview.webm"], ".webm"),
        (["--save-depth", "depth.avi"], ".avi"),
        (["--save-flow", "flow.npz"], ".npz"),
        (["--device", "abacus"], "abacus"),
        (["--detector", "nowhere/at-all"], "nowhere/at-all"),
        (["--flow", "guess", "--save-flow", "flow.safetensors"], "guess"),
        (["--objects", "a phrase with so many words that the model does not read it to its end"], "tokens"),
    ],
)
def test_bad_input(
    annotate: Callable[..., Result], tmp_path: Path, options: list[str], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = annotate(*options)
    assert isinstance(result.exception, ValueError), result.output
    assert said in str(result.exception)
    assert not [path for path in tmp_path.iterdir() if path.name != "cache"]


def test_clips_too_small_to_read(annotate: Callable[..., Result], tmp_path: Path) -> None:
    write_clip(tmp_path / "dot", np.zeros((2, 1, 1, 3), dtype=np.uint8), 8)
    result = annotate(clip=tmp_path / "dot")
    assert isinstance(result.exception, ValueError)
    assert "at least 8 pixels" in str(result.exception)


def test_importing_the_command_does_not_wait_for_torch() -> None:
    code = "import sys, diffusers_groundavideo.cli.annotate; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def reader(source: Clip, cache_dir: Path | None = None) -> ClipReader:
    return ClipReader(source, Run({}, torch.device("cpu")), cache_dir)


def test_an_edit_in_words(
    saved_model: Callable[[str], Path], small_checkpoint: Path, clip: Path, tmp_path: Path
) -> None:
    command = ["edit", clip, "-o", tmp_path / "edited", "--model", small_checkpoint, "--num-inference-steps", 2]
    command += ["--prompt", "a squirrel", "--source-prompt", "a rabbit", "--change", "rabbit@1=squirrel"]
    command += ["--detector", saved_model("owlvit"), "--threshold", 0.01, "--cache-dir", tmp_path / "cache"]
    command += ["--depth-model", saved_model("depth-anything"), "--flow", "dis", "--seed", 0]
    result = CliRunner().invoke(command_line, [str(argument) for argument in command])
    assert result.exit_code == 0, result.output
    assert result.output.index("rabbit 0.") < result.output.index("load: ")
    edited, source = read_clip(tmp_path / "edited").frames, read_clip(clip).frames
    assert edited.shape == source.shape and (edited != source).any()
    record = json.loads((tmp_path / "edited.run.json").read_text())
    assert {"objects", "depth", "flow", "load", "invert", "edit", "write"} == set(record["seconds"])


@pytest.mark.parametrize("words", [[], ["--edit", "edit.json", "--change", "rabbit=squirrel"]])
def test_an_edit_is_told_by_a_file_or_in_words(words: list[str], clip: Path, tmp_path: Path) -> None:
    command = [
        "edit",
        str(clip),
        "-o",
        str(tmp_path / "edited"),
        "--model",
        "nowhere",
        "--prompt",
        "a squirrel",
        *words,
    ]
    result = CliRunner().invoke(command_line, command)
    assert result.exit_code == 2
    assert "either by --edit or by --change" in result.output
    assert not list(tmp_path.iterdir())


def test_words_become_a_grounding(
    saved_model: Callable[[str], Path], clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = EditWords.parse(
        change=["rabbit@1=squirrel", "red apple@1 = orange"],
        add=["aurora"],
        box=["0,0,1,0.45"],
        keep=["table@1"],
        remove=["sky@1"],
    )
    grounding = ground_words(words, reader(read_clip(clip), tmp_path), str(saved_model("owlvit")), threshold=0.01)
    assert [(o.source_phrase, o.target_phrase, o.role) for o in grounding.objects] == [
        ("rabbit", "squirrel", "changed"),
        ("red apple", "orange", "changed"),
        ("sky", None, "removed"),
        ("table", "table", "kept"),
        (None, "aurora", "new"),
    ]
    grounding.frame_boxes(NUM_FRAMES)
    assert grounding.objects[-1].box == (0, 0, 1, 0.45)
    printed = capsys.readouterr().out
    for phrase in ("rabbit", "red apple", "sky", "table"):
        assert f"{phrase} 0." in printed


def test_all_of_a_phrase_become_the_same(saved_model: Callable[[str], Path], clip: Path, tmp_path: Path) -> None:
    words = EditWords.parse(change=["rabbit=squirrel"])
    grounding = ground_words(words, reader(read_clip(clip), tmp_path), str(saved_model("owlvit")), threshold=0.01)
    assert len(grounding.objects) > 1
    assert set(grounding.phrases("target")) == {"squirrel"}


def test_what_is_only_added_needs_no_detector() -> None:
    words = EditWords.parse(add=["aurora", "moon"], box=["0,0,1,0.45", "0.1, 0.1, 0.2, 0.2"])
    of_clip = reader(Clip(np.zeros((2, 16, 16, 3), dtype=np.uint8), 8))
    grounding = ground_words(words, of_clip, detector="nowhere")
    assert [(o.name, o.role, o.box) for o in grounding.objects] == [
        ("aurora", "new", (0, 0, 1, 0.45)),
        ("moon", "new", (0.1, 0.1, 0.2, 0.2)),
    ]
    with pytest.raises(ValueError, match="aurora"):
        ground_words(EditWords.parse(add=["aurora"], box=["0,0,2,0.45"]), of_clip)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "nothing to edit"),
        ({"keep": ["table"]}, "nothing to edit"),
        ({"change": ["rabbit"]}, "rabbit=squirrel"),
        ({"change": ["rabbit="]}, "rabbit=squirrel"),
        ({"change": ["=squirrel"]}, "rabbit=squirrel"),
        ({"change": ["rabbit=squirrel", "Rabbit=fox"]}, "named twice"),
        ({"change": ["rabbit=squirrel"], "keep": ["rabbit"]}, "named twice"),
        ({"change": ["@left=squirrel"]}, "phrase"),
        ({"add": ["aurora"]}, "--box of its own"),
        ({"add": ["aurora"], "box": ["0,0,1,1", "0,0,1,1"]}, "--box of its own"),
        ({"add": [" "], "box": ["0,0,1,1"]}, "--add"),
        ({"add": ["aurora"], "box": ["0,0,1"]}, "4 numbers"),
        ({"add": ["aurora"], "box": ["0,0,1,top"]}, "4 numbers"),
        ({"remove": [""]}, "phrase"),
    ],
)
def test_words_that_say_nothing_are_refused(options: dict[str, list[str]], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        EditWords.parse(**options)
