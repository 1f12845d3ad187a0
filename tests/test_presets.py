import inspect
import json
import re
import resource
import shlex
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
import yaml  # type: ignore[import-untyped]
from huggingface_hub import ModelCard
from safetensors.torch import save_file
from typer.testing import CliRunner, Result

from diffusers_groundavideo import GroundAVideoPipeline, Inflation, VideoGrounding, presets
from diffusers_groundavideo.cli.preset import app
from diffusers_groundavideo.presets import EditPreset
from diffusers_groundavideo.presets.fields import ExpectedClip, HubModel, InflationForm
from diffusers_groundavideo.video import read_clip, write_clip
from loopback_hub import LoopbackHub
from small_edit import SMALL_EDIT, make_frames, write_edit, write_frames


FPS = 12.5
# From standing still on the left to a quarter of a latent cell on the right.
FLOW = torch.linspace(0, 1.5, 64).expand(3, 2, 48, 64).contiguous()
DEPTH = make_frames()[::-1].copy()

# Arguments of the pipeline that a preset leaves to the caller: what the clip brings along, what makes no difference to
# the edit, and what only Python can hold.
LEFT_TO_THE_CALLER = {
    *("video", "conditioning_frames", "flow", "backward_flow", "inverted", "latents", "cross_attention_kwargs"),
    *("prompt_embeds", "negative_prompt_embeds", "phrase_embeds", "num_videos_per_prompt", "generator"),
    *("gradient_checkpointing", "frame_batch_size", "output_type", "return_dict"),
    *("callback_on_step_end", "callback_on_step_end_tensor_inputs"),
}


def make_preset(**changes: Any) -> EditPreset:
    arguments: dict[str, Any] = {
        "video": make_frames(),
        "grounding": VideoGrounding.from_dict(SMALL_EDIT),
        "fps": FPS,
        "source_prompt": SMALL_EDIT["source_prompt"],
        "prompt": SMALL_EDIT["target_prompt"],
        "num_inference_steps": 2,
        "seed": 3,
    }
    return EditPreset.from_call(**arguments | changes)


def as_data(preset: EditPreset, **changes: Any) -> dict[str, Any]:
    return {**json.loads(preset.to_json()), **changes}


@pytest.fixture
def pipe(components: dict[str, Any]) -> GroundAVideoPipeline:
    pipe = GroundAVideoPipeline(**components)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def gif(tmp_path: Path) -> Path:
    path = tmp_path / "compare.gif"
    write_clip(path, make_frames(), FPS)
    return path


def frames_of(result: Any) -> np.ndarray:
    return np.stack([np.asarray(frame) for frame in result.frames[0]])


def test_names_and_defaults_are_those_of_the_pipeline() -> None:
    parameters = inspect.signature(GroundAVideoPipeline.__call__).parameters
    arguments = {name: one for name, one in parameters.items() if name != "self"}
    optional = {name: field for name, field in EditPreset.model_fields.items() if not field.is_required()}
    assert set(arguments) - LEFT_TO_THE_CALLER <= set(EditPreset.model_fields)
    assert {name: field.default for name, field in optional.items() if name in arguments} == {
        name: one.default
        for name, one in arguments.items()
        if name not in LEFT_TO_THE_CALLER | {"grounding", "prompt"}
    }


def test_inflation_has_the_fields_and_defaults_of_the_pipeline() -> None:
    assert InflationForm().model_dump() == {field.name: field.default for field in fields(Inflation)}


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"inversion_method": "ddim", "negative_prompt": "blurry", "guidance_scale": 3.0, "eta": 0.5},
        {"height": 32, "width": 96, "restore_size": True, "open_all_boxes": True, "paste_back": False},
        {"inflation": Inflation(self_attention="per-frame"), "gligen_scheduled_sampling_beta": 0.5, "clip_skip": 1},
        {"inversion_method": "null-text", "num_null_text_steps": 1, "source_prompt": "a square"},
        {
            "flow": FLOW,
            "conditioning_frames": DEPTH,
            "flow_threshold": 0.4,
            "relative_flow_threshold": True,
            "controlnet_conditioning_scale": [0.5],
            "control_guidance_start": 0.1,
            "control_guidance_end": [0.6],
        },
        {"flow": FLOW, "backward_flow": -FLOW},
    ],
)
def test_the_call_is_reproduced_to_the_bit(pipe: GroundAVideoPipeline, settings: dict[str, Any]) -> None:
    grounding = VideoGrounding.from_dict(SMALL_EDIT)
    arguments: dict[str, Any] = {
        "source_prompt": SMALL_EDIT["source_prompt"],
        "prompt": SMALL_EDIT["target_prompt"],
        "num_inference_steps": 2,
        **settings,
    }
    expected = pipe(make_frames(), grounding, generator=torch.Generator().manual_seed(5), **arguments)
    preset = EditPreset.from_call(make_frames(), grounding, FPS, seed=5, **arguments)
    reread = EditPreset.from_dict(json.loads(preset.to_json()))
    given = {name: arguments[name] for name in ("conditioning_frames", "flow", "backward_flow") if name in arguments}
    result = pipe(**reread.call_arguments(make_frames(), **given))
    np.testing.assert_array_equal(frames_of(result), frames_of(expected))


