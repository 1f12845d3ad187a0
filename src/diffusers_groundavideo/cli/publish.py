"""The command `groundavideo publish`."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer


def publish(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A GLIGEN checkpoint: a folder in diffusers' layout or a Hub id.")
    ],
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Where the repo is written: a new folder.")],
    license: Annotated[str, typer.Option(help="Of the weights, as the Hub names it: apache-2.0, openrail, …")],
    push: Annotated[
        str | None, typer.Option("--push", metavar="REPO_ID", help="Also bring it to the Hub, as user/name.")
    ] = None,
    controlnet: Annotated[
        list[str] | None, typer.Option(metavar="MODEL", help="A ControlNet to put in; may be repeated.")
    ] = None,
    variant: Annotated[str | None, typer.Option(help='Of the files of MODEL, such as "fp16".')] = None,
    dtype: Annotated[
        Literal["float32", "float16", "bfloat16"], typer.Option(metavar="TYPE", help="Of the weights in the repo.")
    ] = "float32",
    private: Annotated[bool | None, typer.Option("--private/--public", help="Of a new repo on the Hub.")] = None,
    revision: Annotated[str | None, typer.Option(metavar="BRANCH", help="A branch other than main.")] = None,
    create_pr: Annotated[bool, typer.Option("--create-pr", help="Open a pull request instead of committing.")] = False,
    commit_message: Annotated[str, typer.Option(help="The title of the commit.")] = "Upload GroundAVideoPipeline",
) -> None:
    """Writes a model repo that carries its own pipeline, which anybody can load with diffusers alone."""
    import torch
    from diffusers import ControlNetModel

    from ..pipeline import GroundAVideoPipeline
    from ..publishing import push_model_repo, save_model_repo

    components: dict[str, Any] = {}
    if controlnet:
        nets = [ControlNetModel.from_pretrained(one, dtype=getattr(torch, dtype)) for one in controlnet]
        components["controlnet"] = nets if len(nets) > 1 else nets[0]
    pipe = GroundAVideoPipeline.from_pretrained(model, variant=variant, dtype=getattr(torch, dtype), **components)
    save_model_repo(pipe, folder, license=license, repo_id=push)
    typer.echo(f"Wrote {folder}.")
    if push is not None:
        commit = push_model_repo(
            folder, push, private=private, revision=revision, create_pr=create_pr, commit_message=commit_message
        )
        typer.echo(f"Pushed it: {commit.pr_url or commit.commit_url}")
