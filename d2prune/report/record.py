"""The report of a prune: what was asked for, what came of it, and one stage per evaluated model."""

from __future__ import annotations

import dataclasses
import inspect
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

from d2prune.core.plan.ranking import Sensitivity
from d2prune.core.types import Coverage, Proof, Totals
from d2prune.files import atomic_write
from d2prune.pruning import Point, PruneResult, Repair, Tried
from d2prune.pruning.latency import Timed
from d2prune.report.machine import environment
from d2prune.report.timing import Latency

REPORT_FILE = "pruning_report.json"
BASELINE, PRUNED, FINE_TUNED, CONTROL = "baseline", "pruned", "fine-tuned", "continued baseline"
Record = TypeVar("Record")


@dataclass(frozen=True)
class Stage:
    """One evaluated model: a row of the report's table.

    Attributes:
        name: "baseline", "pruned", "fine-tuned", …
        params, macs: its size; MACs of one image.
        box_ap, mask_ap: AP, 0..100; None where it was not evaluated.
        latency_ms: times of the network alone; None where it was not timed.
        weights: path of the checkpoint.
        iterations: trained in this stage; None without training.
        test_set: the data set that AP was evaluated on; empty where it was not, or in older reports.
        images: how many images it has.
        seed: of the run, if it was set.
        end_to_end_ms: times with pre- and postprocessing, on real images; None where it was not timed.
    """

    name: str
    params: int
    macs: int
    box_ap: float | None = None
    mask_ap: float | None = None
    latency_ms: Latency | None = None
    weights: str = ""
    iterations: int | None = None
    test_set: str = ""
    images: int | None = None
    seed: int | None = None
    end_to_end_ms: Latency | None = None

    @property
    def evaluated(self) -> bool:
        """Whether the stage has any AP."""
        return self.box_ap is not None or self.mask_ap is not None


@dataclass(frozen=True)
class Detections:
    """How many detections of the masked and the pruned model match, end to end, on how many images."""

    masked: int
    pruned: int
    matched: int
    score: float
    images: int


@dataclass(frozen=True)
class Repairs:
    """The repair of a pruned model in sum.

    Attributes:
        layers: how many were repaired.
        missed: layers that read removed channels and were not.
        batches: on how many batches.
        before, after: mean squared error of the repaired layers' outputs, by their variance.
        proof: that the repaired model equals the one repaired at full width; None where it was switched off.
    """

    layers: int
    missed: tuple[str, ...]
    batches: int
    before: float
    after: float
    proof: Proof | None


