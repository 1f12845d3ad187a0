"""The card of an [`EditPreset`]: what the Hub shows of it."""

import re
import shlex
from typing import TYPE_CHECKING

from huggingface_hub import ModelCardData


if TYPE_CHECKING:
    from .preset import EditPreset


# Licences whose SPDX id, in lower case, is also the Hub's; the Hub refuses a card with an unknown one.
_HUB_LICENSES = (
    *("apache-2.0", "mit", "bsd-2-clause", "bsd-3-clause", "gpl-3.0", "agpl-3.0", "mpl-2.0", "unlicense", "cc0-1.0"),
    *("cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0", "cc-by-nd-4.0", "cc-by-nc-sa-4.0", "cc-by-nc-nd-4.0"),
)


def write_card(preset: "EditPreset", repo_id: str | None, revision: str | None, preview: str | None) -> str:
    """Markdown with the Hub's front matter.

    Args:
        preset ([`EditPreset`]): What the card is of.
        repo_id, revision (`str`, *optional*): Where on the Hub it lies; by default in a folder.
        preview (`str`, *optional*): The name of the gif beside the card.
    """
    parts = [
        f"---\n{_front_matter(preset)}\n---",
        f"# {_escaped(preset.title or 'An edit of a clip')}",
        "" if preview is None else f"![before and after]({preview})",
        f"> {_escaped(preset.prompt)}",
        f"Before: {_escaped(preset.source_prompt)}" if preset.source_prompt else "",
        _objects(preset),
        f"By {_escaped(preset.author)}." if preset.author else "",
        "A preset of diffusers-groundavideo: a whole edit without the pixels.",
        "## Reproduce",
        _command(preset, repo_id, revision),
        _script(preset, repo_id, revision),
        _facts(preset),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _front_matter(preset: "EditPreset") -> str:
    license_id = None if preset.license is None else preset.license.lower()
    known = license_id is None or license_id in _HUB_LICENSES
    metadata = ModelCardData(
        library_name="diffusers",
        pipeline_tag="video-to-video",
        license=license_id if known else "other",
        license_name=None if known else license_id,
        tags=["ground-a-video", "edit-preset", *preset.tags],
    )
    return metadata.to_yaml()


def _objects(preset: "EditPreset") -> str:
    rows = [
        f"| {grounded.role} | {_escaped(grounded.source_phrase or '')} | {_escaped(grounded.target_phrase or '')} |"
        for grounded in preset.video_grounding().objects
    ]
    return "\n".join(["| | before | after |", "| --- | --- | --- |", *rows])


def _command(preset: "EditPreset", repo_id: str | None, revision: str | None) -> str:
    command = ["groundavideo", "preset", "run", repo_id or ".", "clip.mp4", "-o", "edited.mp4"]
    if revision is not None:
        command += ["--revision", revision]
    if preset.model is None:
        command += ["--model", "model"]
    for number, _ in enumerate(preset.clip.conditioning_sha256, start=1):
        command += ["--depth", f"depth_{number}"]
    if preset.clip.flow_sha256:
        command += ["--flow", "flow.safetensors"]
    return f"```bash\n{shlex.join(command)}\n```"


def _script(preset: "EditPreset", repo_id: str | None, revision: str | None) -> str:
    where = repr(repo_id or ".") + ("" if revision is None else f", revision={revision!r}")
    arguments = ["video"]
    if preset.clip.conditioning_sha256:
        arguments.append("conditioning_frames=depth")
    arguments += ["flow=flow", "backward_flow=backward_flow"][: len(preset.clip.flow_sha256)]
    return "\n".join(
        [
            "```python",
            "from diffusers_groundavideo import EditPreset",
            "",
            f"preset = EditPreset.from_pretrained({where})",
            f"pipe = preset.load_pipeline({'' if preset.model else 'model'})",
            f"frames = pipe(**preset.call_arguments({', '.join(arguments)})).frames[0]",
            "```",
        ]
    )


def _facts(preset: "EditPreset") -> str:
    facts = [f"Clip: {preset.clip.size} at {preset.clip.fps:g} frames a second, SHA-256 `{preset.clip.sha256}`"]
    models = [("Model", preset.model), *(("ControlNet", controlnet) for controlnet in preset.controlnets)]
    for name, model in models:
        if model is not None:
            variant = f", variant `{model.variant}`" if model.variant else ""
            facts.append(f"{name}: `{model.id}` at `{model.revision or 'main'}`{variant}")
    return "\n".join(f"- {fact}" for fact in facts)


def _escaped(text: str) -> str:
    """One line that Markdown shows as it is: no link, picture, tag or table of somebody else's."""
    return re.sub(r"([!-/:-@\[-`{-~])", r"\\\1", " ".join(text.split()))
