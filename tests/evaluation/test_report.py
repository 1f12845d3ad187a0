import json
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy import stats

from diffusers_groundavideo.evaluation.benchmark import CEILING, strip_path
from diffusers_groundavideo.evaluation.report import (
    METRICS,
    bootstrap,
    contact_sheet,
    difference_table,
    estimate,
    group_difference_table,
    group_table,
    load_records,
    method_table,
    pair_table,
    paired_difference,
    seconds_table,
    write_report,
)


METRIC = {metric.name: metric for metric in METRICS}
ACCURACY, BACKGROUND = METRIC["edit_accuracy"], METRIC["background_psnr"]
COLOURS = {"source": 10, "ours": 60, "published": 110, "perfect": 160}


def record(method: str, index: int, seconds: float = 1.0, **metrics: float | None) -> dict[str, Any]:
    return {
        "method": method,
        "clip": {
            **{"name": f"{index:03d}-two-edits-8f", "index": index, "kind": ("two-edits", "crossing")[index % 2]},
            **{"num_frames": 8, "num_edits": 1 + index % 3, "background": ("snow", "road")[index % 2]},
        },
        "metrics": {**dict.fromkeys(METRIC), **metrics},
        "settings": {
            **{"seed": 5, "steps": 1, "guidance_scale": 2.0, "size": 64, "checkpoint": "0123456789abcdef"},
            "versions": {"torch": "1.2.3"},
        },
        "seconds": {} if method == CEILING else {"inversion": seconds, "denoising": 3 * seconds, "decoding": 0.0},
    }


def made_up_records(seconds: float = 1.0) -> list[dict[str, Any]]:
    """Clips differ much, methods little: ours is ahead by 0.1 on every clip, give or take 0.02."""
    rng = np.random.default_rng(0)
    records = []
    for index in range(12):
        base, ahead = rng.uniform(0.2, 0.8), rng.uniform(0.08, 0.12)
        for method, accuracy in (("published", base), ("ours", base + ahead), (CEILING, 1.0)):
            metrics = {"edit_accuracy": accuracy, "psnr": 20.0, "background_psnr": 30.0, "warp_error": 0.001}
            records.append(
                record(method, index, seconds, **metrics, accuracy_times_background=accuracy * 30, kept_accuracy=None)
            )
    return records


def write_folder(folder, records) -> None:
    for one in records:
        path = folder / "records" / one["clip"]["name"] / f"{one['method']}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(one))
        for method, colour in COLOURS.items():
            strip = strip_path(folder, one["clip"]["name"], method)
            strip.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((64, 8 * 64, 3), colour, dtype=np.uint8)).save(strip)


def test_the_interval_is_that_of_the_normal_distribution_for_many_values():
    values = np.random.default_rng(1).normal(3, 2, size=2000)
    found = bootstrap(values)
    half_width = 1.96 * values.std() / np.sqrt(len(values))
    assert found.mean == pytest.approx(values.mean())
    assert (found.low, found.high) == pytest.approx((found.mean - half_width, found.mean + half_width), abs=0.004)
    assert found.count == 2000


def test_the_interval_is_that_of_scipy_for_a_few_skewed_values():
    values = np.random.default_rng(2).exponential(size=20)
    expected = stats.bootstrap((values,), np.mean, n_resamples=50_000, method="percentile", rng=0).confidence_interval
    found = bootstrap(values)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=0.02)


def test_of_two_values_the_interval_ends_at_them():
    # A quarter of the resamples holds the one twice and a quarter the other.
    found = bootstrap([1.0, 5.0])
    assert (found.mean, found.low, found.high) == (3.0, 1.0, 5.0)


def test_equal_values_have_no_spread_and_a_single_one_no_interval():
    same, single = bootstrap([0.3] * 5), bootstrap([0.3])
    assert (same.low, same.high) == pytest.approx((0.3, 0.3))
    assert np.isnan([single.low, single.high]).all()
    assert single.mean == 0.3


def test_the_interval_holds_the_true_mean_about_19_times_of_20():
    rng = np.random.default_rng(3)
    intervals = [bootstrap(rng.normal(size=30)) for _ in range(200)]
    assert 0.88 < np.mean([one.low <= 0 <= one.high for one in intervals]) < 0.98


def test_clips_for_which_a_metric_is_not_defined_do_not_count():
    records = [record("ours", 0, edit_accuracy=0.5), record("ours", 1, edit_accuracy=None)]
    found = estimate(records, "ours", ACCURACY)
    assert found is not None
    assert (found.mean, found.count) == (50.0, 1)
    assert estimate(records, "ours", BACKGROUND) is None


