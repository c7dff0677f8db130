"""The table of stages: changes against the baseline, and a dash for what was not measured."""

import math

import pytest

from d2prune.report.table import MISSING, aligned, quantity, signed, stage_rows, stage_table
from tests.report.conftest import read


def cells(report, name):
    return next([str(c) for c in row.cells] for row in stage_rows(read(report)) if row.name == name)


def test_changes_are_against_the_baseline(report):
    assert cells(report, "baseline") == ["4.00 M", "2.00 G", "56.0", "54.0", "20.0 ms", MISSING]
    assert cells(report, "fine-tuned") == [
        "1.00 M (−75.0%)", "1.00 G (−50.0%)", "55.6 (−0.4)", "53.6 (−0.4)", "11.0 ms (×0.55)",
        MISSING,
    ]  # fmt: skip


def test_baseline_need_not_come_first(report):
    report["stages"].reverse()
    assert cells(report, "pruned")[0] == "1.00 M (−75.0%)"
    assert cells(report, "baseline")[0] == "4.00 M"


@pytest.mark.parametrize("missing", [None, math.nan])
def test_what_was_not_measured_is_a_dash(report, missing):
    report["stages"][1] |= {"mask_ap": missing, "box_ap": missing, "latency_ms": None}
    assert cells(report, "pruned")[2:] == [MISSING] * 4


def test_no_change_without_the_baselines_figure(report):
    report["stages"][0] |= {"mask_ap": None, "latency_ms": None}
    assert cells(report, "pruned")[3] == "10.0"


def test_no_change_of_ap_between_data_sets(report):
    report["stages"][1]["test_set"] = "other"
    assert cells(report, "pruned")[1:4] == ["1.00 G (−50.0%)", "12.0", "10.0"]


def test_times_end_to_end_have_a_column_of_their_own(report):
    for stage in report["stages"][:2]:
        stage["end_to_end_ms"] = {**report["stages"][0]["latency_ms"], "median": 30.0, "ratio": 0.7}
    assert cells(report, "baseline")[-1] == "30.0 ms" and cells(report, "pruned")[-1] == "30.0 ms (×0.70)"


def test_zero_is_a_figure(report):
    report["stages"][1]["mask_ap"] = 0.0
    assert cells(report, "pruned")[3] == "0.0 (−54.0)"


def test_without_stages_the_sizes_are_shown(report):
    report["stages"] = []
    assert cells(report, "pruned") == ["1.00 M (−75.0%)", "1.00 G (−50.0%)", *[MISSING] * 4]


def test_columns_line_up(report):
    lines = stage_table(read(report)).splitlines()
    assert len(lines) == 2 + len(report["stages"])
    assert lines[0].endswith("network, batch 1  end to end") and len({len(line) for line in lines}) == 1
    assert aligned([["a", "bb"], ["ccc", "d"]]) == "a    bb\n---  --\nccc   d"


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (999, "999"), (1000, "1.00 k"), (3_245_989, "3.25 M"), (128_479_984, "128 M"),
     (999_600, "1.00 M"), (25_599_999_999, "25.6 G"), (2.5e12, "2500 G"), (None, MISSING)],
)  # fmt: skip
def test_quantities_have_three_digits(value, text):
    assert quantity(value) == text


def test_signs():
    assert [signed(v) for v in (1.26, -1.26, 0.04, -0.04)] == ["+1.3", "−1.3", "0.0", "0.0"]
