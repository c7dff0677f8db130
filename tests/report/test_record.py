"""The report as a record: from results, to a file and back."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest

from d2prune.core.types import Totals
from d2prune.report import record
from d2prune.report.verdict import verdict
from tests.report.conftest import read


@pytest.mark.parametrize(
    ("results", "expected"),
    [
        ({}, {}),
        ({"bbox": {"AP": 1.5}, "segm": {"AP": 2}}, {"bbox": 1.5, "segm": 2.0}),
        ({"bbox": {"AP": math.nan}}, {"bbox": 0.0}),
        ({"count": {"images": 3}}, {}),
        ({"a_val": {}, "b_val": {"bbox": {"AP": 4.0}}}, {"bbox": 4.0}),
        ({"a_val": {"bbox": {"AP": 3.0}}, "b_val": {"bbox": {"AP": 4.0}}}, {"bbox": 3.0}),
        ({"speed": 3.0, "bbox": {"AP": 1.0, "AP50": 2.0}}, {"bbox": 1.0}),
    ],
)
def test_the_ap_is_found_in_what_detectron2_returns(results, expected):
    assert record.average_precision(results) == expected


def test_a_stage_without_results_has_no_ap():
    stage = record.stage_of("pruned", Totals(1, 2), {}, "x.pth")
    assert (stage.box_ap, stage.mask_ap, stage.params, stage.macs) == (None, None, 1, 2)


def test_a_report_goes_to_a_file_and_back(report, tmp_path):
    assert record.read_report_json(tmp_path) is None
    record.write_report_json(read(report), tmp_path)
    assert record.read_report_json(tmp_path) == read(report)
    written = json.loads((tmp_path / record.REPORT_FILE).read_text())
    assert written == {
        **report,
        "detections": None,
        "repair": None,
        "tried": [],
        "curve": [],
        "sensitivities": [],
        "latency": None,
    }


def test_latencies_are_said_as_they_were_predicted_and_measured(report):
    report["latency"] = {"before": 30.0, "after": 18.0, "ratio": 0.61, "predicted": 0.58}
    assert read(report).latency.ratio == 0.61
    assert "takes 18.0 ms in place of 30.0 (x0.61, x0.58 was predicted)" in verdict(read(report))
    del report["latency"]
    assert "ms" not in verdict(read(report))


def test_a_report_written_before_proofs_named_their_inputs_is_read(report):
    del report["proof"]["inputs"], report["proof"]["constant"]
    assert read(report).proof.inputs == read(report).proof.constant == ()


def test_what_a_later_version_adds_is_passed_over(report):
    more = {**report, "added_later": [], "before": {**report["before"], "ms": 3.0}}
    assert read(more) == read(report)


def test_how_it_was_chosen_goes_to_a_file_and_back(report, tmp_path):
    report["tried"] = [{"criterion": "fisher", "allocation": "global", "loss": 1.5, "change": 0.5}]
    report["curve"] = [{"reached": 0.0, "scores": {"bbox": 50.0}, "within": True}]
    report["sensitivities"] = [{"group": "a", "units": 8, "kept": 4, "errors": [0.0, 0.5, 1.0]}]
    record.write_report_json(read(report), tmp_path)
    again = record.read_report_json(tmp_path)
    assert again == read(report) and again.sensitivities[0].errors == (0.0, 0.5, 1.0)
    assert again.tried[0].allocation == "global" and again.curve[0].scores == {"bbox": 50.0}


def test_a_stage_takes_the_place_of_one_of_its_name(report):
    tuned = read(report)
    again = tuned.with_stage(replace(tuned.stage("pruned"), mask_ap=11.0))
    assert [stage.name for stage in again.stages] == ["baseline", "fine-tuned", "pruned"]
    assert again.stage("pruned").mask_ap == 11.0 and again.stage("absent") is None


def test_a_number_that_json_lacks_leaves_the_report_before(report, tmp_path):
    record.write_report_json(read(report), tmp_path)
    with pytest.raises(ValueError):
        record.write_report_json(replace(read(report), reached=math.nan), tmp_path)
    assert record.read_report_json(tmp_path) == read(report)
