"""From the records of a benchmark to tables, plots and a contact sheet.

Intervals are bootstrapped over clips (percentile method; Efron & Tibshirani, "An Introduction to the Bootstrap", 1993,
section 13.3): what they say holds for clips drawn as these were, with this checkpoint.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..extras import import_from_extra
from .benchmark import CEILING, strip_path
from .methods import METHODS
from .suite import KINDS


NUM_RESAMPLES = 10_000
LEVEL = 0.95
OURS = "ours"
# Those that are shown by kind, number of edits, background and length.
GROUPED_METHODS = (OURS, "published", "published-gating", "per-frame-gligen", CEILING)

# Of the contact sheet: clips side by side and in all, methods, frames of each clip, pixels for a pixel.
SHEET_COLUMNS, SHEET_CLIPS, SHEET_METHODS, SHEET_FRAMES, SHEET_SCALE = 4, 12, 8, 3, 2
_LABEL_WIDTH, _LABEL_HEIGHT, _GAP = 170, 18, 6

Record = dict[str, Any]


@dataclass(frozen=True)
class Metric:
    """How a metric is shown.

    Args:
        name: In the records.
        label: In tables and plots.
        higher_is_better: Or lower.
        scale: Factor on the recorded value.
        digits: After the point.
    """

    name: str
    label: str
    higher_is_better: bool
    scale: float = 1.0
    digits: int = 2

    @property
    def heading(self) -> str:
        """The label with an arrow to where it is better."""
        return f"{self.label} {'↑' if self.higher_is_better else '↓'}"


METRICS: tuple[Metric, ...] = (
    Metric("edit_accuracy", "edit accuracy, %", True, 100, 1),
    Metric("kept_accuracy", "kept objects, %", True, 100, 1),
    Metric("background_accuracy", "new background, %", True, 100, 1),
    Metric("psnr_inside", "PSNR to the perfect edit inside, dB", True),
    Metric("psnr_outside", "PSNR to the perfect edit outside, dB", True),
    Metric("psnr", "PSNR to the perfect edit, dB", True),
    Metric("background_psnr", "background PSNR, dB", True),
    Metric("warp_error", "warp error, 1e-3", False, 1000),
    Metric("static_flicker", "static flicker, 1e-3", False, 1000),
    Metric("leakage", "leakage, 1e-3", False, 1000),
    Metric("leaked_instances", "leaked instances, %", False, 100, 1),
    Metric("omission", "omission, %", False, 100, 1),
    Metric("accuracy_times_background", "edit accuracy x background PSNR, dB", True),
)
# Those that the comparison of two methods is about.
MAIN_METRICS: tuple[Metric, ...] = tuple(
    metric
    for metric in METRICS
    if metric.name in ("edit_accuracy", "psnr", "background_psnr", "warp_error", "accuracy_times_background")
)


@dataclass(frozen=True)
class Estimate:
    """A mean over clips with its bootstrap interval; the bounds are NaN for fewer than two clips."""

    mean: float
    low: float
    high: float
    count: int


def bootstrap(values: Iterable[float], seed: int = 0) -> Estimate:
    """The mean of values and its 95 % percentile bootstrap interval.

    Args:
        values: One a clip, at least one.
        seed: Of the resampling.
    """
    sample = np.asarray(list(values), dtype=np.float64)
    if len(sample) < 2:
        return Estimate(float(sample.mean()), np.nan, np.nan, len(sample))
    means = sample[_resamples(len(sample), seed)].mean(axis=1)
    low, high = np.quantile(means, ((1 - LEVEL) / 2, (1 + LEVEL) / 2))
    return Estimate(float(sample.mean()), float(low), float(high), len(sample))


@cache
def _resamples(count: int, seed: int) -> np.ndarray:
    """Which of `count` values each resample takes: (NUM_RESAMPLES, count)."""
    return np.random.default_rng(seed).integers(count, size=(NUM_RESAMPLES, count))


def load_records(folder: str | Path) -> list[Record]:
    """All records of a benchmark's folder, by clip and then by method in the order of `METHODS`, the ceiling last.

    Raises:
        `ValueError`: If there is none, or one of a method that is not in `METHODS`.
    """
    order = {name: place for place, name in enumerate((*METHODS, CEILING))}
    paths = Path(folder).glob("records/*/*.json")
    records = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(paths)]
    if not records:
        raise ValueError(f"The folder {str(folder)!r} holds no records of a benchmark.")
    unknown = sorted({record["method"] for record in records} - set(order))
    if unknown:
        raise ValueError(
            f"The folder {str(folder)!r} holds records of {', '.join(unknown)}, which this version does not know: "
            "delete them, or choose another folder."
        )
    return sorted(records, key=lambda record: (record["clip"]["name"], order[record["method"]]))


def estimate(records: Iterable[Record], method: str, metric: Metric) -> Estimate | None:
    """The mean of a metric over the clips for which it is defined, scaled; `None` if there is no such clip."""
    values = _values(records, method, metric)
    return bootstrap(values.values()) if values else None


def paired_difference(records: Sequence[Record], method: str, other: str, metric: Metric) -> Estimate | None:
    """The mean of `method` minus `other`, scaled, over the clips that both edited and the metric is defined for."""
    own, others = _values(records, method, metric), _values(records, other, metric)
    differences = [own[clip] - others[clip] for clip in own if clip in others]
    return bootstrap(differences) if differences else None


def _values(records: Iterable[Record], method: str, metric: Metric) -> dict[str, float]:
    return {
        record["clip"]["name"]: record["metrics"][metric.name] * metric.scale
        for record in records
        if record["method"] == method and record["metrics"][metric.name] is not None
    }


def _methods(records: Iterable[Record], ceiling: bool = False) -> list[str]:
    """The methods that there are records of, ours first, the ceiling last if at all."""
    found = {record["method"] for record in records}
    return [name for name in (*METHODS, *([CEILING] if ceiling else [])) if name in found]


def _colour(name: str) -> str:
    return {OURS: "tab:orange", CEILING: "tab:gray"}.get(name, "tab:blue")


def _cell(value: Estimate | None, metric: Metric, signed: bool = False) -> str:
    if value is None:
        return ""
    form = f"{'+' if signed else ''}.{metric.digits}f"
    interval = "" if np.isnan(value.low) else f" [{value.low:{form}}, {value.high:{form}}]"
    return f"{value.mean:{form}}{interval}"


def _table(header: Sequence[str], rows: Iterable[Sequence[str]], numbers: bool = True) -> str:
    ruler = ["---"] + ["---:" if numbers else "---"] * (len(header) - 1)
    return "\n".join(f"| {' | '.join(row)} |" for row in (header, ruler, *rows)) + "\n"


def method_table(records: Sequence[Record], metrics: Sequence[Metric] = METRICS) -> str:
    """Markdown: a row a method, the best by edit accuracy times background PSNR first and the ceiling last."""
    by_rank = METRICS[-1]

    def rank(name: str) -> float:
        value = estimate(records, name, by_rank)
        return -np.inf if value is None else value.mean

    names = sorted(_methods(records), key=rank, reverse=True) + [CEILING]
    shown = [metric for metric in metrics if any(estimate(records, name, metric) for name in names)]
    rows = []
    for name in names:
        clips = sum(record["method"] == name for record in records)
        rows.append([name, str(clips), *(_cell(estimate(records, name, metric), metric) for metric in shown)])
    return _table(["method", "clips", *(metric.heading for metric in shown)], rows)


def difference_table(records: Sequence[Record], method: str = OURS, metrics: Sequence[Metric] = MAIN_METRICS) -> str:
    """Markdown: `method` minus each other one on the clips that both edited; bold where the interval excludes 0."""
    others = [other for other in _methods(records) if other != method]
    rows = ([other, *_difference_cells(records, method, other, metrics)] for other in others)
    return _table([f"{method} minus", *(metric.heading for metric in metrics)], rows)


def pair_table(
    records: Sequence[Record], pairs: Sequence[tuple[str, str]], metrics: Sequence[Metric] = MAIN_METRICS
) -> str:
    """Markdown: the first method of each pair minus the second, as in [`difference_table`]; pairs with a method that
    there are no records of are left out."""
    known = set(_methods(records))
    rows = (
        [f"{one} minus {other}", *_difference_cells(records, one, other, metrics)]
        for one, other in pairs
        if {one, other} <= known
    )
    return _table(["difference", *(metric.heading for metric in metrics)], rows)


def _difference_cells(records: Sequence[Record], method: str, other: str, metrics: Sequence[Metric]) -> list[str]:
    cells = []
    for metric in metrics:
        value = paired_difference(records, method, other, metric)
        cell = _cell(value, metric, signed=True)
        cells.append(f"**{cell}**" if value is not None and _excludes_zero(value) else cell)
    return cells


def _excludes_zero(value: Estimate) -> bool:
    return value.low > 0 or value.high < 0


def group_table(records: Sequence[Record], group: str, metrics: Sequence[Metric] = MAIN_METRICS) -> str:
    """Markdown: a row for each of `GROUPED_METHODS` and value of `group`, a field of the records' clips ("kind")."""
    rows = []
    for value, own in _groups(records, group):
        for name in GROUPED_METHODS:
            clips = sum(record["method"] == name for record in own)
            cells = [_cell(estimate(own, name, metric), metric) for metric in metrics]
            if clips:
                rows.append([str(value), name, str(clips), *cells])
    header = [group.replace("_", " "), "method", "clips", *(metric.heading for metric in metrics)]
    return _table(header, rows)


