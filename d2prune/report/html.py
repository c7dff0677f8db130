"""The report of a prune as one HTML file that needs no network and no files beside it."""

from __future__ import annotations

import base64
import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined

from d2prune.core.plan.ranking import Sensitivity
from d2prune.core.types import Coverage
from d2prune.files import atomic_write
from d2prune.report import verdict as wording
from d2prune.report.images import ImageRow
from d2prune.report.record import Report
from d2prune.report.table import COLUMNS, MISSING, quantity, signed, stage_rows

FEW_LAYERS = 40
"""Up to so many layers the chart of widths starts unfolded."""


@dataclass(frozen=True)
class Tile:
    """One headline figure: ``tone`` is good, warn or plain, and never the only sign of it."""

    label: str
    figure: str
    note: str
    tone: str


@dataclass(frozen=True)
class Chart:
    """Widths of the layers of one part of the model, and the widest of the whole model."""

    name: str
    widest: int
    rows: tuple[Coverage, ...]


@dataclass(frozen=True)
class Line:
    """A group's error against its width, as a path of a picture 100 wide and 40 high, and the width taken.

    Attributes:
        name: of the group.
        path: the points of the curve, for SVG.
        x, y: of the width that was taken.
        widths: before and after, in words.
        error: what this width adds.
    """

    name: str
    path: str
    x: float
    y: float
    widths: str
    error: float


def write_report(report: Report, path: str | os.PathLike[str], images: Sequence[ImageRow] = ()) -> None:
    """Write the HTML report, whole or not at all; a file already there is replaced.

    Args:
        report: what to show.
        path: of the HTML file; its folder exists.
        images: rows as :func:`d2prune.report.images.example_images` draws them.

    Raises:
        PruneError: the file cannot be written.
    """
    text = render(report, images)
    with atomic_write(path) as file:
        file.write(text)


def render(report: Report, images: Sequence[ImageRow] = ()) -> str:
    """Return the report as HTML text; everything that comes from outside is escaped."""
    engine = Environment(
        loader=PackageLoader("d2prune", "report"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    engine.filters.update(quantity=quantity, png=_data_uri)
    coverage = report.coverage
    return engine.get_template("report.html").render(
        report=report,
        verdict=wording.verdict(report),
        tiles=tiles(report),
        columns=COLUMNS,
        stages=stage_rows(report),
        charts=charts(coverage),
        unfold=sum(map(_counts, coverage)) <= FEW_LAYERS,
        whole=[row for row in left_whole(coverage) if row.macs],
        free=[row for row in left_whole(coverage) if not row.macs],
        pruned=[row for row in by_cost(coverage) if row.status == "pruned"],
        total=max(1, report.before.macs),
        images=images,
        tried=report.tried,
        least=min((one.cost for one in report.tried), default=0.0),
        curve=report.curve,
        lines=lines(report.sensitivities),
        facts=_facts(report),
    )


def tiles(report: Report) -> list[Tile]:
    """Return the headline: size, proof and AP."""
    return [_size_tile(report), _proof_tile(report), _ap_tile(report)]


def charts(coverage: Sequence[Coverage]) -> list[Chart]:
    """Chart widths by the model's parts, in its own order, of the layers that cost MACs.

    The others (norms, scales) have the width of the layer that they follow.
    """
    rows = [row for row in coverage if _counts(row)]
    widest = max((row.before for row in rows), default=1)
    parts = groupby(rows, lambda row: row.name.partition(".")[0])
    return [Chart(name, widest, tuple(layers)) for name, layers in parts]


def lines(sensitivities: Sequence[Sensitivity]) -> list[Line]:
    """Draw every group's error against the fraction of it that is gone, all on one scale.

    The scale ends at twice the largest error that was taken, so that what was decided fills the pictures.
    """
    taken = [_error_at(one, 1 - one.kept / one.units) for one in sensitivities]
    most = 2 * max(taken, default=0.0)
    found = []
    for one, error in zip(sensitivities, taken, strict=True):
        steps = len(one.errors) - 1
        points = [(100 * i / steps, _height(value, most)) for i, value in enumerate(one.errors)]
        gone = 1 - one.kept / one.units
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        widths = f"{one.units} → {one.kept}" if one.kept < one.units else f"{one.units} whole"
        found.append(Line(one.group, path, 100 * gone, _height(error, most), widths, error))
    return found


def _error_at(one: Sensitivity, gone: float) -> float:
    return float(np.interp(gone, np.linspace(0, 1, len(one.errors)), one.errors))


def _height(error: float, most: float) -> float:
    return 40 * (1 - min(error / most, 1.0)) if most > 0 else 40.0


def left_whole(coverage: Sequence[Coverage]) -> list[Coverage]:
    """Return the layers that lost nothing, the costliest first: where the most was forgone."""
    return [row for row in by_cost(coverage) if row.status != "pruned"]


def by_cost(coverage: Sequence[Coverage]) -> list[Coverage]:
    """Sort by falling MACs; equals stay in the model's order."""
    return sorted(coverage, key=lambda row: -row.macs)


def _counts(row: Coverage) -> bool:
    return row.macs > 0 and row.before > 0


def _data_uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")


def _size_tile(report: Report) -> Tile:
    before, after = report.before.macs, report.after.macs
    fraction = wording.fraction_removed(before, after)
    note = f"{quantity(before)} → {quantity(after)} per image"
    return Tile("MACs removed", f"{fraction:.1%}", note, "plain")


def _proof_tile(report: Report) -> Tile:
    proof, state = report.proof, wording.proof_state(report.proof)
    note = "" if proof is None else f"error {proof.error:.1e}, control {proof.control_error:.1e}"
    return Tile("Proof", state, note, "good" if state == "exact" else "warn")


def _ap_tile(report: Report) -> Tile:
    metric, change = wording.ap_metric(report), wording.ap_change(report)
    if metric is None or change is None:
        return Tile("AP", "not evaluated", "", "warn")
    figures = [metric.of(stage) for stage in wording.judged(report)]
    shown = " → ".join(MISSING if value is None else f"{value:.1f}" for value in figures)
    tone = "good" if change > -1 else "warn"
    return Tile(f"{metric.name} against the baseline", f"{signed(change)} points", shown, tone)


def _facts(report: Report) -> dict[str, dict[str, str]]:
    reached = {"reached": f"{report.reached:.4f}", "input_size": report.input_size}
    facts = {"What was asked for": {**report.request, **reached}, "Where it ran": report.environment}
    return {title: {key: _plain(value) for key, value in rows.items()} for title, rows in facts.items()}


def _plain(value: Any) -> str:
    """Lists without brackets, and a dash for nothing."""
    if isinstance(value, (list, tuple)):
        inner = (": ".join(map(str, v)) if isinstance(v, (list, tuple)) else str(v) for v in value)
        return ", ".join(inner) or MISSING
    return MISSING if value in ("", None) else str(value)
