"""The parts of an [`EditPreset`], each checked and bounded by itself."""

import hashlib
import os
import re
import reprlib
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar

import numpy as np
import PIL.Image
import torch
from diffusers.video_processor import VideoProcessor
from huggingface_hub import try_to_load_from_cache
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    StringConstraints,
    Tag,
    ValidationError,
    model_serializer,
    model_validator,
)

from ..attention import FrameAttention, GatedAttention
from ..grounding import MAX_OBJECTS
from ..inputs import clips_to_tensor, flow_to_tensors
from ..inversion import tensor_hash


MAX_FRAMES = 1024
MAX_SIDE = 8192
# Of all frames together, at their own size or at that of the edit.
MAX_CLIP_PIXELS = 2**30
# Of the masks of all objects in all frames, a byte each once they are decoded.
MAX_MASK_PIXELS = 2**27
MAX_CONTROLNETS = 8

# What cannot be seen, or changes the order of what can: controls, direction marks, lone surrogates, private use.
_INVISIBLE_CATEGORIES = ("Cc", "Cf", "Cs", "Co", "Zl", "Zp")
# Emoji and several scripts are written with these: zero width non-joiner and joiner.
_JOINERS = "\u200c\u200d"

_REPO_NAME = r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,94}[A-Za-z0-9_])?"
_REPO_ID = re.compile(rf"{_REPO_NAME}/{_REPO_NAME}")
_REVISION = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*(/[A-Za-z0-9_][A-Za-z0-9_.-]*)*")
_MAX_REVISION_LENGTH = 200

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 80
_SHORT.maxlevel = 2
_MAX_PROBLEMS_SHOWN = 3
_MAX_MESSAGE_LENGTH = 1000

T = TypeVar("T")
FormType = TypeVar("FormType", bound=BaseModel)


def shortened(value: Any) -> str:
    """A bounded, printable form of what somebody else wrote."""
    return _SHORT.repr(value)


def check_repo_id(repo_id: str) -> str:
    """Returns a Hub id `namespace/name` as it is.

    Raises:
        `ValueError`: If it is anything else, a path for instance, or not written in ASCII.
    """
    if not _REPO_ID.fullmatch(repo_id) or ".." in repo_id or "--" in repo_id or repo_id.endswith(".git"):
        # In ASCII, since letters of other scripts can look the same.
        raise ValueError(f"{ascii(repo_id[:120])} is no Hub id namespace/name")
    return repo_id


def check_revision(revision: str) -> str:
    """Returns a commit, branch or tag of a Hub repo as it is.

    Raises:
        `ValueError`: If it cannot be one, or could be taken for a path.
    """
    if len(revision) > _MAX_REVISION_LENGTH or not _REVISION.fullmatch(revision) or ".." in revision:
        raise ValueError(f"{ascii(revision[:120])} is no commit, branch or tag")
    return revision


def check_pixels(num_frames: int, height: int, width: int) -> None:
    """Raises a `ValueError` for a clip that nobody could edit."""
    if num_frames * height * width > MAX_CLIP_PIXELS:
        raise ValueError(f"{num_frames} frames of {width}x{height} have more than {MAX_CLIP_PIXELS} pixels")


def _check_line(text: str) -> str:
    """Refuses what a reader would not see."""
    for character in text:
        if unicodedata.category(character) in _INVISIBLE_CATEGORIES and character not in _JOINERS:
            raise ValueError(f"holds the character U+{ord(character):04X}, which cannot be seen")
    return text


def _check_lines(text: str) -> str:
    _check_line(text.replace("\n", "").replace("\t", ""))
    return text


# A list in JSON, kept as a tuple; what it holds stays strict.
Several = Annotated[tuple[T, ...], Field(strict=False)]
RepoId = Annotated[str, AfterValidator(check_repo_id)]
Revision = Annotated[str, AfterValidator(check_revision)]
Prompt = Annotated[str, StringConstraints(max_length=2000), AfterValidator(_check_lines)]
Phrase = Annotated[str, StringConstraints(max_length=200), AfterValidator(_check_line)]
Name = Annotated[str, StringConstraints(min_length=1, max_length=120), AfterValidator(_check_line)]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
NumFrames = Annotated[int, Field(ge=1, le=MAX_FRAMES)]
Side = Annotated[int, Field(ge=1, le=MAX_SIDE)]
Share = Annotated[float, Field(ge=0, le=1)]
Scale = Annotated[float, Field(ge=-100, le=100)]
_ONE_OR_SEVERAL = Discriminator(lambda value: "several" if isinstance(value, (list, tuple)) else "one")
Shares = Annotated[Annotated[Share, Tag("one")] | Annotated[Several[Share], Tag("several")], _ONE_OR_SEVERAL]
Scales = Annotated[Annotated[Scale, Tag("one")] | Annotated[Several[Scale], Tag("several")], _ONE_OR_SEVERAL]
BoxForm = Annotated[tuple[float, float, float, float], Field(strict=False)]