def test_a_seed_decides_the_result(pipe: GroundAVideoPipeline) -> None:
    results = [frames_of(pipe(**make_preset(eta=1.0, seed=seed).call_arguments(make_frames()))) for seed in (0, 0, 1)]
    np.testing.assert_array_equal(results[0], results[1])
    assert (results[0] != results[2]).any()


@pytest.mark.parametrize(
    "place",
    [
        {"box": [0, 0, 0.5, 1]},
        {"boxes": [[0, 0, 0.5, 1], None, [0.1, 0, 0.6, 1], [0.25, 1 / 3, 0.7, 1]]},
        {"keyframes": {"0": [0, 0, 0.5, 1], "2": None, "3": [0.1, 0, 0.6, 1]}},
        {"masks": [{"size": [2, 3], "counts": [1, 2, 3]}, None, None, {"size": [2, 3], "counts": [6]}]},
    ],
)
@pytest.mark.parametrize("suffix", [".json", ".yaml", ".yml"])
def test_files_hold_all_of_a_preset(tmp_path: Path, place: dict[str, Any], suffix: str) -> None:
    data = as_data(
        make_preset(
            model={"id": "someone/a-model", "revision": "v1.0", "variant": "fp16"}, tags=["rabbit", "oil-paint"]
        ),
        grounding={"objects": [{"source_phrase": None, "target_phrase": "no", **place}]},
        prompt="a “squirrel” 🐿️\non 1:30",
        title="Ütopie: [1, 2]",
    )
    preset = EditPreset.from_dict(data)
    path = tmp_path / f"edit{suffix}"
    text = preset.to_json() if suffix == ".json" else yaml.safe_dump(data, allow_unicode=True)
    path.write_text(text, encoding="utf-8")
    assert EditPreset.from_file(path) == preset
    assert preset.video_grounding().frame_boxes(4)[1].any()


def test_yaml_by_hand(tmp_path: Path) -> None:
    preset = make_preset()
    text = f"""
schema_version: 1
prompt: no              # a word, not a truth value
source_prompt: 2020-01-01
seed: 7
guidance_scale: 7
eta: .5
clip: {json.dumps(as_data(preset)["clip"])}
grounding:
  objects:
    - source_phrase: off
      target_phrase: null
      keyframes: {{0: [0, 0, 1, 1], 3: [0, 0, 5e-1, 1]}}
"""
    (tmp_path / "edit.yaml").write_text(text)
    read = EditPreset.from_file(tmp_path / "edit.yaml")
    assert (read.prompt, read.source_prompt, read.seed, read.eta) == ("no", "2020-01-01", 7, 0.5)
    assert read.video_grounding().objects[0].frame_boxes(4)[3] == (0, 0, 0.5, 1)


def test_a_box_is_one_line_of_the_file() -> None:
    assert '"box": [0.25, 0.16666666666666666, 0.75, 0.8333333333333334]\n' in make_preset().to_json()


@pytest.mark.parametrize(
    "form",
    [
        lambda frames: [PIL.Image.fromarray(frame) for frame in frames],
        lambda frames: list(frames),
        lambda frames: frames[None],
        lambda frames: frames / 255.0,
        lambda frames: torch.from_numpy(frames).permute(0, 3, 1, 2),
        lambda frames: torch.from_numpy(frames).permute(0, 3, 1, 2) / 255,
    ],
)
def test_a_clip_is_known_in_every_form_that_the_pipeline_takes(form: Callable[[np.ndarray], Any]) -> None:
    preset = make_preset(conditioning_frames=form(DEPTH))
    assert preset == make_preset(conditioning_frames=DEPTH)
    video = form(make_frames())
    assert preset.call_arguments(video, form(DEPTH))["video"] is video


def test_several_controlnets_see_a_clip_each() -> None:
    preset = make_preset(conditioning_frames=[DEPTH, make_frames()], control_guidance_start=[0.0, 0.5])
    assert len(set(preset.clip.conditioning_sha256)) == 2
    arguments = preset.call_arguments(make_frames(), [DEPTH, make_frames()])
    assert arguments["control_guidance_start"] == [0.0, 0.5]


