"""A whole edit as a small file, without the pixels: kept, shared and reproduced.

A preset comes from somebody else: it is data and never code, says nothing about files, and is bounded in everything
that costs memory or time. Boxes are normalised xyxy in [0, 1], as in [`VideoGrounding`].
"""

import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import torch
from diffusers import ControlNetModel, MultiControlNetModel
from diffusers.utils import logging
from huggingface_hub import CommitInfo, HfApi, hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from pydantic import Field, StringConstraints, model_validator

from ..attention import Inflation
from ..grounding import VideoGrounding
from .card import write_card
from .fields import (
    MAX_CONTROLNETS,
    MAX_MASK_PIXELS,
    MAX_SIDE,
    ExpectedClip,
    Form,
    GroundingForm,
    HubModel,
    InflationForm,
    Name,
    Prompt,
    Scales,
    Several,
    Share,
    Shares,
    Side,
    check_pixels,
    check_repo_id,
    check_revision,
    shortened,
    validated,
)
from .files import MAX_FILE_BYTES, read_plain_data


if TYPE_CHECKING:
    from ..pipeline import GroundAVideoPipeline


logger = logging.get_logger(__name__)

SCHEMA_VERSION = 1
# Version -> what makes a preset of the next version of one of that version.
MIGRATIONS: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {}

PRESET_FILE = "preset.json"
CARD_FILE = "README.md"
PREVIEW_FILE = "preview.gif"

MAX_PREVIEW_BYTES = 32 * 2**20

_NUMBER_LIST = re.compile(r"\[\n[-+.\deE,\s]+\]")

# Everything else goes to the pipeline under the name it has here.
_NOT_FOR_THE_PIPELINE = {
    *("schema_version", "title", "author", "license", "tags", "model", "controlnets", "clip"),
    *("grounding", "inflation", "seed"),
}


