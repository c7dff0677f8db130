"""The report of a prune as one HTML file that needs no network and no files beside it."""

from __future__ import annotations

import base64
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from d2prune.errors import PruneError
from d2prune.files import atomic_write
from d2prune.report import verdict as wording
from d2prune.report.images import ImageRow
from d2prune.report.table import COLUMNS, MISSING, known, quantity, signed, stage_rows

Row = Mapping[str, Any]
FEW_LAYERS = 40
"""Up to so many layers the chart of widths starts unfolded."""


@dataclass(frozen=True)
class Tile:
    """One headline figure: ``tone`` is good, warn or plain, and never the only sign of it."""

    label: str
    figure: str
    note: str
    tone: str


def write_report(
    report: Mapping[str, Any], path: str | os.PathLike[str], images: Sequence[ImageRow] = ()
) -> None:
    """Writes the HTML report, whole or not at all; a file already there is replaced.

    Args:
        report: the content of pruning_report.json.
        path: of the HTML file; its folder exists.
        images: rows as :func:`d2prune.report.images.example_images` draws them.

    Raises:
        PruneError: the file cannot be written.
    """
    text = render(report, images)
    try:
        with atomic_write(path) as file:
            file.write(text)
    except OSError as error:
        raise PruneError(f"cannot write the report {str(path)!r}: {error.strerror}") from error


def render(report: Mapping[str, Any], images: Sequence[ImageRow] = ()) -> str:
    """The report as HTML text; everything that comes from outside is escaped."""
    engine = Environment(
        loader=PackageLoader("d2prune", "report"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    engine.filters.update(quantity=quantity, png=_data_uri)
    coverage = report["coverage"]
    return engine.get_template("report.html").render(
        report=report,
        verdict=wording.verdict(report),
        tiles=tiles(report),
        columns=COLUMNS,
        stages=stage_rows(report),
        charts=charts(coverage),
        unfold=sum(map(_counts, coverage)) <= FEW_LAYERS,
        whole=[row for row in left_whole(coverage) if row["macs"]],
        free=[row for row in left_whole(coverage) if not row["macs"]],
        pruned=[row for row in by_cost(coverage) if row["status"] == "pruned"],
        total=max(1, report["before"]["macs"]),
        images=images,
        facts={"What was asked for": _request(report), "Where it ran": _environment(report)},
    )


def tiles(report: Mapping[str, Any]) -> list[Tile]:
    """The headline: size, proof and AP."""
    return [_size_tile(report), _proof_tile(report), _ap_tile(report)]


def charts(coverage: Sequence[Row]) -> list[dict[str, Any]]:
    """Widths by the model's parts, in its own order, of the layers that cost MACs.

    The others (norms, scales) have the width of the layer that they follow.
    """
    rows = [row for row in coverage if _counts(row)]
    widest = max((row["before"] for row in rows), default=1)
    parts = groupby(rows, lambda row: row["name"].partition(".")[0])
    return [{"name": name, "widest": widest, "rows": list(layers)} for name, layers in parts]


def left_whole(coverage: Sequence[Row]) -> list[Row]:
    """Layers that lost nothing, the costliest first: where the most was forgone."""
    return [row for row in by_cost(coverage) if row["status"] != "pruned"]


def by_cost(coverage: Sequence[Row]) -> list[Row]:
    """Falling MACs; the model's order among equals."""
    return sorted(coverage, key=lambda row: -row["macs"])


def _counts(row: Row) -> bool:
    return row["macs"] > 0 and row["before"] > 0


def _data_uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")


def _size_tile(report: Mapping[str, Any]) -> Tile:
    before, after = (quantity(report[when]["macs"]) for when in ("before", "after"))
    fraction = wording.fraction_removed(report, "macs")
    return Tile("MACs removed", f"{fraction:.1%}", f"{before} → {after} per image", "plain")


def _proof_tile(report: Mapping[str, Any]) -> Tile:
    proof = report.get("proof")
    state = wording.proof_state(proof)
    note = "" if proof is None else f"error {proof['error']:.1e}, control {proof['control_error']:.1e}"
    return Tile("Proof", state, note, "good" if state == "exact" else "warn")


def _ap_tile(report: Mapping[str, Any]) -> Tile:
    metric, change = wording.ap_metric(report), wording.ap_change(report)
    if metric is None or change is None:
        return Tile("AP", "not evaluated", "", "warn")
    key, name = metric
    stages = [stage for stage in report["stages"] if stage["name"] != wording.CONTROL]
    figures = [known(stage.get(key)) for stage in stages]
    shown = " → ".join(MISSING if value is None else f"{value:.1f}" for value in figures)
    tone = "good" if change > -1 else "warn"
    return Tile(f"{name} against the baseline", f"{signed(change)} points", shown, tone)


def _request(report: Mapping[str, Any]) -> dict[str, str]:
    asked = {key: _plain(value) for key, value in report["request"].items()}
    return asked | {
        "reached": f"{report['reached']:.4f}",
        "input_size": _plain(report["input_size"]),
    }


def _environment(report: Mapping[str, Any]) -> dict[str, str]:
    return {key: _plain(value) for key, value in report["environment"].items()}


def _plain(value: Any) -> str:
    """Lists without brackets, and a dash for nothing."""
    if isinstance(value, (list, tuple)):
        inner = (": ".join(map(str, v)) if isinstance(v, (list, tuple)) else str(v) for v in value)
        return ", ".join(inner) or MISSING
    return MISSING if value in ("", None) else str(value)