def test_a_paired_difference_is_clear_where_those_of_the_means_are_not():
    records = made_up_records()
    ours, published = (estimate(records, method, ACCURACY) for method in ("ours", "published"))
    difference = paired_difference(records, "ours", "published", ACCURACY)
    assert ours is not None and published is not None and difference is not None
    assert ours.low < published.high
    assert 8 < difference.low < difference.mean < difference.high < 12
    assert difference.mean == pytest.approx(ours.mean - published.mean)


def test_a_paired_difference_takes_only_clips_that_both_edited():
    records = [record("ours", 0, edit_accuracy=1.0), record("ours", 1, edit_accuracy=0.0)]
    records.append(record("published", 1, edit_accuracy=0.25))
    difference = paired_difference(records, "ours", "published", ACCURACY)
    assert difference is not None
    assert (difference.mean, difference.count) == (-25.0, 1)
    assert paired_difference(records, "ours", "sdedit", ACCURACY) is None


def test_the_methods_are_ranked_with_the_ceiling_last_and_undefined_metrics_left_out():
    table = method_table(made_up_records())
    assert [row.split(" | ")[0] for row in table.splitlines()[2:]] == ["| ours", "| published", "| ceiling"]
    assert "edit accuracy, % ↑" in table
    assert "kept objects" not in table


def test_a_difference_is_bold_where_its_interval_excludes_zero():
    (row,) = difference_table(made_up_records()).splitlines()[2:]
    name, accuracy, psnr = row.strip("| ").split(" | ")[:3]
    assert name == "published"
    assert accuracy == "**+9.6 [+8.9, +10.4]**"
    assert psnr == "+0.00 [+0.00, +0.00]"


def test_a_pair_is_shown_if_both_of_it_were_measured():
    rows = pair_table(made_up_records(), [("published", "ours"), ("ours", "sdedit")]).splitlines()[2:]
    assert len(rows) == 1
    assert rows[0].startswith("| published minus ours | **-9.6 [-10.4, -8.9]** |")


def test_groups_have_their_own_means():
    records = [record("ours", index, edit_accuracy=index % 2) for index in range(4)]
    rows = group_table(records, "kind", [ACCURACY]).splitlines()[2:]
    assert rows == ["| two-edits | ours | 2 | 0.0 [0.0, 0.0] |", "| crossing | ours | 2 | 100.0 [100.0, 100.0] |"]


def test_differences_are_paired_within_each_group():
    records = [record("ours", index, edit_accuracy=index % 2) for index in range(4)]
    records += [record("published", index, edit_accuracy=0.5) for index in range(4)]
    rows = group_difference_table(records, "kind", ("ours", "published"), [ACCURACY]).splitlines()[2:]
    assert rows == ["| two-edits | **-50.0 [-50.0, -50.0]** |", "| crossing | **+50.0 [+50.0, +50.0]** |"]


def test_seconds_are_shown_with_their_share():
    rows = seconds_table(made_up_records(2.0)).splitlines()
    assert rows[2] == "| ours | 2.00 (25%) | 6.00 (75%) | 0.00 (0%) | 8.00 |"


def test_a_report_depends_on_all_of_the_records_but_their_seconds(tmp_path):
    reports = []
    for number, seconds in enumerate((1.0, 7.5)):
        write_folder(tmp_path / str(number), made_up_records(seconds))
        assert write_report(tmp_path / str(number)) == tmp_path / str(number) / "report.md"
        reports.append({path.name: path.read_bytes() for path in (tmp_path / str(number)).glob("*.*")})
    times = [report.pop("seconds.md") for report in reports]
    assert times[0] != times[1]
    assert reports[0] == reports[1]
    text = reports[0]["report.md"].decode()
    assert "12 clips of seed 5" in text
    for name in set(reports[0]) - {"report.md"}:
        assert f"({name})" in text


def test_the_contact_sheet_shows_source_methods_and_perfect_edit_from_top_to_bottom(tmp_path):
    write_folder(tmp_path, made_up_records())
    column = np.asarray(contact_sheet(tmp_path, load_records(tmp_path)))[:, 300, 0]
    shown = [value for value in column[:560] if value in COLOURS.values()]
    assert list(dict.fromkeys(shown)) == list(COLOURS.values())


def test_records_of_an_unknown_method_are_refused(tmp_path):
    write_folder(tmp_path, [record("ours", 0, edit_accuracy=1.0), record("forgotten", 0, edit_accuracy=1.0)])
    with pytest.raises(ValueError, match="holds records of forgotten, which this version does not know"):
        load_records(tmp_path)


def test_a_folder_without_records_is_refused(tmp_path):
    with pytest.raises(ValueError, match="holds no records"):
        load_records(tmp_path)
