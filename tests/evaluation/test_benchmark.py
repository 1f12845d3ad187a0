import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from diffusers_groundavideo import __version__
from diffusers_groundavideo.evaluation.benchmark import MAX_PSNR, checkpoint_hash, measure, run_benchmark, strip_path
from diffusers_groundavideo.evaluation.methods import select_methods
from diffusers_groundavideo.evaluation.report import write_report
from diffusers_groundavideo.evaluation.suite import KINDS, BenchmarkClip, benchmark_clip
from diffusers_groundavideo.spriteworld import mini_checkpoint, render
from diffusers_groundavideo.spriteworld.judge import SpriteJudge


CLIPS = ("000-two-edits-3f", "010-fast-3f")
METHODS = ("ours", "published", "sdedit")
COMMAND = [
    *(str(Path(sys.executable).with_name("groundavideo")), "benchmark", "--seed", "5", "--steps", "1"),
    *("--frames", "3", "--clips", "2", "--only", "two-edits", "--only", "fast", "--workers", "1"),
    *(option for name in METHODS for option in ("--methods", name)),
]


def run(folder: Path, methods=METHODS, **arguments) -> None:
    settings: dict[str, Any] = {
        **{"seed": 5, "steps": 1, "guidance_scale": 2.0, "num_frames": [3]},
        **{"num_clips": 2, "kinds": ["two-edits", "fast"], "checkpoint": mini_checkpoint(), **arguments},
    }
    run_benchmark(folder, methods=select_methods(methods), **settings)


def contents(folder: Path) -> dict[str, object]:
    """What a run left in a folder: bytes by path, records without their seconds."""
    found: dict[str, object] = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "seconds.md"):
        found[str(path.relative_to(folder))] = path.read_bytes()
        if path.parent.parent.name == "records":
            record = json.loads(path.read_text())
            del record["seconds"]
            found[str(path.relative_to(folder))] = record
    return found


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("benchmark") / "finished"
    run(folder)
    write_report(folder)
    return folder


def record_of(folder: Path, clip: str, method: str) -> dict:
    return json.loads((folder / "records" / clip / f"{method}.json").read_text())


def test_there_is_a_record_and_a_strip_of_every_clip_and_method(finished):
    for clip in CLIPS:
        records = sorted(path.stem for path in (finished / "records" / clip).iterdir())
        assert records == sorted([*METHODS, "ceiling"])
        for method in (*records, "source", "perfect"):
            with Image.open(strip_path(finished, clip, method)) as strip:
                assert strip.size == (3 * 64, 64)


def test_a_record_says_what_was_measured_with_what(finished):
    record = record_of(finished, CLIPS[0], "ours")
    assert record["clip"]["kind"] == "two-edits"
    assert record["settings"]["seed"] == 5
    assert record["settings"]["steps"] == 1
    assert record["settings"]["checkpoint"] == checkpoint_hash(mini_checkpoint())
    assert record["settings"]["versions"]["diffusers-groundavideo"] == __version__
    assert set(record["seconds"]) == {"inversion", "denoising", "decoding"}


def test_a_strip_is_what_was_measured(finished):
    clip = benchmark_clip(5, 0, num_frames=3)
    with Image.open(strip_path(finished, clip.name, "ours")) as strip:
        frames = np.stack(np.split(np.asarray(strip), 3, axis=1))
    measured = measure(clip, frames, SpriteJudge.from_pretrained(), 4)
    assert measured == record_of(finished, clip.name, "ours")["metrics"]


def test_a_run_that_was_killed_and_resumed_leaves_what_an_uninterrupted_one_does(finished, tmp_path):
    folder = tmp_path / "killed"
    with subprocess.Popen([*COMMAND, "-o", str(folder)], stdout=subprocess.DEVNULL) as process:
        while not (folder / "records" / CLIPS[0] / "ours.json").exists():
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    assert not (folder / "records" / CLIPS[1] / "sdedit.json").exists()
    written = (folder / "records" / CLIPS[0] / "ours.json").stat().st_mtime_ns

    run(folder)
    write_report(folder)
    assert (folder / "records" / CLIPS[0] / "ours.json").stat().st_mtime_ns == written
    # What was being written when the run was killed stays beside, unread.
    for path in list(folder.rglob("*.tmp")):
        path.unlink()
    assert contents(folder) == contents(finished)


def test_more_methods_are_added_to_the_records_that_are_there(finished, tmp_path):
    folder = tmp_path / "more"
    run(folder, ["sdedit"], num_clips=1)
    before = contents(folder)
    run(folder, METHODS)
    assert before.items() <= contents(folder).items()
    write_report(folder)
    assert contents(folder) == contents(finished)