@dataclass(frozen=True)
class Report:
    """The content of pruning_report.json.

    Attributes:
        base: class of the model that was pruned.
        request: what was asked for, as plain values.
        reached: fraction of the request's target that was removed.
        before, after: of the whole model.
        proof: None where it was switched off.
        coverage: one row per layer.
        input_size: (height, width) that MACs are counted on.
        environment: where it ran.
        stages: the evaluated models, in the order of their making.
        detections: None where detections were not compared.
        repair: what was done to the weights; None where nothing was.
        tried: the ways to prune that "auto" chose from.
        curve: the cuts that a budget was found by.
        sensitivities: of each group that was open to pruning.
        latency: as it was predicted and measured, with target "latency".
        version: of the format.
    """

    base: str
    request: Mapping[str, Any]
    reached: float
    before: Totals
    after: Totals
    proof: Proof | None
    coverage: tuple[Coverage, ...]
    input_size: tuple[int, ...]
    environment: Mapping[str, Any]
    stages: tuple[Stage, ...] = ()
    detections: Detections | None = None
    repair: Repairs | None = None
    tried: tuple[Tried, ...] = ()
    curve: tuple[Point, ...] = ()
    sensitivities: tuple[Sensitivity, ...] = ()
    latency: Timed | None = None
    version: int = 1

    def stage(self, name: str) -> Stage | None:
        """Return the stage of that name; None if there is none."""
        return next((stage for stage in self.stages if stage.name == name), None)

    def with_stage(self, stage: Stage) -> Report:
        """Return the report with one more stage, in place of one of the same name."""
        others = tuple(other for other in self.stages if other.name != stage.name)
        return dataclasses.replace(self, stages=(*others, stage))

    def to_json(self) -> str:
        """Return the report as text.

        Raises:
            ValueError: for a number that JSON lacks.
        """
        return json.dumps(dataclasses.asdict(self), indent=1, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Report:
        """Read what :meth:`to_json` wrote; keys of later versions are passed over."""
        data = json.loads(text)
        nested: dict[str, Any] = {
            "before": _read(Totals, data["before"]),
            "after": _read(Totals, data["after"]),
            "proof": _read_proof(data.get("proof")),
            "coverage": tuple(_read(Coverage, row) for row in data["coverage"]),
            "stages": tuple(_read_stage(row) for row in data["stages"]),
            "detections": _read(Detections, data["detections"]) if data.get("detections") else None,
            "repair": _read_repair(data.get("repair")),
            "latency": _read(Timed, data["latency"]) if data.get("latency") else None,
            "tried": tuple(_read(Tried, row) for row in data.get("tried", ())),
            "curve": tuple(_read(Point, row) for row in data.get("curve", ())),
            "sensitivities": tuple(
                _read(Sensitivity, {**row, "errors": tuple(row["errors"])})
                for row in data.get("sensitivities", ())
            ),
        }
        return _read(cls, {**data, **nested, "input_size": tuple(data["input_size"])})


def _read(record: type[Record], data: Mapping[str, Any]) -> Record:
    known = inspect.signature(record).parameters
    return record(**{key: value for key, value in data.items() if key in known})


def _read_proof(data: Mapping[str, Any] | None) -> Proof | None:
    names = ("compared", "inputs", "constant")  # the last two are missing in older reports
    return _read(Proof, {**data, **{name: tuple(data.get(name, ())) for name in names}}) if data else None


def _read_repair(data: Mapping[str, Any] | None) -> Repairs | None:
    if not data:
        return None
    proof = _read_proof(data.get("proof"))
    return _read(Repairs, {**data, "missed": tuple(data["missed"]), "proof": proof})


def _read_stage(data: Mapping[str, Any]) -> Stage:
    times = {name: data.get(name) for name in ("latency_ms", "end_to_end_ms")}  # older reports have the first
    read = {name: _read(Latency, found) if found else None for name, found in times.items()}
    return _read(Stage, {**data, **read})


def report_of(result: PruneResult[Any], size: tuple[int, int], device: torch.device) -> Report:
    """Return the report of a prune, without stages: these are added as they are evaluated."""
    return Report(
        base=result.spec.base,
        request=dataclasses.asdict(result.request),
        reached=result.reached,
        before=result.before,
        after=result.after,
        proof=result.proof,
        coverage=result.coverage,
        input_size=size,
        environment=environment(device),
        repair=_repairs(result.repair),
        tried=tuple(one for one in result.tried if math.isfinite(one.cost)),  # JSON has no others
        curve=result.curve,
        sensitivities=result.sensitivities,
        latency=result.latency,
    )


def _repairs(repair: Repair | None) -> Repairs | None:
    if repair is None:
        return None
    done = [layer for layer in repair.layers if not layer.reason]
    return Repairs(
        layers=len(done),
        missed=tuple(layer.layer for layer in repair.layers if layer.reason),
        batches=repair.batches,
        before=_mean([layer.before for layer in done]),
        after=_mean([layer.after for layer in done]),
        proof=repair.proof,
    )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def stage_of(
    name: str, totals: Totals, results: Mapping[str, Any], weights: str, iterations: int | None = None
) -> Stage:
    """Return a stage, with the AP of what the trainer's ``test`` returned."""
    aps = average_precision(results)
    return Stage(
        name, totals.params, totals.macs, aps.get("bbox"), aps.get("segm"), None, weights, iterations
    )


def average_precision(results: Mapping[str, Any]) -> dict[str, float]:
    """Return AP by task ("bbox", "segm", …) of the first data set that has any; empty if there is none.

    COCOEvaluator reports NaN for a model without a single detection: that is an AP of 0.
    """
    scores = {
        task: 0.0 if math.isnan(metrics["AP"]) else float(metrics["AP"])
        for task, metrics in results.items()
        if isinstance(metrics, Mapping) and isinstance(metrics.get("AP"), (int, float))
    }
    if scores:
        return scores
    nested = (average_precision(inner) for inner in results.values() if isinstance(inner, Mapping))
    return next((inner for inner in nested if inner), {})


def write_report_json(report: Report, folder: str | os.PathLike[str]) -> None:
    """Write pruning_report.json, whole or not at all."""
    text = report.to_json()
    with atomic_write(Path(folder) / REPORT_FILE) as file:
        file.write(text)


def read_report_json(folder: str | os.PathLike[str]) -> Report | None:
    """Read the report beside a pruned checkpoint; None if it is gone."""
    path = Path(folder) / REPORT_FILE
    return Report.from_json(path.read_text(encoding="utf-8")) if path.is_file() else None
