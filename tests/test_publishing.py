"""A model repo that carries its own pipeline: written, pushed over real HTTP, loaded in fresh processes."""

import json
import re
import resource
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from diffusers import DiffusionPipeline
from huggingface_hub import ModelCard

from diffusers_groundavideo import GroundAVideoPipeline
from diffusers_groundavideo.publishing import save_model_repo
from loopback_hub import LoopbackHub
from one_edit import edit


REPO = "tester/model"

PUBLISH = "import typer; from diffusers_groundavideo.cli.publish import publish; typer.run(publish)"
PUSH = """
import json, sys
from diffusers_groundavideo.publishing import push_model_repo

try:
    commit = push_model_repo(sys.argv[1], sys.argv[2], **json.loads(sys.argv[3]))
except (ValueError, OSError) as error:
    sys.exit(f"{type(error).__name__}: {error}")
print(commit.oid)
"""
LOAD = """
import sys
if sys.argv[2] == "without the package":
    sys.modules["diffusers_groundavideo"] = None
from diffusers import DiffusionPipeline
from one_edit import edit

first, second = (
    DiffusionPipeline.from_pretrained("tester/model", revision=sys.argv[1], trust_remote_code=True) for _ in range(2)
)
assert type(first) is type(second)
print(type(first).__module__.rpartition("_")[0], edit(first))
"""
# What goes wrong is printed in place of what comes out.
LOAD_THREE_TIMES = """
from diffusers import DiffusionPipeline
from one_edit import edit

for revision in ("gone", "main", "main"):
    try:
        print(edit(DiffusionPipeline.from_pretrained("tester/model", revision=revision, trust_remote_code=True)))
    except Exception as error:
        print(type(error).__name__, type(error.__cause__).__name__)
"""


@pytest.fixture(scope="module")
def published(small_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as `save_model_repo` writes it. Not to be written to."""
    pipe = GroundAVideoPipeline.from_pretrained(small_checkpoint)
    folder = tmp_path_factory.mktemp("published") / "small-model"
    return save_model_repo(pipe, folder, license="apache-2.0", repo_id=REPO)


@pytest.fixture(scope="module")
def expected(small_checkpoint: Path) -> str:
    """The hash of the edit that the package makes."""
    return edit(GroundAVideoPipeline.from_pretrained(small_checkpoint))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 16 MB, in a namespace of its own, where mounting takes no rights."""
    mount = tmp_path / "disk"
    mount.mkdir()
    script = f"mount -t tmpfs -o size=16m tmpfs {mount} && echo mounted && exec sleep 600"
    try:
        process = subprocess.Popen(
            ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script], stdout=subprocess.PIPE, text=True
        )
    except FileNotFoundError:
        pytest.skip("there is no `unshare` to mount a small disk with")
    assert process.stdout is not None
    if process.stdout.readline() != "mounted\n":
        pytest.skip("a small disk may not be mounted here")
    yield Path(f"/proc/{process.pid}/root{mount}")
    process.kill()
    process.wait()


def push(hub: LoopbackHub, folder: Path, env: dict[str, str | None] | None = None, **options: Any) -> str:
    """Pushes in a fresh process; returns the hash of the commit, or the error as "Type: message"."""
    result = hub.python(PUSH, folder, REPO, json.dumps(options), **(env or {}))
    assert result.returncode == 0 or re.match(r"(ValueError|OSError): ", result.stderr.splitlines()[-1]), result.stderr
    return result.stdout.strip() if result.returncode == 0 else result.stderr.splitlines()[-1]


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    }


# What the repo holds.


def test_a_repo_holds_the_model_its_code_and_a_card(published, small_checkpoint):
    files = contents(published)
    (copy,) = (name for name in files if name.startswith("ground_a_video_"))
    assert json.loads(files["model_index.json"])["_class_name"] == ["pipeline", "GroundAVideoPipeline"]
    assert f"from .{copy.removesuffix('.py')} import GroundAVideoPipeline" in files["pipeline.py"].decode()
    assert {name.split("/")[0] for name in files if "/" in name} == {
        "vae",
        "text_encoder",
        "tokenizer",
        "unet",
        "scheduler",
        "controlnet",
    }
    # Where the author has the model is nobody's business.
    assert not any(str(small_checkpoint).encode() in content for content in files.values())

    card = ModelCard.load(published / "README.md")
    assert (card.data.library_name, card.data.pipeline_tag, card.data.license) == (
        "diffusers",
        "video-to-video",
        "apache-2.0",
    )
    assert "controlnet" in card.data.tags
    usage = re.findall(r"```python\n(.*?)```", card.text, flags=re.DOTALL)[0]
    assert f'from_pretrained("{REPO}", trust_remote_code=True)' in usage
    assert sum(bool(line) for line in usage.splitlines()) < 6
    assert "trust_remote_code=True` means" in card.text and copy in card.text