def test_another_clip_is_refused_unless_asked_for() -> None:
    preset, other = make_preset(), DEPTH
    with pytest.raises(ValueError, match="`video` is not the clip of the preset.*check_clip=False"):
        preset.call_arguments(other)
    assert preset.call_arguments(other, check_clip=False)["video"] is other


@pytest.mark.parametrize(
    ("video", "message"),
    [
        (make_frames(3), "4 frames of 64x48 .* is 3 frames of 64x48"),
        (make_frames()[:, :40], "is 4 frames of 64x40"),
        (np.stack([make_frames(), make_frames()]), "one clip, but holds 2"),
        ([], "`video`"),
    ],
)
def test_a_clip_that_does_not_fit_is_always_refused(video: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_preset().call_arguments(video, check_clip=False)


def test_what_belongs_to_the_clip_is_asked_for(caplog: pytest.LogCaptureFixture) -> None:
    preset = make_preset(conditioning_frames=DEPTH, flow=FLOW)
    with pytest.raises(ValueError, match="`conditioning_frames`: 1 belong to the preset, but 0 were given"):
        preset.call_arguments(make_frames(), flow=FLOW)
    with pytest.raises(ValueError, match="`flow` and `backward_flow`: 1 belong to the preset, but 2 were given"):
        preset.call_arguments(make_frames(), DEPTH, FLOW, FLOW)
    preset.call_arguments(make_frames(), DEPTH, FLOW)
    preset.call_arguments(make_frames(), check_clip=False)
    assert not caplog.records
    preset.call_arguments(make_frames(), DEPTH, 1.001 * FLOW)
    assert "`flow` and `backward_flow` are not those of the preset" in caplog.text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": "3"}, r"`seed`: Input should be a valid integer, but is '3'"),
        ({"guidance_scale": -1}, r"`guidance_scale`: .*greater than or equal to 0, but is -1"),
        ({"guidence_scale": 3}, r"`guidence_scale` is unknown"),
        ({"prompt": None}, r"`prompt`: .*string, but is None"),
        ({"model": {}}, r"`model.id` is missing"),
        ({"model": {"id": "/tmp/model"}}, r"`model.id` '/tmp/model' is no Hub id"),
        ({"source_prompt": None}, r"`source_prompt` is needed to invert with 'negative-prompt', but is None"),
        ({"grounding": {"objects": []}}, r"`grounding`: .*1 to 30 objects, but holds 0"),
        ({"control_guidance_end": [0.5, "x"]}, r"`control_guidance_end.several.1`: .*number, but is 'x'"),
        (
            {"grounding": {"objects": [{"source_phrase": "a", "target_phrase": "b", "boxes": [[0, 0, 1, 1]] * 3}]}},
            r"`grounding`: 'a' has 3 boxes, but the clip has 4 frames",
        ),
    ],
)
def test_a_message_names_the_field_what_came_and_what_was_expected(changes: dict[str, Any], message: str) -> None:
    data = as_data(make_preset(), **changes)
    with pytest.raises(ValueError, match=message) as refused:
        EditPreset.from_dict(data)
    assert type(refused.value) is ValueError


@pytest.mark.parametrize(
    "settings",
    [
        {"source_prompt": None},
        {"negative_prompt": "blurry"},
        {"inversion_method": "null-text", "guidance_scale": 1.0},
        {"flow_threshold": 1.5, "relative_flow_threshold": True},
        {"control_guidance_start": 0.5, "control_guidance_end": 0.5},
        {"control_guidance_start": [0.0, 0.0]},
        {"controlnet_conditioning_scale": [1.0, 1.0]},
        {"num_inference_steps": 0},
        {"num_null_text_steps": 0},
        {"inversion_method": "none"},
        {"eta": 1.5},
        {"gligen_scheduled_sampling_beta": -0.5},
    ],
)
def test_what_the_pipeline_refuses_is_refused_here_before_weights_are_loaded(
    pipe: GroundAVideoPipeline, settings: dict[str, Any]
) -> None:
    call = {"source_prompt": "a", "prompt": "b", "conditioning_frames": DEPTH, "flow": FLOW, **settings}
    with pytest.raises(ValueError):
        pipe(make_frames(), VideoGrounding.from_dict(SMALL_EDIT), **call)
    with pytest.raises(ValueError):
        make_preset(**call)


def test_a_newer_schema_is_refused_with_a_message() -> None:
    with pytest.raises(ValueError, match="`schema_version` is 2, but at most 1 is known here: upgrade"):
        EditPreset.from_dict(as_data(make_preset(), schema_version=2))