@pytest.mark.slow
def test_two_processes_leave_what_one_does(finished, tmp_path):
    run(tmp_path / "two", workers=2)
    write_report(tmp_path / "two")
    assert contents(tmp_path / "two") == contents(finished)


@pytest.mark.parametrize(("name", "value"), [("seed", 6), ("steps", 2), ("guidance_scale", 3.0)])
def test_a_folder_of_other_settings_is_refused(finished, name, value):
    before = contents(finished)
    with pytest.raises(ValueError, match=f"made with other settings: {name} was .*, is {value}"):
        run(finished, **{name: value})
    assert contents(finished) == before


def test_a_folder_of_another_checkpoint_is_refused(finished, tmp_path):
    (tmp_path / "model_index.json").write_text("{}")
    with pytest.raises(ValueError, match="other settings: checkpoint was"):
        run(finished, checkpoint=tmp_path)


def test_a_folder_with_other_things_in_it_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(ValueError, match="neither empty nor of a benchmark"):
        run(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"steps": 0}, "`steps` and `workers` have to be at least 1, but are 0"),
        ({"workers": 0}, "`steps` and `workers` have to be at least 1"),
        ({"num_clips": 0}, "number of clips has to be at least 1, but is 0"),
        ({"num_frames": [8, 1]}, "lengths of at least 2 frames"),
        ({"num_frames": []}, "lengths of at least 2 frames"),
        ({"kinds": ["flying"]}, "no kind of clip called flying"),
        ({"checkpoint": "no/such/folder"}, "has to be a folder in diffusers' layout, but 'no/such/folder'"),
    ],
)
def test_bad_arguments_are_refused_before_anything_is_written(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        run(tmp_path / "new", **arguments)
    assert not (tmp_path / "new").exists()


def test_the_hash_of_a_checkpoint_tells_contents_and_names_apart(tmp_path):
    hashes: list[str] = []
    for name, content in (("a", "1"), ("a", "2"), ("b", "2"), ("b", "2")):
        folder = tmp_path / str(len(hashes))
        folder.mkdir()
        (folder / name).write_text(content)
        hashes.append(checkpoint_hash(folder))
    assert len(set(hashes)) == 3
    assert hashes[2] == hashes[3]


class TestMeasure:
    judge = SpriteJudge.from_pretrained()

    def measured(self, clip: BenchmarkClip, frames: np.ndarray) -> dict[str, Any]:
        return measure(clip, frames, self.judge, 4)

    @pytest.mark.parametrize("kind", ["two-edits", "addition", "kept-object", "background-swap"])
    def test_the_perfect_edit_is_as_good_as_can_be(self, kind):
        clip = benchmark_clip(5, KINDS.index(kind))
        measured = self.measured(clip, clip.perfect.frames)
        for name, best in (
            ("edit_accuracy", 1.0),
            ("kept_accuracy", 1.0 if clip.kept else None),
            ("background_accuracy", 1.0 if clip.changes_background else None),
            ("psnr", MAX_PSNR),
            ("psnr_inside", MAX_PSNR),
            ("background_psnr", None if clip.changes_background else MAX_PSNR),
            ("accuracy_times_background", None if clip.changes_background else MAX_PSNR),
            ("omission", 0.0),
            ("leaked_instances", 0.0 if len(clip.scene.objects) > 1 else None),
        ):
            assert measured[name] == best, name

    def test_a_clip_left_as_it_is_has_no_edit_and_a_perfect_background(self):
        clip = benchmark_clip(5, KINDS.index("two-edits"))
        measured = self.measured(clip, clip.source.frames)
        assert measured["edit_accuracy"] == 0
        assert measured["omission"] == 1
        assert measured["background_psnr"] == measured["psnr_outside"] == MAX_PSNR
        assert measured["psnr_inside"] < 20
        assert measured["warp_error"] < 0.01

    def test_another_background_than_asked_for_is_found_out(self):
        clip = benchmark_clip(5, KINDS.index("background-change"))
        assert self.measured(clip, clip.source.frames)["background_accuracy"] == 0

    def test_swapped_edits_count_as_leaked(self):
        clip = benchmark_clip(5, KINDS.index("two-edits"))
        swapped = render(clip.scene.with_targets(clip.target_names[::-1]))
        assert self.measured(clip, swapped.frames)["leaked_instances"] > 0.9

    def test_noise_is_flicker_and_warp_error(self):
        clip = benchmark_clip(5, KINDS.index("two-edits"))
        noise = np.random.default_rng(0).integers(-20, 21, clip.perfect.frames.shape)
        noisy = np.clip(clip.perfect.frames + noise, 0, 255).astype(np.uint8)
        perfect, worse = (self.measured(clip, frames) for frames in (clip.perfect.frames, noisy))
        assert worse["static_flicker"] > 10 * perfect["static_flicker"]
        assert worse["warp_error"] > 1.5 * perfect["warp_error"]