def group_difference_table(
    records: Sequence[Record], group: str, pair: tuple[str, str], metrics: Sequence[Metric] = MAIN_METRICS
) -> str:
    """Markdown: the first method of the pair minus the second, as in [`difference_table`], a row for each value of
    `group`, a field of the records' clips ("num_frames")."""
    rows = ([str(value), *_difference_cells(own, *pair, metrics)] for value, own in _groups(records, group))
    header = [f"{group.replace('_', ' ')}: {' minus '.join(pair)}", *(metric.heading for metric in metrics)]
    return _table(header, rows)


def _groups(records: Sequence[Record], group: str) -> list[tuple[Any, list[Record]]]:
    """Each value of a field of the records' clips, in order, with the records that have it."""
    found = {record["clip"][group] for record in records}
    values = [kind for kind in KINDS if kind in found] if group == "kind" else sorted(found)
    return [(value, [record for record in records if record["clip"][group] == value]) for value in values]


def seconds_table(records: Sequence[Record]) -> str:
    """Markdown: mean seconds of each stage of each method, on one thread, and the share of it."""
    stages = ("inversion", "denoising", "decoding")
    rows = []
    for name in _methods(records):
        own = [record["seconds"] for record in records if record["method"] == name]
        means = [float(np.mean([seconds.get(stage, 0.0) for seconds in own])) for stage in stages]
        cells = [f"{mean:.2f} ({mean / sum(means):.0%})" for mean in means]
        rows.append([name, *cells, f"{sum(means):.2f}"])
    return _table(["method", *(f"{stage}, s" for stage in stages), "in all, s"], rows)