def validated(form: type[FormType], data: Any) -> FormType:
    """`form.model_validate(data)`, with a short message where that fails.

    Raises:
        `ValueError`: Says which fields are wrong, what came and what was expected.
    """
    try:
        return form.model_validate(data)
    except ValidationError as error:
        raise ValueError(_readable(error)) from error


def _readable(error: ValidationError) -> str:
    problems = error.errors(include_url=False, include_context=False)
    messages = []
    for problem in problems[:_MAX_PROBLEMS_SHOWN]:
        names = [str(part) for part in problem["loc"]]
        field = ".".join(name if name.isalnum() or name.isidentifier() else shortened(name) for name in names)
        message = problem["msg"].removeprefix("Value error, ").replace("tuple", "list").replace("Tuple", "List")
        if problem["type"] == "missing":
            messages.append(f"`{field}` is missing")
        elif problem["type"] == "extra_forbidden":
            messages.append(f"`{field}` is unknown")
        elif field and problem["type"] == "value_error":
            messages.append(f"`{field}` {message}")
        elif field:
            messages.append(f"`{field}`: {message}, but is {shortened(problem['input'])}")
        else:
            messages.append(message)
    if len(problems) > _MAX_PROBLEMS_SHOWN:
        messages.append(f"and {len(problems) - _MAX_PROBLEMS_SHOWN} more")
    text = "; ".join(messages)
    return text if len(text) <= _MAX_MESSAGE_LENGTH else text[: _MAX_MESSAGE_LENGTH - 3] + "..."


