"""The command line, `groundavideo`."""

from typing import Any

import typer
from rich.console import Console
from rich.text import Text
from typer.core import TyperGroup

from .annotate import annotate_clip
from .benchmark import benchmark
from .demo import demo
from .editing import edit_clip, invert_clip
from .evaluate import evaluate_edit
from .preset import app as preset_app
from .publish import publish


_errors = Console(stderr=True, highlight=False, soft_wrap=True)


class _Commands(TyperGroup):
    """Says in one line what is wrong with the input or the disk, in place of a traceback."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except (ValueError, OSError) as error:
            _errors.print(Text(f"Error: {' '.join(str(error).split())}", style="red"))
            raise typer.Exit(2) from error


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    add_completion=False,
    # The boxes of the other mode cut long options short in a window of 80 columns.
    rich_markup_mode=None,
    help="Edits several objects of a video clip at once, each in its place, without training.",
)

app.command(
    "edit", epilog="To invert a clip once for several edits, call `groundavideo invert` and then edit with --inverted."
)(edit_clip)
app.command("invert")(invert_clip)
app.command("annotate")(annotate_clip)
app.command("evaluate")(evaluate_edit)
app.command("benchmark")(benchmark)
app.command("demo")(demo)
app.add_typer(preset_app, name="preset")
app.command("publish")(publish)