@pytest.mark.usefixtures("remote_code")
def test_a_folder_loads_with_trust_alone(published, expected):
    with pytest.raises(ValueError, match="trust_remote_code=True"):
        DiffusionPipeline.from_pretrained(published)
    pipe = DiffusionPipeline.from_pretrained(published, trust_remote_code=True)
    assert type(pipe) is GroundAVideoPipeline
    assert edit(pipe) == expected


def test_the_package_loads_a_folder_without_running_its_code(published, expected, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(published, folder)
    (folder / "pipeline.py").write_text("raise SystemExit('the code of the repo ran')")
    assert edit(GroundAVideoPipeline.from_pretrained(folder)) == expected


def test_what_else_is_in_the_folder_is_kept(tmp_path, published, components):
    folder = tmp_path / "model"
    pipe = GroundAVideoPipeline(**components)
    save_model_repo(pipe, folder, license="apache-2.0")
    (folder / "README.md").write_text("# My own words\n")
    (folder / "samples").mkdir()
    (folder / "samples" / "rabbit.gif").write_bytes(b"GIF89a")
    (folder / "ground_a_video_00000000.py").write_text("# of an earlier release\n")
    save_model_repo(GroundAVideoPipeline(**components | {"controlnet": None}), folder, license="mit")
    assert set(contents(folder)) == {name for name in contents(published) if not name.startswith("controlnet/")} | {
        "samples/rabbit.gif"
    }
    assert (folder / "README.md").read_text() == "# My own words\n"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize(
    ("name", "content"), [("thesis.txt", "three years of work"), ("model_index.json", '{"_class_name": "Other"}')]
)
def test_a_folder_that_holds_something_else_is_left_alone(tmp_path, components, name, content):
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match="holds something else"):
        save_model_repo(GroundAVideoPipeline(**components), tmp_path, license="mit")
    assert contents(tmp_path) == {name: content.encode()}


def test_a_pipeline_with_a_part_missing_is_refused(tmp_path, components):
    with pytest.raises(ValueError, match="has no unet"):
        save_model_repo(GroundAVideoPipeline(**components | {"unet": None}), tmp_path / "model", license="mit")
    assert not list(tmp_path.iterdir())


# The disk.


def test_a_full_disk(small_disk, components, published):
    pipe = GroundAVideoPipeline(**components)
    (small_disk / "filler").write_bytes(bytes(12_000_000))
    with pytest.raises(OSError, match="could not be written, and is as it was: .*No space left"):
        save_model_repo(pipe, small_disk / "model", license="mit")
    assert [path.name for path in small_disk.iterdir()] == ["filler"]
    (small_disk / "filler").unlink()
    save_model_repo(pipe, small_disk / "model", license="mit")
    assert contents(small_disk / "model").keys() == contents(published).keys()
    assert [path.name for path in small_disk.iterdir()] == ["model"]


def test_a_quota_leaves_what_was_there(tmp_path, components, published):
    folder = tmp_path / "model"
    save_model_repo(GroundAVideoPipeline(**components), folder, license="mit")
    before = contents(folder)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, hard))
    try:
        with pytest.raises(OSError, match="could not be written, and is as it was: .*File too large"):
            save_model_repo(GroundAVideoPipeline(**components | {"controlnet": None}), folder, license="mit")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert contents(folder) == before
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


# The Hub.


def test_from_the_command_to_the_same_edit_in_fresh_processes(hub, small_checkpoint, tmp_path, expected):
    arguments = [small_checkpoint, tmp_path / "model", "--license", "apache-2.0", "--push", REPO]
    result = hub.python(PUBLISH, *arguments)
    assert result.returncode == 0, result.stderr
    revision = hub.repos["model", REPO].refs["main"]
    assert result.stdout.splitlines() == [
        f"Wrote {tmp_path / 'model'}.",
        f"Pushed it: {hub.endpoint}/{REPO}/commit/{revision}",
    ]
    # Somebody pushes something else later; whoever asks for the revision gets the revision.
    hub.add_repo(REPO, {"pipeline.py": "raise RuntimeError('a later revision')"})
    with_package = hub.python(LOAD, revision, "with the package")
    assert with_package.stdout.split() == ["diffusers_groundavideo.pipeline".rpartition("_")[0], expected], (
        with_package.stderr
    )
    without = hub.python(LOAD, revision, "without the package")
    assert without.stdout.split() == ["diffusers_modules.local.ground_a_video", expected], without.stderr


def test_pushed_in_one_commit_and_not_twice(hub, published):
    revision = push(hub, published, private=True, commit_message="The first one")
    repo = hub.repos["model", REPO]
    assert repo.private and repo.refs == {"main": revision} and repo.titles[revision] == "The first one"
    assert hub.files(REPO) == contents(published) | {".gitattributes": b""}
    assert push(hub, published) == revision


