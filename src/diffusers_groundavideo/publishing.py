"""A model repo that carries its own pipeline, so that anybody who has diffusers can load it.

[`save_model_repo`] writes what `save_pretrained` writes, and beside it a model card, the pipeline as one file named by
its content, and a `pipeline.py` that diffusers runs: it takes the class from this package where that is installed, and
from the copy else. [`push_model_repo`] brings the folder to the Hub. Then this loads it anywhere:

    DiffusionPipeline.from_pretrained(repo, trust_remote_code=True)

Why two files: diffusers executes every local `pipeline.py` in one module of that name, so a second load would change
the classes of the first. What `pipeline.py` imports is an ordinary module: two loads give one class, two versions two.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi, ModelCardData, get_token

# httpx's or httpx2's, whichever the installed client is built on.
from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]
from safetensors import SafetensorError

from .bundling import bundle


if TYPE_CHECKING:
    from .pipeline import GroundAVideoPipeline


_CLASS_NAME = ["pipeline", "GroundAVideoPipeline"]

# What a repo of an earlier model may hold and one of a new model may not. The rest is the author's.
_WRITTEN_HERE = (
    "model_index.json",
    "pipeline.py",
    "ground_a_video_*.py",
    *(f"{name}/*" for name in ("vae", "text_encoder", "tokenizer", "unet", "scheduler", "controlnet*")),
)

# `import_module`, since diffusers would tell those without the package to install it.
_PIPELINE = '''\
"""GroundAVideoPipeline of the package diffusers-groundavideo where that is installed, else of the copy beside this."""

from importlib import import_module
from importlib.util import find_spec


if find_spec("diffusers_groundavideo") is None:
    from .{copy} import GroundAVideoPipeline
else:
    GroundAVideoPipeline = import_module("diffusers_groundavideo").GroundAVideoPipeline
'''

_CARD = """\
---
{front_matter}
---

# {title}