def describe_methods(records: Iterable[Record]) -> str:
    """Markdown: what each method is."""
    return _table(["method", "is"], ([name, METHODS[name].description] for name in _methods(records)), numbers=False)


def describe_run(records: Sequence[Record]) -> str:
    """A sentence with all that tells one run from another."""
    settings, clips = records[0]["settings"], {record["clip"]["name"] for record in records}
    versions = ", ".join(f"{name} {number}" for name, number in settings["versions"].items())
    return (
        f"{len(clips)} clips of seed {settings['seed']}, {settings['size']}x{settings['size']} pixels; "
        f"{settings['steps']} steps, guidance {settings['guidance_scale']:g}; checkpoint "
        f"{settings['checkpoint'][:12]}; {versions}. Means with {LEVEL:.0%} bootstrap intervals over clips.\n"
    )


def write_report(folder: str | Path) -> Path:
    """Writes `report.md`, `seconds.md`, plots and `contact-sheet.png` into the folder of a benchmark.

    All but `seconds.md` depend on the records without their seconds alone, to the bit.

    Returns:
        The path of `report.md`.

    Raises:
        `ValueError`: If the folder holds no records.
    """
    folder = Path(folder)
    records = load_records(folder)
    parts = [
        "# Benchmark on sprite clips\n",
        describe_run(records),
        describe_methods(records),
        f"{CEILING}: the perfect edit through the autoencoder. In boxes a judge tells apart what is there; a box in "
        "which less than half of the object is seen does not count.\n",
        "## Methods\n",
        method_table(records),
        "![Metrics](metrics.png)\n",
        "![Edit accuracy against background PSNR](accuracy-and-background.png)\n",
    ]
    if len(_methods(records)) > 1 and OURS in _methods(records):
        parts += [
            "## Paired differences\n",
            "On the clips that both edited; bold where the interval excludes 0.\n",
            difference_table(records),
            "![Differences](differences.png)\n",
        ]
        _plot_differences(records, folder / "differences.png")
    for group, title in (
        ("kind", "By kind of clip"),
        ("num_edits", "By number of edited objects"),
        ("background", "By background"),
        ("num_frames", "By length"),
    ):
        if len(_groups(records, group)) > 1:
            parts += [f"## {title}\n", group_table(records, group)]
            if group in ("num_edits", "num_frames"):
                name = f"{group.replace('_', '-')}.png"
                _plot_groups(records, group, folder / name)
                parts.append(f"![{title}]({name})\n")
    parts += ["## Clips\n", "![Source, edits, perfect edit](contact-sheet.png)\n"]
    _plot_metrics(records, folder / "metrics.png")
    _plot_accuracy_and_background(records, folder / "accuracy-and-background.png")
    contact_sheet(folder, records).save(folder / "contact-sheet.png")
    (folder / "seconds.md").write_text(seconds_table(records), encoding="utf-8")
    report = folder / "report.md"
    report.write_text("\n".join(parts), encoding="utf-8")
    return report


