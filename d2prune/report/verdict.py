"""What a prune came to, in words: no more than was measured, and nothing left out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from d2prune.report.table import known

Stage = Mapping[str, Any]
CONTROL = "continued baseline"


def verdict(report: Mapping[str, Any]) -> str:
    """One sentence: what was removed, whether the prune is proved exact, and what it cost in AP."""
    parts = [removed(report), proof_words(report.get("proof")), detection_words(report), ap_words(report)]
    return "; ".join(part for part in parts if part) + "."


def removed(report: Mapping[str, Any]) -> str:
    """Fractions of MACs and parameters that went."""
    macs, params = (fraction_removed(report, key) for key in ("macs", "params"))
    parts = f"{macs:.1%} of the MACs and {params:.1%} of the parameters"
    return f"{parts} of {report['base']} were removed"


def fraction_removed(report: Mapping[str, Any], key: str) -> float:
    """1 - after / before of "macs" or "params"; negative if it grew."""
    before = report["before"][key]
    return 1 - report["after"][key] / before if before else 0.0


def proof_state(proof: Mapping[str, Any] | None) -> str:
    """One of "exact", "inconclusive" and "not proved"."""
    if proof is None:
        return "not proved"
    return "exact" if proof["exact"] else "inconclusive"


def proof_words(proof: Mapping[str, Any] | None) -> str:
    """The proof with its figures, or why there is none."""
    if proof is None:
        return "not proved (the proof was switched off)"
    figures = f"{proof['error']:.1e} of an output's largest value in {proof['dtype']}"
    if not proof["exact"]:
        reason = proof.get("reason") or "no reason given"
        return f"the proof is inconclusive: {reason} (error {figures})"
    return (
        "the prune is proved exact: the pruned and the masked model differ by at most "
        f"{figures} over {len(proof['compared'])} outputs (control: {proof['control_error']:.2g})"
    )


def detection_words(report: Mapping[str, Any]) -> str:
    """How the masked and the pruned model's detections compare, end to end; empty where they were not."""
    found = report.get("detections")
    if not found:
        return ""
    where = f"on {found['images']} images in float32"
    if not found["masked"] and not found["pruned"]:
        return f"neither detects anything {where}"
    both = f"{found['matched']} of {max(found['masked'], found['pruned'])} detections"
    return f"end to end, {both} are the same {where}"


def ap_metric(report: Mapping[str, Any]) -> tuple[str, str] | None:
    """Key and name of the AP to judge by: masks where they were evaluated, else boxes."""
    for key, name in (("mask_ap", "mask AP"), ("box_ap", "box AP")):
        if any(_ap(stage, key) is not None for stage in report.get("stages", ())):
            return key, name
    return None


def ap_change(report: Mapping[str, Any]) -> float | None:
    """AP of the last stage less the baseline's, in points; None where either is not evaluated."""
    metric = ap_metric(report)
    if metric is None:
        return None
    base, last = _find(report, "baseline"), _last(report)
    values = [_ap(stage, metric[0]) for stage in (base, last)]
    return None if None in values or base is last else values[1] - values[0]


def ap_words(report: Mapping[str, Any]) -> str:
    """AP of every stage in plain words; what was not evaluated is said to be so."""
    metric = ap_metric(report)
    if metric is None:
        return "AP not evaluated"
    key, name = metric
    stages = [stage for stage in report["stages"] if stage["name"] != CONTROL]
    figures = ", ".join(f"{stage['name']} {_shown(_ap(stage, key))}" for stage in stages)
    change = ap_change(report)
    loss = f": {_points(change)} by the {_last(report)['name']} model" if change is not None else ""
    return f"{name} {figures}{loss}{_against_control(report, key)}"


def _against_control(report: Mapping[str, Any], key: str) -> str:
    """Fine-tuning is more training too: what the baseline gains from as much of it."""
    control = _ap(_find(report, CONTROL), key)
    last = _ap(_last(report), key)
    if control is None or last is None:
        return ""
    return f"; the baseline trained on for as long has {control:.1f} ({_points(last - control)})"


def _points(change: float) -> str:
    if abs(change) < 0.05:
        return "nothing lost"
    return f"{abs(change):.1f} points {'lost' if change < 0 else 'gained'}"


def _shown(value: float | None) -> str:
    return "not evaluated" if value is None else f"{value:.1f}"


def _ap(stage: Stage | None, key: str) -> float | None:
    return known(stage.get(key)) if stage else None


def _find(report: Mapping[str, Any], name: str) -> Stage | None:
    return next((stage for stage in report.get("stages", ()) if stage["name"] == name), None)


def _last(report: Mapping[str, Any]) -> Stage | None:
    """The latest stage that is a pruned model."""
    rest = [s for s in report.get("stages", ()) if s["name"] not in {"baseline", CONTROL}]
    return rest[-1] if rest else None