Edits several objects of a video clip at once, each in its place, without training
([Ground-A-Video](https://arxiv.org/abs/2310.01107)).

```python
import inspect
from diffusers import DiffusionPipeline

pipe = DiffusionPipeline.from_pretrained("{repo_id}", trust_remote_code=True)
grounding = inspect.getmodule(pipe).VideoGrounding.from_json("edit.json")
result = pipe(video=frames, source_prompt="a rabbit on grass", prompt="a squirrel on grass", grounding=grounding)
```

`edit.json` says what is where, in boxes `[x0, y0, x1, y1]` normalised to [0, 1], and what becomes of it:

```json
{{"objects": [{{"source_phrase": "rabbit", "target_phrase": "squirrel", "box": [0.1, 0.2, 0.6, 0.9]}}]}}
```

## What `trust_remote_code=True` means here

It runs `pipeline.py` of this repo on your machine, with all your rights. That file takes the pipeline from the package
diffusers-groundavideo if you have it, and from `{copy}.py` beside it if not. Read both, and pass
`revision="<commit hash>"` so that what you run stays what you read.
"""


def save_model_repo(
    pipe: "GroundAVideoPipeline", folder: str | Path, *, license: str, repo_id: str | None = None
) -> Path:
    """Writes a pipeline with its code and a model card to a folder, all of it or nothing.

    Args:
        pipe ([`GroundAVideoPipeline`]): With all of its components; the ControlNet may be missing.
        folder (`str` or `Path`): New, empty, or from an earlier call. What else lies in it is kept, a README.md too.
        license (`str`): Of the weights, as the Hub names it (such as "creativeml-openrail-m").
        repo_id (`str`, *optional*): Where it shall be pushed to; the card shows how to load it from there.

    Returns:
        `Path`: The folder.

    Raises:
        `ValueError`: If the folder holds something else, or a component is missing.
        `OSError`: If it cannot be written, as on a full disk. Then the folder is as it was.
    """
    folder = Path(folder).absolute()
    missing = [name for name, value in pipe.components.items() if value is None and name != "controlnet"]
    if missing:
        raise ValueError(f"`pipe` has to have all of its components to be published, but has no {', '.join(missing)}.")
    if folder.exists() and any(folder.iterdir()) and not _is_model_repo(folder):
        raise ValueError(f"`folder`: {folder} holds something else already. Choose a new one.")
    source = bundle()
    copy = f"ground_a_video_{hashlib.sha256(source.encode()).hexdigest()[:8]}"
    try:
        with _replacing(folder) as new:
            pipe.save_pretrained(new)
            for config in (new / "model_index.json", *new.glob("*/config.json")):
                _finish_config(config)
            (new / f"{copy}.py").write_text(source, encoding="utf-8")
            (new / "pipeline.py").write_text(_PIPELINE.format(copy=copy), encoding="utf-8")
            tags = ["ground-a-video", "gligen", "video-editing"] + ["controlnet"] * (pipe.controlnet is not None)
            card = ModelCardData(library_name="diffusers", pipeline_tag="video-to-video", license=license, tags=tags)
            loaded_as = repo_id or folder.name
            (new / "README.md").write_text(
                _CARD.format(
                    front_matter=card.to_yaml(), title=loaded_as.split("/")[-1], repo_id=loaded_as, copy=copy
                ),
                encoding="utf-8",
            )
            _keep_what_is_the_authors(folder, new)
    except (OSError, SafetensorError) as error:
        raise OSError(f"{folder} could not be written, and is as it was: {error}") from error
    return folder


def push_model_repo(
    folder: str | Path,
    repo_id: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    commit_message: str = "Upload GroundAVideoPipeline",
    token: str | None = None,
) -> CommitInfo:
    """Brings a folder that [`save_model_repo`] wrote to the Hub, in one commit.

    Args:
        folder (`str` or `Path`): The folder. Hidden files stay where they are.
        repo_id (`str`): A new repo, an empty one, or one that was pushed to before, which is then updated.
        private (`bool`, *optional*): Whether a new repo is private. `None`: as the account has it.
        revision (`str`, *optional*): The branch, made if it is not there; main by default.
        create_pr (`bool`): Whether to propose the commit, to any model repo, instead of making it.
        commit_message (`str`): The title of the commit.
        token (`str`, *optional*): One that may write; by default that of `hf auth login` or `HF_TOKEN`.

    Returns:
        `CommitInfo`: The commit, whose `oid` is the revision to load, or the pull request.

    Raises:
        `ValueError`: If the folder is not such a folder, the repo holds something else, or there is no token.
        `OSError`: If the Hub refuses or cannot be reached. Nothing is committed then; a further call goes on.
    """
    folder = Path(folder).absolute()
    if not _is_model_repo(folder):
        raise ValueError(f"`folder`: {folder} was not written by `save_model_repo`.")
    if token is None and get_token() is None:
        raise ValueError("`token` is None, and nobody is logged in: call `hf auth login`, or set HF_TOKEN.")
    api = HfApi(token=token)
    try:
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        if revision is not None:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        present = api.list_repo_files(repo_id, revision=revision)
        if not create_pr and set(present) - {".gitattributes", "README.md"}:
            index = "model_index.json"
            if index not in present or not _is_index(api.hf_hub_download(repo_id, index, revision=revision)):
                raise ValueError(
                    f"`repo_id`: {repo_id} holds something else already. Choose a new one, or propose to replace it "
                    "with `create_pr`."
                )
        files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
        stale = [path for path in present if _is_written_here(path) and path not in files]
        return api.create_commit(
            repo_id,
            operations=[
                *(CommitOperationDelete(path) for path in stale),
                *(
                    CommitOperationAdd(path, file)
                    for path, file in sorted(files.items())
                    if not any(part.startswith(".") for part in path.split("/"))
                ),
            ],
            commit_message=commit_message,
            revision=revision,
            create_pr=create_pr,
        )
    except (HTTPError, RuntimeError) as error:
        # In an upload, the client wraps what went wrong in a RuntimeError that only names the file.
        reason = f"{error} {error.__cause__}" if isinstance(error, RuntimeError) else str(error)
        raise OSError(
            f"{folder} was not pushed to {repo_id}; pushing it again goes on. {' '.join(reason.split())}"
        ) from error


def _is_model_repo(folder: Path) -> bool:
    return (folder / "model_index.json").is_file() and _is_index(folder / "model_index.json")


def _is_index(path: str | Path) -> bool:
    try:
        index = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError:
        return False
    return isinstance(index, dict) and index.get("_class_name") == _CLASS_NAME


def _is_written_here(path: str) -> bool:
    return any(fnmatch(path, pattern) for pattern in _WRITTEN_HERE)


@contextmanager
def _replacing(folder: Path) -> Iterator[Path]:
    """A folder beside `folder` that takes its place when all went well, and is gone when not."""
    new, old = (folder.with_name(f"{folder.name}.{os.getpid()}.{suffix}") for suffix in ("new", "old"))
    new.mkdir(parents=True)
    try:
        yield new
        if folder.exists():
            folder.rename(old)
        new.rename(folder)
    finally:
        shutil.rmtree(new, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)


def _finish_config(path: Path) -> None:
    config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    # Where the author loaded it from: a folder of theirs, as a rule.
    config.pop("_name_or_path", None)
    if path.name == "model_index.json":
        config["_class_name"] = _CLASS_NAME
    path.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _keep_what_is_the_authors(folder: Path, new: Path) -> None:
    for path in folder.rglob("*"):
        name = path.relative_to(folder)
        if path.is_file() and not _is_written_here(name.as_posix()):
            (new / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, new / name)