class EditPreset(Form):
    """A whole edit without the pixels.

    Made by [`~EditPreset.from_call`], [`~EditPreset.from_file`] or [`~EditPreset.from_pretrained`], whose only error
    for bad content is a `ValueError` that names the field, what came and what was expected. Fields not listed here are
    arguments of [`GroundAVideoPipeline`] under their own names, with the same defaults.

    Args:
        schema_version (`int`): Of the form of the file.
        title, author (`str`, *optional*): For people.
        license (`str`, *optional*): Of the preset, as an SPDX id.
        tags (`tuple[str]`): Lower case, digits and hyphens.
        model ([`HubModel`], *optional*): The GLIGEN checkpoint. `None`: one that is not on the Hub.
        controlnets (`tuple[HubModel]`): In the order of the conditioning frames. Empty: those of the checkpoint, or
            ones that are not on the Hub.
        clip ([`ExpectedClip`]): What the edit was made with.
        grounding ([`GroundingForm`]): See [`VideoGrounding.from_dict`].
        seed (`int`): Of the generator, at least 0 and below 2**63.

    Example:
    ```py
    >>> from diffusers_groundavideo import EditPreset

    >>> preset = EditPreset.from_pretrained("someone/rabbit-to-squirrel")
    >>> pipe = preset.load_pipeline(dtype=torch.float16).to("cuda")
    >>> frames = pipe(**preset.call_arguments(video)).frames[0]
    ```
    """

    schema_version: int = SCHEMA_VERSION
    title: Name | None = None
    author: Name | None = None
    license: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9.+-]{0,63}$")] | None = None
    tags: Annotated[
        Several[Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9-]{0,49}$")]], Field(max_length=16)
    ] = ()
    model: HubModel | None = None
    controlnets: Annotated[Several[HubModel], Field(max_length=MAX_CONTROLNETS)] = ()
    clip: ExpectedClip
    source_prompt: Prompt | None = None
    prompt: Prompt
    negative_prompt: Prompt | None = None
    grounding: GroundingForm
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    height: Side | None = None
    width: Side | None = None
    num_inference_steps: Annotated[int, Field(ge=1, le=1000)] = 50
    guidance_scale: Annotated[float, Field(ge=0, le=100)] = 12.5
    eta: Share = 0.0
    inversion_method: Literal["negative-prompt", "null-text", "ddim"] = "negative-prompt"
    num_null_text_steps: Annotated[int, Field(ge=1, le=1000)] = 10
    flow_threshold: Annotated[float, Field(ge=0, le=MAX_SIDE)] | None = None
    relative_flow_threshold: bool = False
    open_all_boxes: bool = False
    paste_back: bool = True
    restore_size: bool | None = None
    controlnet_conditioning_scale: Scales = 1.0
    control_guidance_start: Shares = 0.0
    control_guidance_end: Shares = 1.0
    gligen_scheduled_sampling_beta: Share = 1.0
    inflation: InflationForm | None = None
    clip_skip: Annotated[int, Field(ge=0, le=12)] | None = None

    @model_validator(mode="after")
    def _check_together(self) -> "EditPreset":
        """What the pipeline would refuse only after gigabytes of weights were loaded."""
        if self.schema_version != SCHEMA_VERSION:
            raise ValueError(f"`schema_version` has to be {SCHEMA_VERSION}, but is {self.schema_version}.")
        check_pixels(self.clip.num_frames, self.height or self.clip.height, self.width or self.clip.width)
        if self.inversion_method != "ddim" and self.source_prompt is None:
            raise ValueError(f"`source_prompt` is needed to invert with {self.inversion_method!r}, but is None.")
        if self.inversion_method != "ddim" and self.negative_prompt is not None:
            raise ValueError(f"`negative_prompt` has no place with {self.inversion_method!r} inversion, only 'ddim'.")
        if self.inversion_method == "null-text" and self.guidance_scale <= 1:
            raise ValueError(
                f"`guidance_scale` has to be above 1 with 'null-text' inversion, but is {self.guidance_scale}."
            )
        if self.relative_flow_threshold and self.flow_threshold is not None and self.flow_threshold > 1:
            raise ValueError(f"a relative `flow_threshold` has to be at most 1, but is {self.flow_threshold}.")
        self._check_controlnet_settings()
        self._check_grounding()
        return self

    def _check_controlnet_settings(self) -> None:
        nets = len(self.controlnets) or len(self.clip.conditioning_sha256)
        if self.controlnets and len(self.clip.conditioning_sha256) not in (0, nets):
            raise ValueError(
                f"`clip.conditioning_sha256` has to hold one hash for each of {nets} ControlNets, but holds "
                f"{len(self.clip.conditioning_sha256)}."
            )
        settings = {
            "controlnet_conditioning_scale": self.controlnet_conditioning_scale,
            "control_guidance_start": self.control_guidance_start,
            "control_guidance_end": self.control_guidance_end,
        }
        for name, value in settings.items():
            if nets and isinstance(value, tuple) and len(value) != nets:
                raise ValueError(f"`{name}` has to hold one number a ControlNet ({nets}), but holds {len(value)}.")
        starts, ends = np.atleast_1d(self.control_guidance_start), np.atleast_1d(self.control_guidance_end)
        if len(starts) != len(ends) and 1 not in (len(starts), len(ends)):
            raise ValueError("`control_guidance_start` and `control_guidance_end` have to be of one length.")
        if (starts >= ends).any():
            raise ValueError(
                f"`control_guidance_start` ({self.control_guidance_start}) has to be below `control_guidance_end` "
                f"({self.control_guidance_end})."
            )

    def _check_grounding(self) -> None:
        mask_pixels = 0
        for grounded in self.grounding.objects:
            sizes = [mask.size for mask in grounded.masks or () if mask is not None]
            mask_pixels += len(grounded.masks or ()) * max((height * width for height, width in sizes), default=0)
        if mask_pixels > MAX_MASK_PIXELS:
            raise ValueError(f"`grounding`: all masks have {mask_pixels} pixels, at most {MAX_MASK_PIXELS} are taken.")
        try:
            self.video_grounding().frame_boxes(self.clip.num_frames)
        except ValueError as error:
            message = str(error).removeprefix("`grounding`: ")
            raise ValueError(f"`grounding`: {message}") from error

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "EditPreset":
        """Reads what a preset file holds. An older schema version is migrated, with a warning.

        Raises:
            `ValueError`: For every field that is unknown, missing, of another type or out of range, and for the schema
                version of a newer release.
        """
        if not isinstance(data, Mapping):
            raise ValueError(f"A preset has to be a mapping of fields, but is {shortened(data)}.")
        return validated(cls, _migrated(dict(data)))

    @classmethod
    def from_file(cls, path: str | Path) -> "EditPreset":
        """Reads a file that ends in .json, .yaml or .yml.

        YAML is read as plain data: no anchors, aliases or tags, and what is not a number, `true`, `false` or `null` is
        a string.

        Raises:
            `ValueError`: If there is no such file, it is larger than 4 MiB (YAML: 256 KiB), is not JSON or YAML, holds
                a key twice, or for what [`~EditPreset.from_dict`] refuses.
        """
        try:
            return cls.from_dict(read_plain_data(path))
        except ValueError as error:
            raise ValueError(f"{shortened(str(path))} is no preset: {error}") from error

    @classmethod
    def from_pretrained(
        cls, name: str | Path, revision: str | None = None, token: str | bool | None = None
    ) -> "EditPreset":
        """Reads a preset from a folder, a file or the Hub.

        Args:
            name (`str` or `Path`): A folder that [`~EditPreset.save_pretrained`] wrote, a file, or the Hub id
                `namespace/name` of a repo, of which nothing but `preset.json` is downloaded.
            revision (`str`, *optional*): Commit, branch or tag of the Hub repo.
            token (`str` or `bool`, *optional*): For the Hub; by default that of the login.

        Raises:
            `ValueError`: If there is no such preset, if the file in the folder is a link that leads out of it, or for
                what [`~EditPreset.from_file`] refuses.
            `OSError`: If the Hub could not be reached, and has not been before.
        """
        if os.path.isdir(name):
            file = os.path.realpath(os.path.join(name, PRESET_FILE))
            if os.path.dirname(file) != os.path.realpath(name):
                raise ValueError(
                    f"{PRESET_FILE} in {shortened(str(name))} is a link that leads out of the folder: pass the file."
                )
            return cls.from_file(file)
        if os.path.isfile(name):
            return cls.from_file(name)
        return cls.from_file(_download(str(name), revision, token))

    @classmethod
    def from_call(
        cls,
        video: Any,
        grounding: VideoGrounding,
        fps: float,
        conditioning_frames: Any = None,
        flow: Any = None,
        backward_flow: Any = None,
        **fields: Any,
    ) -> "EditPreset":
        """The preset of a call of the pipeline for one clip.

        Args:
            video, grounding, conditioning_frames, flow, backward_flow: As given to the pipeline.
            fps (`float`): The rate of the clip.
            fields: Other fields of the preset, `inflation` as an [`Inflation`].

        Raises:
            `ValueError`: If a field is bad or exceeds what a preset may hold.
        """
        if isinstance(fields.get("inflation"), Inflation):
            fields["inflation"] = asdict(fields["inflation"])
        clip = ExpectedClip.of(video, fps, conditioning_frames, flow, backward_flow)
        return validated(cls, {"clip": clip, "grounding": grounding.to_dict(), **fields})

    def video_grounding(self) -> VideoGrounding:
        """The objects of the edit."""
        return VideoGrounding.from_dict(self.grounding.model_dump(mode="json"))

    def call_arguments(
        self,
        video: Any,
        conditioning_frames: Any = None,
        flow: Any = None,
        backward_flow: Any = None,
        check_clip: bool = True,
    ) -> dict[str, Any]:
        """What to call a [`GroundAVideoPipeline`] with: `pipe(**preset.call_arguments(video))`.

        A warning says so if conditioning frames or flow differ from those of the preset: computed again, they often do
        in the last digit.

        Args:
            video: One clip in any form that the pipeline takes.
            conditioning_frames, flow, backward_flow (*optional*): As the pipeline takes them.
            check_clip (`bool`): Whether to insist on the clip of the preset, with what it was made with. `False` uses
                the edit on another clip of the same length and size.

        Returns:
            `dict` of arguments, with a new generator on the CPU.

        Raises:
            `ValueError`: If the clip has another number of frames or another size, and with `check_clip` if it is
                another clip or if conditioning frames or flow are missing or were not used for the preset.
        """
        given = ExpectedClip.of(video, self.clip.fps, conditioning_frames, flow, backward_flow)
        self._check_clip(given, check_clip)
        return {
            "video": video,
            "grounding": self.video_grounding(),
            "conditioning_frames": conditioning_frames,
            "flow": flow,
            "backward_flow": backward_flow,
            "inflation": None if self.inflation is None else Inflation(**self.inflation.model_dump()),
            "generator": torch.Generator().manual_seed(self.seed),
            **self.model_dump(mode="json", exclude=_NOT_FOR_THE_PIPELINE),
        }

    def _check_clip(self, given: ExpectedClip, same: bool) -> None:
        if given.size != self.clip.size:
            raise ValueError(f"`video` has to be {self.clip.size} as in the preset, but is {given.size}.")
        if not same:
            return
        if given.sha256 != self.clip.sha256:
            raise ValueError(
                f"`video` is not the clip of the preset: the SHA-256 of its frames is {given.sha256}, not "
                f"{self.clip.sha256}. Pass `check_clip=False` to use the edit on another clip."
            )
        for arguments, now, then in (
            ("`conditioning_frames`", given.conditioning_sha256, self.clip.conditioning_sha256),
            ("`flow` and `backward_flow`", given.flow_sha256, self.clip.flow_sha256),
        ):
            if len(now) != len(then):
                raise ValueError(
                    f"{arguments}: {len(then)} belong to the preset, but {len(now)} were given. Pass "
                    "`check_clip=False` to do without."
                )
            if now != then:
                logger.warning(f"{arguments} are not those of the preset: the result will differ somewhat too.")

    def load_pipeline(
        self, model: str | Path | None = None, controlnets: list[str] | None = None, **arguments: Any
    ) -> "GroundAVideoPipeline":
        """Loads the checkpoint and ControlNets of the preset, at their revisions.

        Args:
            model (`str` or `Path`, *optional*): A folder or Hub id in place of the preset's.
            controlnets (`list[str]`, *optional*): Folders or Hub ids in place of the preset's.
            arguments: Of `from_pretrained`, such as `dtype`. Code of the repo is not trusted unless they say so.

        Raises:
            `ValueError`: If neither the preset nor `model` names a checkpoint.
            `OSError`: If one could not be loaded.
        """
        from ..pipeline import GroundAVideoPipeline

        if model is not None:
            source: dict[str, Any] = {"pretrained_model_name_or_path": model}
        elif self.model is not None:
            source = self.model.source()
        else:
            raise ValueError("The preset was made with a model that is not on the Hub: pass `model`.")
        if controlnets is not None:
            net_sources: list[dict[str, Any]] = [{"pretrained_model_name_or_path": one} for one in controlnets]
        else:
            net_sources = [one.source() for one in self.controlnets]
        if net_sources:
            dtype = {"dtype": arguments["dtype"]} if "dtype" in arguments else {}
            nets = [ControlNetModel.from_pretrained(**one, **dtype) for one in net_sources]
            arguments["controlnet"] = MultiControlNetModel(nets) if len(nets) > 1 else nets[0]
        return GroundAVideoPipeline.from_pretrained(**source, **arguments)

    def to_json(self) -> str:
        """The text of the file `preset.json`.

        Raises:
            `ValueError`: If it would be larger than what [`~EditPreset.from_file`] reads.
        """
        text = json.dumps(self.model_dump(mode="json"), indent=1, ensure_ascii=False) + "\n"
        # A line a box, not one a number. No string is touched: in JSON none holds a line break.
        text = _NUMBER_LIST.sub(lambda numbers: json.dumps(json.loads(numbers[0])), text)
        if len(text.encode()) > MAX_FILE_BYTES:
            raise ValueError(f"The preset is larger than {MAX_FILE_BYTES} bytes: give masks at a smaller size.")
        return text

    def save_pretrained(self, folder: str | Path, preview: str | Path | None = None) -> None:
        """Writes `preset.json`, a card and the preview: all of it or nothing.

        Args:
            folder (`str` or `Path`): Made if it is not there.
            preview (`str` or `Path`, *optional*): A gif of the clip before and after the edit.

        Raises:
            `ValueError`: If `preview` is not a gif of at most 32 MiB, or `folder` is a file or has a README.md of
                something else.
            `OSError`: If the disk is full or does not let itself be written to.
        """
        self._save(Path(folder), preview, self.card(preview=preview is not None))

    def _save(self, folder: Path, preview: str | Path | None, card: str) -> None:
        texts = {PRESET_FILE: self.to_json(), CARD_FILE: card}
        if preview is not None:
            _check_preview(Path(preview))
        if folder.exists() and not folder.is_dir():
            raise ValueError(f"`folder` has to be a folder, but {str(folder)!r} is a file.")
        if (folder / CARD_FILE).exists() and not (folder / PRESET_FILE).exists():
            raise ValueError(f"`folder`: {str(folder)!r} has a {CARD_FILE} that is not a preset's; choose another.")
        made = not folder.exists()
        folder.mkdir(parents=True, exist_ok=True)
        try:
            # In the same folder, so that the last step is a rename within one file system.
            with tempfile.TemporaryDirectory(prefix=".groundavideo-", dir=folder) as unfinished:
                for name, text in texts.items():
                    Path(unfinished, name).write_text(text, encoding="utf-8", newline="\n")
                if preview is not None:
                    shutil.copyfile(preview, Path(unfinished, PREVIEW_FILE))
                for file in Path(unfinished).iterdir():
                    file.replace(folder / file.name)
        except BaseException:
            if made:
                shutil.rmtree(folder)
            raise

    def push_to_hub(
        self,
        repo_id: str,
        preview: str | Path | None = None,
        private: bool | None = None,
        revision: str | None = None,
        create_pr: bool = False,
        commit_message: str = "Upload edit preset",
        token: str | bool | None = None,
    ) -> CommitInfo:
        """Uploads what [`~EditPreset.save_pretrained`] writes, in one commit; the repo is made if it is not there.

        Args:
            repo_id (`str`): `namespace/name`.
            preview (`str` or `Path`, *optional*): A gif of the clip before and after the edit.
            private (`bool`, *optional*): Of a new repo; by default as the account is set up.
            revision (`str`, *optional*): A branch, made if it is not there. `None`: the main branch.
            create_pr (`bool`): Whether to open a pull request instead.
            commit_message (`str`): Its first line.
            token (`str` or `bool`, *optional*): By default that of the login.

        Returns:
            [`~huggingface_hub.CommitInfo`], with `oid`, the revision to reproduce from, and `pr_url`.

        Raises:
            `ValueError`: If an argument is bad, or the repo has a README.md of something else.
            `OSError`: If the Hub refused or could not be reached ([`~huggingface_hub.errors.HfHubHTTPError`]). What
                was uploaded counts only with the commit at the end, so another try completes it.
        """
        check_repo_id(repo_id)
        if revision is not None:
            check_revision(revision)
        api = HfApi(token=token)
        with tempfile.TemporaryDirectory() as folder:
            self._save(Path(folder), preview, self.card(repo_id, revision, preview is not None))
            api.create_repo(repo_id, private=private, exist_ok=True)
            if revision is not None and not create_pr:
                api.create_branch(repo_id, branch=revision, exist_ok=True)
            has_card, has_preset = (
                api.file_exists(repo_id, file, revision=revision) for file in (CARD_FILE, PRESET_FILE)
            )
            if has_card and not has_preset:
                raise ValueError(f"`repo_id`: {repo_id} has a {CARD_FILE} that is not a preset's; choose another.")
            return api.upload_folder(
                repo_id=repo_id,
                folder_path=folder,
                revision=revision,
                create_pr=create_pr,
                commit_message=commit_message,
            )

    def card(self, repo_id: str | None = None, revision: str | None = None, preview: bool = False) -> str:
        """The card of the preset: Markdown with the Hub's front matter, and how to reproduce the edit.

        Args:
            repo_id, revision (`str`, *optional*): Where on the Hub the preset lies; by default in a folder.
            preview (`bool`): Whether `preview.gif` lies beside it.
        """
        return write_card(self, repo_id, revision, PREVIEW_FILE if preview else None)