class Form(BaseModel):
    """A part of a preset: nothing is converted, unknown fields and NaN are refused, nothing changes afterwards."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", allow_inf_nan=False)


class HubModel(Form):
    """Weights on the Hub.

    Args:
        id (`str`): Of the repo, `namespace/name`.
        revision (`str`, *optional*): A commit, branch or tag; only a commit stays what it is. `None`: the main branch.
        variant (`str`, *optional*): Of the files, such as `"fp16"`.
    """

    id: RepoId
    revision: Revision | None = None
    variant: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{1,32}$")] | None = None

    @classmethod
    def loaded(cls, name: str, variant: str | None = None) -> "HubModel | None":
        """What `from_pretrained(name)` loaded last, with its commit; `None` if it is not of the Hub."""
        if os.path.isdir(name) or not _REPO_ID.fullmatch(name):
            return None
        for file in ("model_index.json", "config.json"):
            path = try_to_load_from_cache(name, file)
            if isinstance(path, str):
                # The cache keeps a repo as snapshots/<commit>/<file>.
                return cls(id=name, revision=Path(path).parent.name, variant=variant)
        return cls(id=name, variant=variant)

    def source(self) -> dict[str, Any]:
        """The arguments of `from_pretrained`.

        Raises:
            `ValueError`: If there is a folder of that name here: it would be loaded in place of what is on the Hub.
        """
        if os.path.isdir(self.id):
            raise ValueError(f"There is a folder {self.id!r} here, but the preset means the model on the Hub.")
        return {"pretrained_model_name_or_path": self.id, "revision": self.revision, "variant": self.variant}


class ExpectedClip(Form):
    """What an edit was made with, told by hashes.

    Args:
        sha256 (`str`): Of the frames, (F, H, W, 3) uint8 RGB.
        num_frames, height, width (`int`): Of the clip, in pixels.
        fps (`float`): Its rate.
        conditioning_sha256 (`tuple[str]`): Of the conditioning frames of each ControlNet, hashed as the clip is.
        flow_sha256 (`tuple[str]`): Of the optical flow and, where it was used too, of the backward flow; (F - 1, 2,
            H', W') float32.
    """

    sha256: Sha256
    num_frames: NumFrames
    height: Side
    width: Side
    fps: Annotated[float, Field(gt=0, le=1000)]
    conditioning_sha256: Annotated[Several[Sha256], Field(max_length=MAX_CONTROLNETS)] = ()
    flow_sha256: Annotated[Several[Sha256], Field(max_length=2)] = ()

    @model_validator(mode="after")
    def _check_size(self) -> "ExpectedClip":
        check_pixels(self.num_frames, self.height, self.width)
        return self

    @property
    def size(self) -> str:
        """Frames and pixels, for people."""
        return f"{self.num_frames} frames of {self.width}x{self.height}"

    @classmethod
    def of(
        cls, video: Any, fps: float, conditioning_frames: Any = None, flow: Any = None, backward_flow: Any = None
    ) -> "ExpectedClip":
        """Describes what [`~GroundAVideoPipeline.__call__`] is given, one clip in any form that it takes.

        Raises:
            `ValueError`: If it is no single clip, does not fit together, or exceeds what a preset may hold.
        """
        frames = _frames(video, "video")
        flows = [
            flow_to_tensors(given, name, 1, len(frames))[0]
            for name, given in (("flow", flow), ("backward_flow", backward_flow))
            if given is not None
        ]
        conditions = [_frames(one, "conditioning_frames") for one in _one_clip_a_controlnet(conditioning_frames)]
        num_frames, height, width = frames.shape[:3]
        description = {
            "sha256": _frames_hash(frames),
            "num_frames": num_frames,
            "height": height,
            "width": width,
            "fps": fps,
            "conditioning_sha256": [_frames_hash(condition) for condition in conditions],
            "flow_sha256": [tensor_hash(flow) for flow in flows],
        }
        return validated(cls, description)


class _RunLengths(Form):
    """A mask as an uncompressed COCO run-length encoding."""

    size: Annotated[tuple[Side, Side], Field(strict=False)]
    counts: Several[Annotated[int, Field(ge=0, le=MAX_SIDE**2)]]


class _ObjectForm(Form):
    """The JSON form of a [`GroundedObject`], with bounds; what it means is checked by that class."""

    source_phrase: Phrase | None
    target_phrase: Phrase | None
    boxes: Annotated[Several[BoxForm | None], Field(max_length=MAX_FRAMES)] | None = None
    box: BoxForm | None = None
    keyframes: (
        Annotated[
            dict[Annotated[str, StringConstraints(pattern=r"^(0|[1-9][0-9]{0,3})$")], BoxForm | None],
            Field(max_length=MAX_FRAMES),
        ]
        | None
    ) = None
    masks: Annotated[Several[_RunLengths | None], Field(max_length=MAX_FRAMES)] | None = None

    @model_serializer(mode="wrap")
    def _without_the_places_that_are_not_given(self, serialize: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
        return {name: value for name, value in serialize(self).items() if value is not None or name.endswith("phrase")}


class GroundingForm(Form):
    """The JSON form of a [`VideoGrounding`]."""

    objects: Annotated[Several[_ObjectForm], Field(max_length=MAX_OBJECTS)]


class InflationForm(Form):
    """The fields of [`Inflation`]."""

    self_attention: FrameAttention = "cross-frame"
    gated_attention: GatedAttention = "own-grounding"
    modulated_cross_attention: bool = True
    group_norm: bool = False
    entropy_scaling: bool = True


def _frames(clip: Any, argument: str) -> np.ndarray:
    """One clip in any of diffusers' forms as (F, H, W, 3) uint8."""
    clips = clips_to_tensor(clip, argument, VideoProcessor(do_resize=False, do_convert_rgb=True))
    if len(clips) != 1:
        raise ValueError(f"`{argument}` has to be one clip, but holds {len(clips)}: a preset is of one.")
    return ((clips[0] + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()


def _frames_hash(frames: np.ndarray) -> str:
    return hashlib.sha256(frames.tobytes()).hexdigest()


def _one_clip_a_controlnet(conditioning_frames: Any) -> list[Any]:
    if conditioning_frames is None:
        return []
    if not isinstance(conditioning_frames, list) or not conditioning_frames:
        return [conditioning_frames]
    first = conditioning_frames[0]
    is_frame = isinstance(first, PIL.Image.Image) or getattr(first, "ndim", None) == 3
    return [conditioning_frames] if is_frame else conditioning_frames
