"""The verdict claims what was proved and measured, and says what was not."""

import math

import pytest

from d2prune.report.verdict import ap_change, ap_words, proof_state, verdict
from tests.report.conftest import read


def test_all_is_told_at_best(report):
    text = verdict(read(report))
    assert text.startswith("50.0% of the MACs and 75.0% of the parameters of BlendMask were removed")
    assert "proved exact" in text and "1.5e-15" in text and "float64" in text and "0.42" in text
    assert "baseline 54.0, pruned 10.0, fine-tuned 53.6: 0.4 points lost" in text
    assert text.endswith(".") and text.count(". ") == 0


def test_no_proof_is_not_proved(report):
    report["proof"] = None
    assert "not proved" in verdict(read(report)) and "exact" not in verdict(read(report))
    assert proof_state(None) == "not proved"


def test_detections_are_compared_where_there_are_any(report):
    assert "images in float32" not in verdict(read(report))
    report["detections"] = {"masked": 9, "pruned": 10, "matched": 8, "score": 1e-6, "images": 4}
    assert "; end to end, 8 of 10 detections are the same on 4 images in float32; " in verdict(read(report))
    report["detections"] |= {"masked": 0, "pruned": 0, "matched": 0}
    assert "neither detects anything on 4 images" in verdict(read(report))


def test_a_failed_proof_is_inconclusive(report):
    report["proof"] |= {"exact": False, "reason": "the control did not err"}
    assert "inconclusive: the control did not err" in verdict(read(report))
    assert "exact" not in verdict(read(report))


@pytest.mark.parametrize("missing", [None, math.nan])
def test_no_ap_is_not_evaluated(report, missing):
    for stage in report["stages"]:
        stage["mask_ap"] = stage["box_ap"] = missing
    assert ap_words(read(report)) == "AP not evaluated" and ap_change(read(report)) is None


def test_a_stage_without_ap_is_not_evaluated(report):
    report["stages"][2]["mask_ap"] = None
    assert ap_words(read(report)) == "mask AP baseline 54.0, pruned 10.0, fine-tuned not evaluated"


def test_a_missing_baseline_gives_no_change(report):
    del report["stages"][0]
    assert ap_words(read(report)) == "mask AP pruned 10.0, fine-tuned 53.6"


def test_boxes_count_where_there_are_no_masks(report):
    for stage in report["stages"]:
        stage["mask_ap"] = None
    assert ap_words(read(report)).startswith("box AP baseline 56.0, pruned 12.0")


def test_gain_and_standstill_are_named(report):
    report["stages"][2]["mask_ap"] = 55.0
    assert "1.0 points gained" in ap_words(read(report))
    report["stages"][2]["mask_ap"] = 54.04
    assert "nothing lost" in ap_words(read(report))


def test_the_continued_baseline_is_the_fair_comparison(report):
    control = report["stages"][0] | {"name": "continued baseline", "mask_ap": 55.1, "iterations": 9}
    report["stages"][2]["iterations"] = 9
    report["stages"].append(control)
    assert "trained on for as long has 55.1 (1.5 points lost)" in ap_words(read(report))
    assert ap_change(read(report)) == pytest.approx(-0.4)


def test_the_data_set_is_named(report):
    for stage in report["stages"]:
        stage |= {"test_set": "digits_val", "images": 1000}
    assert ap_words(read(report)).startswith("mask AP on digits_val, 1000 images: baseline 54.0")


def test_ap_on_another_data_set_is_not_compared(report):
    report["stages"][0] |= {"test_set": "digits_val"}
    report["stages"][1] |= {"test_set": "digits_val"}
    report["stages"][2] |= {"test_set": "digits_val_mini"}
    text = ap_words(read(report))
    assert "fine-tuned model was evaluated on 'digits_val_mini', the baseline on 'digits_val'" in text
    assert "lost" not in text and ap_change(read(report)) is None


def test_a_baseline_that_finds_nothing_is_said(report):
    report["stages"][0]["mask_ap"] = 0.0
    assert "the baseline finds nothing" in ap_words(read(report))
    report["stages"][0]["mask_ap"] = 0.1
    assert "finds nothing" not in ap_words(read(report))


def test_training_without_a_control_is_said_to_be_without(report):
    report["stages"][2] |= {"iterations": 1200, "seed": 1}
    text = ap_words(read(report))
    assert text.endswith("; one run of 1200 iterations, seed 1; not compared with a continued baseline")
    report["stages"].append(report["stages"][0] | {"name": "continued baseline", "iterations": 300})
    assert ap_words(read(report)).endswith("trained on for 300 iterations has 54.0 (0.4 points lost)")


def test_the_repair_is_told(report):
    assert "repaired" not in verdict(read(report))
    repair = {
        "layers": 9,
        "missed": [],
        "batches": 200,
        "before": 0.31,
        "after": 0.08,
        "proof": report["proof"],
    }
    report["repair"] = repair
    text = "9 layers that read removed channels were repaired on 200 batches (mean error of their outputs "
    assert f"{text}31.0% before, 8.0% after, exact)" in verdict(read(report))
    report["repair"] = repair | {"missed": ["a.b"], "proof": None}
    assert "200 batches, 1 could not be (mean" in verdict(read(report))


def test_without_stages_nothing_is_claimed(report):
    report["stages"] = []
    assert "AP not evaluated" in verdict(read(report))
