"""What a prune came to, in words: no more than was measured, and nothing left out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from d2prune.core.types import Proof
from d2prune.report.record import BASELINE, CONTROL, Repairs, Report, Stage
from d2prune.report.table import known


@dataclass(frozen=True)
class Metric:
    """An AP to judge by: its name, and what reads it off a stage."""

    name: str
    read: Callable[[Stage], float | None]

    def of(self, stage: Stage | None) -> float | None:
        """Return the stage's AP; None where it was not evaluated."""
        return known(self.read(stage)) if stage else None


METRICS = (Metric("mask AP", lambda stage: stage.mask_ap), Metric("box AP", lambda stage: stage.box_ap))


def verdict(report: Report) -> str:
    """Say in one sentence what was removed, whether that is proved exact, and what it cost in AP."""
    parts = [
        removed(report),
        latency_words(report),
        proof_words(report.proof),
        repair_words(report.repair),
        detection_words(report),
        ap_words(report),
    ]
    return "; ".join(part for part in parts if part) + "."


def removed(report: Report) -> str:
    """Name the fractions of MACs and parameters that went."""
    macs = fraction_removed(report.before.macs, report.after.macs)
    params = fraction_removed(report.before.params, report.after.params)
    return f"{macs:.1%} of the MACs and {params:.1%} of the parameters of {report.base} were removed"


def latency_words(report: Report) -> str:
    """Say what latency was predicted and measured; empty where it was not asked for."""
    timed = report.latency
    if timed is None:
        return ""
    return (
        f"its dense part takes {timed.after:.1f} ms in place of {timed.before:.1f} (x{timed.ratio:.2f}, "
        f"x{timed.predicted:.2f} was predicted)"
    )


def fraction_removed(before: float, after: float) -> float:
    """Return 1 - after / before; negative if it grew."""
    return 1 - after / before if before else 0.0


def proof_state(proof: Proof | None) -> str:
    """Return "exact", "inconclusive" or "not proved"."""
    if proof is None:
        return "not proved"
    return "exact" if proof.exact else "inconclusive"


def proof_words(proof: Proof | None) -> str:
    """Give the proof with its figures, or say why there is none."""
    if proof is None:
        return "not proved (the proof was switched off)"
    figures = f"{proof.error:.1e} of an output's largest value in {proof.dtype}"
    if not proof.exact:
        return f"the proof is inconclusive: {proof.reason or 'no reason given'} (error {figures})"
    return (
        "the prune is proved exact: the pruned and the masked model differ by at most "
        f"{figures} over {len(proof.compared)} outputs (control: {proof.control_error:.2g})"
    )


def repair_words(repair: Repairs | None) -> str:
    """Say what the repair did, and whether it is proved; empty without one."""
    if repair is None:
        return ""
    missed = f", {len(repair.missed)} could not be" if repair.missed else ""
    state = "" if repair.proof is None else f", {proof_state(repair.proof)}"
    return (
        f"{repair.layers} layers that read removed channels were repaired on {repair.batches} batches{missed}"
        f" (mean error of their outputs {repair.before:.1%} before, {repair.after:.1%} after{state})"
    )


def detection_words(report: Report) -> str:
    """Compare the masked and the pruned model's detections, end to end; empty where they were not."""
    found = report.detections
    if found is None:
        return ""
    where = f"on {found.images} images in float32"
    if not found.masked and not found.pruned:
        return f"neither detects anything {where}"
    both = f"{found.matched} of {max(found.masked, found.pruned)} detections"
    return f"end to end, {both} are the same {where}"


def ap_metric(report: Report) -> Metric | None:
    """Return the AP to judge by: of masks where they were evaluated, else of boxes."""
    return next((m for m in METRICS if any(m.of(stage) is not None for stage in report.stages)), None)


def ap_change(report: Report) -> float | None:
    """Return the last stage's AP less the baseline's, in points.

    None where either is not evaluated, or they are on different data sets.
    """
    metric = ap_metric(report)
    if metric is None:
        return None
    return _change(metric, report.stage(BASELINE), _last(report))


def _change(metric: Metric, one: Stage | None, other: Stage | None) -> float | None:
    before, after = metric.of(one), metric.of(other)
    if one is None or other is None or before is None or after is None or one.test_set != other.test_set:
        return None
    return after - before


def ap_words(report: Report) -> str:
    """Give the AP of every stage, on what, and what must not be read into it."""
    metric = ap_metric(report)
    if metric is None:
        return "AP not evaluated"
    figures = ", ".join(f"{stage.name} {_shown(metric.of(stage))}" for stage in judged(report))
    change, last = ap_change(report), _last(report)
    loss = f": {_points(change)} by the {last.name} model" if change is not None and last else ""
    return f"{metric.name}{_where(report)} {figures}{loss}{_cautions(report, metric)}"


def judged(report: Report) -> list[Stage]:
    """Return all stages but the control."""
    return [stage for stage in report.stages if stage.name != CONTROL]


def _where(report: Report) -> str:
    """Name the data set of the first stage that was evaluated, with its images."""
    stage = next((stage for stage in report.stages if stage.evaluated), None)
    if stage is None or not stage.test_set:
        return ""
    images = f", {stage.images} images" if stage.images is not None else ""
    return f" on {stage.test_set}{images}:"


def _cautions(report: Report, metric: Metric) -> str:
    """Return the sentences that keep the figures from saying more than they do."""
    found = [*_unlike(report, metric), *_no_baseline(report, metric), *_control(report, metric)]
    return "".join(f"; {text}" for text in found)


def _unlike(report: Report, metric: Metric) -> list[str]:
    base = report.stage(BASELINE)
    return [
        f"the {stage.name} model was evaluated on '{stage.test_set}', the baseline on '{base.test_set}', so "
        "they are not compared"
        for stage in report.stages
        if base and metric.of(stage) is not None and metric.of(base) is not None
        and stage.test_set != base.test_set
    ]  # fmt: skip


def _no_baseline(report: Report, metric: Metric) -> list[str]:
    if metric.of(report.stage(BASELINE)) != 0:
        return []
    return ["the baseline finds nothing, so nothing can be lost: are its weights trained for this data set?"]


def _control(report: Report, metric: Metric) -> list[str]:
    """Fine-tuning is more training too: what the baseline gains from as much of it."""
    control, last = report.stage(CONTROL), _last(report)
    if last is None or not last.iterations:
        return []
    seed = "" if last.seed is None else f", seed {last.seed}"
    once = f"one run of {last.iterations} iterations{seed}"
    change = _change(metric, control, last)
    if control is None or change is None:
        return [once, "not compared with a continued baseline"]
    length = (
        "as long" if control.iterations in (None, last.iterations) else f"{control.iterations} iterations"
    )
    return [
        f"{once}; the baseline trained on for {length} has {_shown(metric.of(control))} ({_points(change)})"
    ]


def _points(change: float) -> str:
    if abs(change) < 0.05:
        return "nothing lost"
    return f"{abs(change):.1f} points {'lost' if change < 0 else 'gained'}"


def _shown(value: float | None) -> str:
    return "not evaluated" if value is None else f"{value:.1f}"


def _last(report: Report) -> Stage | None:
    """Return the latest stage that is a pruned model."""
    return next((s for s in reversed(report.stages) if s.name not in {BASELINE, CONTROL}), None)