def _migrated(data: dict[str, Any]) -> dict[str, Any]:
    version = data.get("schema_version")
    if not isinstance(version, int) or isinstance(version, bool):
        raise ValueError(f"`schema_version` has to be a whole number, but is {shortened(version)}.")
    if version > SCHEMA_VERSION:
        raise ValueError(
            f"`schema_version` is {shortened(version)}, but at most {SCHEMA_VERSION} is known here: upgrade."
        )
    while version < SCHEMA_VERSION:
        if version not in MIGRATIONS:
            raise ValueError(f"`schema_version` has to be {SCHEMA_VERSION}, but is {shortened(version)}.")
        data = MIGRATIONS[version](data)
        logger.warning(f"The preset of schema version {version} was read as one of version {version + 1}.")
        version += 1
        data["schema_version"] = version
    return data


def _download(repo_id: str, revision: str | None, token: str | bool | None) -> Path:
    """`preset.json` of a Hub repo, in the cache."""
    try:
        check_repo_id(repo_id)
    except ValueError as error:
        raise ValueError(f"{shortened(repo_id)} is no folder, no file and no Hub id namespace/name.") from error
    if revision is not None:
        check_revision(revision)
    try:
        info = hf_hub_download(repo_id, PRESET_FILE, revision=revision, token=token, dry_run=True)
        if (info.file_size or 0) > MAX_FILE_BYTES:
            raise ValueError(f"{PRESET_FILE} of {repo_id} is larger than {MAX_FILE_BYTES} bytes.")
        return Path(hf_hub_download(repo_id, PRESET_FILE, revision=revision, token=token))
    except LocalEntryNotFoundError:
        # Of the kind below, but says that the Hub was out of reach.
        raise
    except RepositoryNotFoundError as error:
        raise ValueError(f"There is no repo {repo_id} on the Hub, or not for you.") from error
    except RevisionNotFoundError as error:
        raise ValueError(f"The repo {repo_id} has no revision {revision!r}.") from error
    except EntryNotFoundError as error:
        raise ValueError(f"The repo {repo_id} has no {PRESET_FILE} at {revision or 'main'!r}.") from error


def _check_preview(path: Path) -> None:
    if not path.is_file() or path.stat().st_size > MAX_PREVIEW_BYTES:
        raise ValueError(f"`preview` has to be a gif of at most {MAX_PREVIEW_BYTES} bytes, but is {str(path)!r}.")
    with path.open("rb") as file:
        if file.read(6) not in (b"GIF87a", b"GIF89a"):
            raise ValueError(f"`preview` has to be a gif, but {str(path)!r} is none.")