def contact_sheet(folder: str | Path, records: Sequence[Record]) -> Image.Image:
    """One picture of the first clips: for each, rows with the source, every method's edit and the perfect edit.

    Args:
        folder: Of the benchmark.
        records: Of the methods and clips to show; at most `SHEET_CLIPS` clips, at frames from the first to the last,
            and `SHEET_METHODS` methods.
    """
    methods = ["source", *_methods(records)[:SHEET_METHODS], "perfect"]
    clips = sorted({record["clip"]["name"] for record in records})[:SHEET_CLIPS]
    size = records[0]["settings"]["size"]
    tile = size * SHEET_SCALE
    width, height = SHEET_FRAMES * tile + _GAP, _LABEL_HEIGHT + len(methods) * tile + _GAP
    bands = -(-len(clips) // SHEET_COLUMNS)
    sheet = Image.new("RGB", (_LABEL_WIDTH + min(len(clips), SHEET_COLUMNS) * width, bands * height), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    for place, clip in enumerate(clips):
        band, column = divmod(place, SHEET_COLUMNS)
        left, top = _LABEL_WIDTH + column * width, band * height
        draw.text((left, top + 2), clip, fill="black", font=font)
        for row, method in enumerate(methods):
            y = top + _LABEL_HEIGHT + row * tile
            draw.text((4, y + tile // 2 - 8), method, fill="black", font=font)
            path = strip_path(Path(folder), clip, method)
            if path.exists():
                sheet.paste(
                    _few_frames(path, size).resize((SHEET_FRAMES * tile, tile), Image.Resampling.NEAREST), (left, y)
                )
    return sheet


def _few_frames(strip: Path, size: int) -> Image.Image:
    """`SHEET_FRAMES` frames of a strip of square frames, evenly from the first to the last, side by side."""
    with Image.open(strip) as image:
        frames = np.split(np.asarray(image.convert("RGB")), image.width // size, axis=1)
    shown = np.linspace(0, len(frames) - 1, SHEET_FRAMES).round().astype(int)
    return Image.fromarray(np.concatenate([frames[index] for index in shown], axis=1))


def _new_figure(width: float, height: float, rows: int = 1, columns: int = 1) -> tuple[Any, Any]:
    """A figure and its axes, (rows, columns). Not through pyplot, which would choose a display."""
    import_from_extra("matplotlib", "evaluation")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False)


def _draw_estimates(axes: Any, names: Sequence[str], values: Sequence[Estimate | None]) -> None:
    """A point with its interval a row, the first on top; ours in another colour."""
    for row, (name, value) in enumerate(zip(names, values)):
        if value is None:
            continue
        colour = _colour(name)
        if not np.isnan(value.low):
            axes.plot([value.low, value.high], [row, row], color=colour)
        axes.plot(value.mean, row, "o", color=colour, markersize=4)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.grid(axis="x", alpha=0.3)


def _plot_metrics(records: Sequence[Record], path: Path) -> None:
    names = _methods(records, ceiling=True)
    shown = [metric for metric in METRICS if any(estimate(records, name, metric) for name in names)]
    columns = 3
    rows = -(-len(shown) // columns)
    figure, grid = _new_figure(5 * columns, (0.6 + 0.22 * len(names)) * rows, rows, columns)
    for axes, metric in zip(grid.flat, shown):
        _draw_estimates(axes, names, [estimate(records, name, metric) for name in names])
        axes.set_title(metric.heading, fontsize=10)
    for axes in grid.flat[len(shown) :]:
        axes.set_visible(False)
    for axes in grid[:, 1:].flat:
        axes.tick_params(labelleft=False)
    figure.savefig(path, dpi=100)


def _plot_differences(records: Sequence[Record], path: Path) -> None:
    others = [name for name in _methods(records) if name != OURS]
    figure, grid = _new_figure(4 * len(MAIN_METRICS), 1 + 0.25 * len(others), 1, len(MAIN_METRICS))
    for axes, metric in zip(grid.flat, MAIN_METRICS):
        _draw_estimates(axes, others, [paired_difference(records, OURS, other, metric) for other in others])
        axes.axvline(0, color="black", linewidth=0.8)
        # Linear up to what a table shows in its last digits, for some methods are hundreds of times further off.
        axes.set_xscale("symlog", linthresh=10 ** (1 - metric.digits))
        better = "right" if metric.higher_is_better else "left"
        axes.set_title(f"ours minus: {metric.label}\n({better} of 0: ours is better)", fontsize=9)
    for axes in grid[:, 1:].flat:
        axes.tick_params(labelleft=False)
    figure.savefig(path, dpi=100)


def _plot_accuracy_and_background(records: Sequence[Record], path: Path) -> None:
    accuracy, background = (
        next(m for m in METRICS if m.name == name) for name in ("edit_accuracy", "background_psnr")
    )
    # The same clips on both axes: those with sprites to edit and a background to keep.
    both = [record for record in records if record["metrics"]["accuracy_times_background"] is not None]
    figure, grid = _new_figure(7, 5)
    axes = grid[0, 0]
    for name in _methods(both, ceiling=True):
        x, y = estimate(both, name, background), estimate(both, name, accuracy)
        assert x is not None and y is not None
        colour = _colour(name)
        if not np.isnan(x.low):
            axes.plot([x.low, x.high], [y.mean, y.mean], color=colour, alpha=0.5)
            axes.plot([x.mean, x.mean], [y.low, y.high], color=colour, alpha=0.5)
        axes.plot(x.mean, y.mean, "o", color=colour, markersize=5)
        axes.annotate(name, (x.mean, y.mean), xytext=(4, 3), textcoords="offset points", fontsize=8)
    axes.set_xlabel(background.label)
    axes.set_ylabel(accuracy.label)
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=100)


def _plot_groups(records: Sequence[Record], group: str, path: Path) -> None:
    """The main metrics of `GROUPED_METHODS` against a number."""
    figure, grid = _new_figure(4 * len(MAIN_METRICS), 3.5, 1, len(MAIN_METRICS))
    groups = _groups(records, group)
    for axes, metric in zip(grid.flat, MAIN_METRICS):
        for name in GROUPED_METHODS:
            points = []
            for value, own in groups:
                if (found := estimate(own, name, metric)) is not None:
                    points.append((value, found))
            if not points:
                continue
            x = [value for value, _ in points]
            (line,) = axes.plot(x, [found.mean for _, found in points], "o-", markersize=4, label=name)
            lows, highs = [found.low for _, found in points], [found.high for _, found in points]
            axes.fill_between(x, lows, highs, color=line.get_color(), alpha=0.12)
        axes.set_xticks([value for value, _ in groups])
        axes.set_xlabel(group.replace("_", " "))
        axes.set_title(metric.heading, fontsize=9)
        axes.grid(alpha=0.3)
    grid[0, 0].legend(fontsize=7)
    figure.savefig(path, dpi=100)