def test_an_older_schema_is_migrated_with_a_message(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    expected = make_preset()
    older = as_data(expected, schema_version=0)
    older["target_prompt"] = older.pop("prompt")
    with pytest.raises(ValueError, match="`schema_version` has to be 1, but is 0"):
        EditPreset.from_dict(older)

    def rename(data: dict[str, Any]) -> dict[str, Any]:
        return {"prompt" if name == "target_prompt" else name: value for name, value in data.items()}

    monkeypatch.setitem(presets.MIGRATIONS, 0, rename)
    assert EditPreset.from_dict(older) == expected
    assert "schema version 0 was read as one of version 1" in caplog.text
    assert "target_prompt" in older


def test_a_preset_does_not_change() -> None:
    with pytest.raises(ValueError, match="frozen"):
        make_preset().seed = 4


def test_a_folder_holds_preset_card_and_preview(tmp_path: Path, gif: Path) -> None:
    preset = make_preset()
    folder = tmp_path / "new" / "folder"
    preset.save_pretrained(folder, preview=gif)
    assert {path.name for path in folder.iterdir()} == {"preset.json", "README.md", "preview.gif"}
    assert (folder / "preview.gif").read_bytes() == gif.read_bytes()
    for name in (folder, str(folder), folder / "preset.json"):
        assert EditPreset.from_pretrained(name) == preset

    changed = make_preset(seed=9)
    changed.save_pretrained(folder)
    assert EditPreset.from_pretrained(folder) == changed


@contextmanager
def full_disk() -> Iterator[None]:
    """No file can grow beyond 256 bytes, so a write fails half-way. No fixture: pytest's own output, where it goes to
    a file, would fail as well."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (256, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_write_that_fails_leaves_no_trace(tmp_path: Path) -> None:
    with pytest.raises(OSError), full_disk():
        make_preset().save_pretrained(tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_write_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    make_preset().save_pretrained(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(OSError), full_disk():
        make_preset(seed=9).save_pretrained(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_readme_of_something_else_is_not_written_over(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("# My project")
    with pytest.raises(ValueError, match="not a preset's"):
        make_preset().save_pretrained(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["README.md"]


@pytest.mark.parametrize("name", ["nothing.gif", "text.gif", "."])
def test_a_preview_has_to_be_a_gif(tmp_path: Path, name: str) -> None:
    (tmp_path / "text.gif").write_text("no gif")
    with pytest.raises(ValueError, match="`preview` has to be a gif"):
        make_preset().save_pretrained(tmp_path / "new", preview=tmp_path / name)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("license", "expected", "name"),
    [("Apache-2.0", "apache-2.0", None), ("CC0-1.0", "cc0-1.0", None), ("Zlib-like-1", "other", "zlib-like-1")],
)
def test_the_front_matter_is_what_the_hub_reads(license: str, expected: str, name: str | None) -> None:
    data = ModelCard(make_preset(license=license, tags=["rabbit"]).card()).data.to_dict()
    assert data["library_name"] == "diffusers"
    assert data["license"] == expected
    assert data.get("license_name") == name
    assert "rabbit" in data["tags"]


def test_the_card_shows_the_edit() -> None:
    card = make_preset(title="To a circle", author="Ada").card("someone/to-a-circle", "v1", preview=True)
    assert "# To a circle" in card
    assert "![before and after](preview.gif)" in card
    assert "| changed | yellow square | red circle |" in card
    assert "groundavideo preset run someone/to-a-circle clip.mp4 -o edited.mp4 --revision v1" in card
    assert "preview.gif" not in make_preset().card()


def test_the_card_shows_texts_as_they_are() -> None:
    card = make_preset(
        title="![x](https://example.com/pixel.png)",
        prompt="<script>alert(1)</script>\n---\n| [a](b) `c`",
        author="*Ada*",
    ).card()
    body = card.split("---\n", 2)[2]
    assert not re.search(r"(?<!\\)[<`\[!*]", body.split("## Reproduce")[0].replace("| --- | --- | --- |", ""))
    assert ModelCard(card).data.to_dict()["library_name"] == "diffusers"


@pytest.fixture
def at_hand(tmp_path: Path, small_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with what the card of a preset that names no model calls for, as the current one."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").symlink_to(small_checkpoint)
    write_frames(tmp_path / "clip.frames", make_frames())
    write_frames(tmp_path / "depth_1", DEPTH)
    save_file({"flow": FLOW}, tmp_path / "flow.safetensors")
    write_edit(tmp_path / "edit.json")
    return tmp_path


def test_the_card_reproduces_the_edit_as_it_says(at_hand: Path, pipe: GroundAVideoPipeline) -> None:
    preset = make_preset(conditioning_frames=DEPTH, flow=FLOW, seed=1)
    expected = frames_of(pipe(**preset.call_arguments(make_frames(), DEPTH, FLOW)))
    preset.save_pretrained(".")
    card = Path("README.md").read_text(encoding="utf-8")
    command, script = re.findall(r"```(?:bash|python)\n(.*?)\n```", card, re.DOTALL)

    # A video would have been through an encoder, and so be another clip.
    arguments = [{"clip.mp4": "clip.frames", "edited.mp4": "edited"}.get(one, one) for one in shlex.split(command)]
    assert arguments[:2] == ["groundavideo", "preset"]
    ran = CliRunner().invoke(app, arguments[2:])
    assert ran.exit_code == 0, ran.output
    np.testing.assert_array_equal(read_clip("edited").frames, expected)

    names: dict[str, Any] = {"video": make_frames(), "depth": DEPTH, "flow": FLOW, "model": "model"}
    exec(script.replace("diffusers_groundavideo import", "diffusers_groundavideo.presets import"), names)
    np.testing.assert_array_equal(np.stack([np.asarray(frame) for frame in names["frames"]]), expected)


def test_a_pipeline_needs_a_model(small_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="pass `model`"):
        make_preset().load_pipeline()
    two = [str(small_checkpoint / "controlnet")] * 2
    pipe = make_preset().load_pipeline(small_checkpoint, controlnets=two, dtype=torch.bfloat16)
    assert len(pipe.controlnet.nets) == 2
    assert pipe.unet.dtype == pipe.controlnet.dtype == torch.bfloat16

    monkeypatch.chdir(tmp_path)
    (tmp_path / "someone").mkdir()
    (tmp_path / "someone" / "a-model").symlink_to(small_checkpoint)
    with pytest.raises(ValueError, match="a folder 'someone/a-model' here"):
        make_preset(model={"id": "someone/a-model"}).load_pipeline()


def test_code_of_a_model_repo_is_not_run(small_checkpoint: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(small_checkpoint, model)
    index = json.loads((model / "model_index.json").read_text())
    index["_class_name"] = ["pipeline", "GroundAVideoPipeline"]
    (model / "model_index.json").write_text(json.dumps(index))
    (model / "pipeline.py").write_text(f"open({str(tmp_path / 'owned')!r}, 'w')")
    assert type(make_preset().load_pipeline(model)) is GroundAVideoPipeline

    index["unet"] = ["code", "Unet"]
    (model / "model_index.json").write_text(json.dumps(index))
    (model / "unet" / "code.py").write_text(f"open({str(tmp_path / 'owned')!r}, 'w')")
    with pytest.raises(ValueError, match="trust_remote_code"):
        make_preset().load_pipeline(model)
    assert not (tmp_path / "owned").exists()


def test_a_local_model_has_no_place_in_a_preset(small_checkpoint: Path) -> None:
    assert HubModel.loaded(str(small_checkpoint)) is None
    assert HubModel.loaded("a/b", variant="fp16") == HubModel(id="a/b", variant="fp16")


# --- on the Hub ---

REPRODUCE = """
import hashlib, json, sys
import numpy as np
from diffusers_groundavideo.presets import EditPreset
from diffusers_groundavideo.video import read_clip

preset = EditPreset.from_pretrained(sys.argv[1], revision=sys.argv[2])
pipe = preset.load_pipeline()
clip, depth = read_clip(sys.argv[3]).frames, read_clip(sys.argv[4]).frames
frames = np.stack([np.asarray(frame) for frame in pipe(**preset.call_arguments(clip, depth)).frames[0]])
print(hashlib.sha256(frames.tobytes()).hexdigest())
"""

EDIT_AND_PUSH = """
import hashlib, json, sys
import numpy as np
import torch
from diffusers import ControlNetModel
from diffusers_groundavideo import GroundAVideoPipeline, VideoGrounding
from diffusers_groundavideo.presets.fields import HubModel
from diffusers_groundavideo.presets import EditPreset
from diffusers_groundavideo.video import read_clip

clip, depth = read_clip(sys.argv[1]).frames, read_clip(sys.argv[2]).frames
controlnet = ControlNetModel.from_pretrained("weights/controlnet")
pipe = GroundAVideoPipeline.from_pretrained("weights/gligen", controlnet=controlnet)
grounding = VideoGrounding.from_json(sys.argv[3])
arguments = {"source_prompt": "a square", "prompt": "a circle", "num_inference_steps": 2, "eta": 0.5}
result = pipe(clip, grounding, conditioning_frames=depth, generator=torch.Generator().manual_seed(4), **arguments)
preset = EditPreset.from_call(
    clip, grounding, 8.0, depth, seed=4, model=HubModel.loaded("weights/gligen"),
    controlnets=[HubModel.loaded("weights/controlnet")], **arguments,
)
commit = preset.push_to_hub("tester/to-a-circle", preview=sys.argv[4], private=True, commit_message="A circle")
frames = np.stack([np.asarray(frame) for frame in result.frames[0]])
print(json.dumps({
    "frames": hashlib.sha256(frames.tobytes()).hexdigest(), "commit": commit.oid,
    "model": preset.model.revision, "controlnet": preset.controlnets[0].revision,
}))
"""


def test_an_edit_is_shared_and_reproduced_to_the_bit(
    hub: LoopbackHub, small_checkpoint: Path, tmp_path: Path, gif: Path
) -> None:
    def weights(folder: Path) -> dict[str, str | bytes]:
        return {
            path.relative_to(folder).as_posix(): path.read_bytes()
            for path in folder.rglob("*")
            if path.is_file() and "controlnet" not in path.relative_to(folder).parts
        }

    files = weights(small_checkpoint)
    index = json.loads(files["model_index.json"]) | {"controlnet": [None, None]}
    model = hub.add_repo("weights/gligen", {**files, "model_index.json": json.dumps(index)})
    controlnet = hub.add_repo("weights/controlnet", weights(small_checkpoint / "controlnet"))
    clip, depth = write_frames(tmp_path / "clip", make_frames()), write_frames(tmp_path / "depth", DEPTH)

    pushed = hub.python(EDIT_AND_PUSH, clip, depth, write_edit(tmp_path / "edit.json"), gif)
    assert pushed.returncode == 0, pushed.stderr
    told = json.loads(pushed.stdout.splitlines()[-1])
    assert (told["model"], told["controlnet"]) == (model, controlnet)
    assert hub.repos["model", "tester/to-a-circle"].private
    files = dict(hub.files("tester/to-a-circle"))
    assert {"preset.json", "README.md", "preview.gif"} <= set(files)
    assert files["preview.gif"] == gif.read_bytes()

    # The main branches go on: the preset still means what it was made with.
    hub.add_repo("weights/gligen", {"model_index.json": "{}"})
    hub.add_repo("tester/to-a-circle", {"preset.json": make_preset(seed=9).to_json()})
    elsewhere = str(tmp_path / "elsewhere")
    reproduced = hub.python(REPRODUCE, "tester/to-a-circle", told["commit"], clip, depth, HF_HOME=elsewhere)
    assert reproduced.returncode == 0, reproduced.stderr
    assert reproduced.stdout.splitlines()[-1] == told["frames"]


ON_THE_HUB = """
import json, os, sys
from huggingface_hub.errors import HfHubHTTPError
from diffusers_groundavideo.presets import EditPreset

def attempt(what, *arguments, **options):
    try:
        return "done", what(*arguments, **options)
    except (ValueError, OSError) as error:
        return type(error).__name__, str(error)

preset = EditPreset.from_file(sys.argv[1])
told = {}
for name, arguments in json.loads(sys.argv[2]).items():
    if "push" in arguments:
        kind, result = attempt(preset.push_to_hub, arguments.pop("push"), **arguments)
        told[name] = kind, result if kind != "done" else result.pr_url or result.oid
    else:
        kind, result = attempt(EditPreset.from_pretrained, arguments.pop("pull"), **arguments)
        told[name] = kind, result if kind != "done" else result.seed
print(json.dumps(told))
"""


@pytest.fixture
def on_the_hub(hub: LoopbackHub, tmp_path: Path) -> Callable[..., dict[str, list[Any]]]:
    """Pushes and pulls one after the other in a fresh process: what came of each, by name."""
    (tmp_path / "edit.json").write_text(make_preset(seed=3).to_json())

    def call(env: dict[str, str | None] | None = None, **calls: dict[str, Any]) -> dict[str, list[Any]]:
        done = hub.python(ON_THE_HUB, tmp_path / "edit.json", json.dumps(calls), **env or {})
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    return call


def test_branches_and_pull_requests(hub: LoopbackHub, on_the_hub: Callable[..., dict[str, list[Any]]]) -> None:
    hub.add_repo("tester/edit", {"preset.json": make_preset(seed=1).to_json(), "README.md": "", "notes.txt": "mine"})
    told = on_the_hub(
        branch={"push": "tester/edit", "revision": "second"},
        again={"push": "tester/edit", "revision": "second"},
        pull_request={"push": "tester/edit", "create_pr": True},
        from_main={"pull": "tester/edit"},
        from_branch={"pull": "tester/edit", "revision": "second"},
        from_pull_request={"pull": "tester/edit", "revision": "refs/pr/1"},
    )
    assert {name: told[name] for name in told if name.startswith("from")} == {
        "from_main": ["done", 1],
        "from_branch": ["done", 3],
        "from_pull_request": ["done", 3],
    }
    assert told["pull_request"][1].endswith("/tester/edit/discussions/1")
    assert hub.files("tester/edit", "second")["notes.txt"] == b"mine"
    assert "--revision second" in hub.files("tester/edit", "second")["README.md"].decode()


def test_what_is_wrong_on_the_hub_is_said(hub: LoopbackHub, on_the_hub: Callable[..., dict[str, list[Any]]]) -> None:
    hub.add_repo("tester/model", {"README.md": "# A model", "model_index.json": "{}"})
    hub.add_repo("tester/large", {"preset.json": " " * (4 * 2**20 + 1)})
    hub.add_repo("tester/broken", {"preset.json": "{"})
    told = on_the_hub(
        no_repo={"pull": "tester/nothing"},
        no_revision={"pull": "tester/broken", "revision": "gone"},
        no_preset={"pull": "tester/model"},
        large={"pull": "tester/large"},
        broken={"pull": "tester/broken"},
        path={"pull": "../broken"},
        path_in_revision={"pull": "tester/broken", "revision": "../../../escaped"},
        over_a_model={"push": "tester/model"},
        no_id={"push": "just-a-name"},
    )
    assert {kind for kind, _ in told.values()} == {"ValueError"}
    for name, words in {
        "no_repo": "no repo tester/nothing",
        "no_revision": "no revision 'gone'",
        "no_preset": "no preset.json",
        "large": "larger than",
        "broken": "is no preset",
        "path": "no Hub id",
        "path_in_revision": "no commit, branch or tag",
        "over_a_model": "README.md that is not a preset's",
        "no_id": "no Hub id",
    }.items():
        assert words in told[name][1], (name, told[name])
    assert not any("GET" in request and "large" in request for request in hub.requests)
    assert hub.files("tester/model")["README.md"] == b"# A model"


def test_a_hub_that_fails(hub: LoopbackHub, on_the_hub: Callable[..., dict[str, list[Any]]], gif: Path) -> None:
    push = {"push": "tester/edit", "preview": str(gif)}
    hub.fail("POST .*/commit/main", 500, times=float("inf"))
    assert on_the_hub(push=push)["push"][0] == "HfHubHTTPError"
    assert "preset.json" not in hub.files("tester/edit")

    hub.heal()
    told = on_the_hub(push=push, pull={"pull": "tester/edit"}, may_not={**push, "token": hub.READ_TOKEN})
    assert told["push"][0] == "done"
    assert told["pull"] == ["done", 3]
    assert told["may_not"][0] == "HfHubHTTPError"

    assert on_the_hub(env={"HF_HUB_OFFLINE": "1"}, pull={"pull": "tester/edit"})["pull"] == ["done", 3]


# --- commands ---


@pytest.fixture
def invoke(at_hand: Path) -> Callable[..., Result]:
    def call(*arguments: Any) -> Result:
        return CliRunner().invoke(app, [str(argument) for argument in arguments])

    return call


@pytest.fixture
def new(invoke: Callable[..., Result]) -> Callable[..., Result]:
    """`preset new` of the clip at hand, with some options."""

    def call(*options: Any) -> Result:
        return invoke("new", "clip.frames", "-o", "shared", "--edit", "edit.json", *options)

    return call


def test_new_show_validate_run(
    new: Callable[..., Result], invoke: Callable[..., Result], pipe: GroundAVideoPipeline
) -> None:
    options = ["--set", "num_inference_steps=2", "--set", "inversion_method=ddim", "--set", 'negative_prompt="blurry"']
    assert new(*options, "--seed", 8, "--depth", "depth_1", "--tag", "shapes", "--license", "MIT").exit_code == 0
    preset = EditPreset.from_pretrained("shared")
    assert (preset.seed, preset.tags, preset.license) == (8, ("shapes",), "MIT")

    said = invoke("show", "shared").stdout.splitlines()
    assert "prompt: a red circle on a ramp" in said
    assert "  changed  yellow square -> red circle" in said
    assert "num_inference_steps: 2" in said
    assert not any(line.startswith("guidance_scale") for line in said)

    Path("broken.json").write_text("{")
    assert invoke("validate", "shared", "shared/preset.json").exit_code == 0
    checked = invoke("validate", "broken.json", "shared")
    assert checked.exit_code == 2
    assert "broken.json: " in checked.stderr
    assert "shared: valid" in checked.stdout

    ran = invoke(
        *("run", "shared", "clip.frames", "-o", "edited", "--depth", "depth_1", "--model", "model"),
        *("--side-by-side", "both.gif"),
    )
    assert ran.exit_code == 0, ran.output
    expected = frames_of(pipe(**preset.call_arguments(make_frames(), DEPTH)))
    np.testing.assert_array_equal(read_clip("edited").frames, expected)
    assert read_clip("both.gif").frames.shape[2] > 2 * 64
    assert json.loads(Path("edited.run.json").read_text())["preset"] == as_data(preset)


def test_new_takes_the_first_frames_and_so_does_run(new: Callable[..., Result], invoke: Callable[..., Result]) -> None:
    assert new("--max-frames", 2, "--set", "num_inference_steps=1").exit_code == 0
    assert EditPreset.from_pretrained("shared").clip == ExpectedClip.of(make_frames()[:2], 8.0)
    assert invoke("run", "shared", "clip.frames", "-o", "edited", "--model", "model").exit_code == 0
    assert len(read_clip("edited").frames) == 2


def test_weights_are_named_with_their_revision(new: Callable[..., Result]) -> None:
    model = ["--model", "someone/gligen@abc123", "--variant", "fp16"]
    assert new(*model, "--controlnet", "a/depth", "--controlnet", "b/edges@v2").exit_code == 0
    preset = EditPreset.from_pretrained("shared")
    assert preset.model == HubModel(id="someone/gligen", revision="abc123", variant="fp16")
    assert preset.controlnets == (HubModel(id="a/depth"), HubModel(id="b/edges", revision="v2"))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--set", "guidance_scale"], "NAME=VALUE"),
        (["--set", "guidance=3"], "`guidance` is unknown"),
        (["--set", "num_inference_steps=1e9"], "num_inference_steps"),
        (["--model", "model"], "no Hub id"),
        (["--edit", "nothing.json"], "nothing.json"),
        (["--depth", "nothing"], "nothing"),
    ],
)
def test_new_refuses(new: Callable[..., Result], at_hand: Path, options: list[str], words: str) -> None:
    result = new(*options)
    assert isinstance(result.exception, ValueError)
    assert words in str(result.exception)
    assert not (at_hand / "shared").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["shared", "depth_1", "-o", "edited"], "not the clip of the preset"),
        (["shared", "clip.frames", "-o", "clip.frames"], "clip"),
        (["shared", "clip.frames", "-o", "edited"], "pass `model`"),
        (["nothing", "clip.frames", "-o", "edited"], "no Hub id"),
    ],
)
def test_run_refuses(
    new: Callable[..., Result], invoke: Callable[..., Result], at_hand: Path, arguments: list[str], words: str
) -> None:
    assert new().exit_code == 0
    before = set(at_hand.rglob("*"))
    result = invoke("run", *arguments)
    assert isinstance(result.exception, ValueError)
    assert words in str(result.exception)
    assert set(at_hand.rglob("*")) == before


def test_run_on_another_clip(new: Callable[..., Result], invoke: Callable[..., Result]) -> None:
    assert new("--set", "num_inference_steps=1").exit_code == 0
    assert invoke("run", "shared", "depth_1", "-o", "edited", "--model", "model", "--no-check-clip").exit_code == 0
    np.testing.assert_array_equal(read_clip("edited").frames[:, 0], DEPTH[:, 0])


COMMANDS = """
import json, sys
from diffusers_groundavideo.cli.preset import app
for command in json.loads(sys.argv[1]):
    app(command, standalone_mode=False)
"""


def test_push_and_pull(hub: LoopbackHub, tmp_path: Path, gif: Path) -> None:
    preset = make_preset()
    shared, pulled = str(tmp_path / "shared"), str(tmp_path / "pulled")
    preset.save_pretrained(shared, preview=gif)
    push = ["push", shared, "tester/edit", "--private", "--revision", "first"]
    done = hub.python(COMMANDS, json.dumps([push, ["pull", "tester/edit", "-o", pulled, "--revision", "first"]]))
    assert done.returncode == 0, done.stderr
    assert "/tester/edit/commit/" in done.stdout
    assert hub.files("tester/edit", "first")["preview.gif"] == gif.read_bytes()
    assert hub.repos["model", "tester/edit"].private
    assert EditPreset.from_pretrained(pulled) == preset