def test_a_branch_and_a_pull_request(hub, published):
    proposed = push(hub, published, create_pr=True)
    tried = push(hub, published, revision="try/1")
    repo = hub.repos["model", REPO]
    assert repo.refs["refs/pr/1"] == proposed and repo.refs["try/1"] == tried
    assert hub.files(REPO).keys() == {".gitattributes"}
    assert hub.files(REPO, "refs/pr/1") == hub.files(REPO, tried) == contents(published) | {".gitattributes": b""}


def test_a_repo_of_an_earlier_model_is_updated(hub, published):
    earlier = contents(published) | {"samples/rabbit.gif": b"GIF89a", ".gitattributes": b""}
    hub.add_repo(REPO, earlier | {"ground_a_video_00000000.py": b"", "controlnet_1/config.json": b"{}"})
    push(hub, published)
    assert hub.files(REPO) == earlier


def test_a_repo_that_holds_something_else_is_left_alone(hub, published):
    hub.add_repo(REPO, {"model.bin": b"months of training"})
    assert re.match("ValueError: .*tester/model holds something else.*create_pr", push(hub, published))
    assert hub.files(REPO) == {"model.bin": b"months of training"}
    push(hub, published, create_pr=True)
    assert hub.files(REPO) == {"model.bin": b"months of training"}
    assert hub.files(REPO, "refs/pr/1").keys() > contents(published).keys()


def test_a_folder_that_was_not_written_for_it_is_not_pushed(hub, small_checkpoint):
    assert re.match("ValueError: .*was not written by `save_model_repo`", push(hub, small_checkpoint))
    assert not hub.requests


def test_tokens(hub, published):
    nobody: dict[str, str | None] = {"HF_TOKEN": None}
    assert re.match("ValueError: .*hf auth login", push(hub, published, nobody))
    assert not hub.requests
    assert re.match("OSError: .*401 Unauthorized.*Invalid credentials", push(hub, published, token="hf_of_yesterday"))
    assert re.match("OSError: .*403 Forbidden.*may only read", push(hub, published, token=hub.READ_TOKEN))
    assert not hub.repos
    push(hub, published, nobody, token=hub.WRITE_TOKEN)
    assert hub.files(REPO).keys() > contents(published).keys()


@pytest.mark.parametrize(
    ("where", "misbehave", "tolerated", "message"),
    [
        # The client commits once, and asks again for all else.
        ("POST /api/models/.*/commit", {"status": 500}, 0, "500"),
        ("PUT /lfs/", {"status": 503}, 2, "Error while uploading '.*safetensors'.*503"),
        ("PUT /lfs/", {"after": 1000}, 2, "Error while uploading '.*safetensors'"),
        ("POST /api/models/.*/preupload", {"after": 10}, 2, ""),
    ],
    ids=["500 at the commit", "503 in an upload", "cut in an upload", "cut before the upload"],
)
def test_a_hub_that_misbehaves(hub, published, where, misbehave, tolerated, message):
    inject = hub.fail if "status" in misbehave else hub.cut
    inject(where, **misbehave, times=100)
    assert re.match(f"OSError: .*small-model was not pushed to {REPO}; .*{message}", push(hub, published))
    assert hub.files(REPO).keys() == {".gitattributes"}
    hub.heal()
    inject(where, **misbehave, times=tolerated)
    push(hub, published)
    assert hub.files(REPO) == contents(published) | {".gitattributes": b""}


def test_what_was_uploaded_before_a_failure_is_not_uploaded_again(hub, published):
    hub.fail("POST /api/models/.*/commit", status=404, error_code="RevisionNotFound")
    assert re.match("OSError: .*Revision Not Found", push(hub, published, revision="gone"))
    uploaded = sum(request.startswith("PUT /lfs/") for request in hub.requests)
    assert uploaded == sum(name.endswith(".safetensors") for name in contents(published))
    push(hub, published, revision="gone")
    assert hub.files(REPO, "gone").keys() > contents(published).keys()
    assert sum(request.startswith("PUT /lfs/") for request in hub.requests) == uploaded


def test_a_load_that_fails_goes_on(hub, published, expected):
    hub.add_repo(REPO, contents(published))
    # The client asks for the rest of what was cut off, up to five times, and never after an error of the server.
    hub.cut("GET .*/controlnet/.*safetensors", after=1000)
    hub.cut("GET .*/unet/.*safetensors", after=0, times=6)
    hub.fail("GET .*/vae/.*safetensors", status=500)
    result = hub.python(LOAD_THREE_TIMES)
    gone, failed, loaded = result.stdout.splitlines()
    assert gone == "OSError RevisionNotFoundError" and "Invalid rev id: gone" in result.stderr
    assert re.match("HfHubHTTPError|RemoteProtocolError", failed), result.stderr
    assert loaded == expected, result.stderr
    downloaded = list((hub.home / "hub").rglob("*.safetensors"))
    assert {path.read_bytes() for path in downloaded} == {
        path.read_bytes() for path in published.rglob("*.safetensors")
    }
