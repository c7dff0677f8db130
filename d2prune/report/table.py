"""Tables in plain text: the stages of a prune, and a benchmark."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from d2prune.report.record import BASELINE, PRUNED, Report, Stage
from d2prune.report.timing import Latency

Show = Callable[[float], str]
Compare = Callable[[float, float], str]
MISSING = "—"
MINUS = "−"
COLUMNS = ("params", "MACs", "box AP", "mask AP", "network, batch 1", "end to end")


@dataclass(frozen=True)
class Cell:
    """A figure, and how it compares with the baseline's; either may be empty."""

    value: str
    change: str = ""

    def __str__(self) -> str:
        return f"{self.value} ({self.change})" if self.change else self.value


@dataclass(frozen=True)
class StageRow:
    """One stage with its cells in the order of ``COLUMNS``."""

    name: str
    cells: tuple[Cell, ...]


def stage_rows(report: Report) -> list[StageRow]:
    """Return the stages of a report, each figure with its change against the baseline.

    The baseline is the stage of that name, else the first. What was not measured is a dash; AP on different
    data sets is not compared.
    """
    stages = report.stages or _unmeasured(report)
    base = next((stage for stage in stages if stage.name == BASELINE), stages[0])
    return [StageRow(stage.name, _cells(stage, None if stage is base else base)) for stage in stages]


def stage_table(report: Report) -> str:
    """Return the table that the log, the demo and the README show."""
    rows = stage_rows(report)
    body = [[row.name, *(str(cell) for cell in row.cells)] for row in rows]
    return aligned([["", *COLUMNS], *body])


def latency_table(results: Mapping[str, Latency], environment: Mapping[str, Any]) -> str:
    """Return a benchmark as text, with what :func:`d2prune.report.machine.environment` tells."""
    heads = ["", "median, ms", "min", "max", "ratio to the first", "half of the ratios", "runs"]
    body = [
        [
            name,
            *(f"{value:.2f}" for value in (time.median, time.min, time.max)),
            f"{time.ratio:.3f}",
            f"{time.ratio_low:.3f}–{time.ratio_high:.3f}",
            str(time.runs),
        ]
        for name, time in results.items()
    ]
    where = ", ".join(f"{key} {environment[key]}" for key in ("threads", "torch", "detectron2", "d2prune"))
    return f"{aligned([heads, *body])}\n{environment['device']}; {where}"


def aligned(rows: Sequence[Sequence[str]], left: Sequence[int] = (0,)) -> str:
    """Align columns under a rule: those numbered in ``left`` to the left, others to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]

    def line(row: Sequence[str]) -> str:
        places = enumerate(zip(row, widths, strict=True))
        cells = [text.ljust(width) if i in left else text.rjust(width) for i, (text, width) in places]
        return "  ".join(cells).rstrip()

    rule = "  ".join("-" * width for width in widths)
    return "\n".join([line(rows[0]), rule, *map(line, rows[1:])])


def known(value: float | None) -> float | None:
    """Return a measured figure; None for one that is missing or, as COCO's for empty sets, not finite."""
    return None if value is None or not math.isfinite(value) else value


def quantity(value: float | None) -> str:
    """Return a count in thousands, millions or billions, three significant digits: "3.25 M"."""
    value = known(value)
    if value is None:
        return MISSING
    for unit, factor in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        # 999,600 reads 1.00 M: decided on what is shown, not on what is stored
        if float(f"{value:.3g}") >= factor:
            digits = 2 - int(math.floor(math.log10(float(f"{value / factor:.3g}"))))
            return f"{value / factor:.{max(0, digits)}f} {unit}"
    return f"{value:.0f}"


def signed(value: float, digits: int = 1) -> str:
    """Write a number with its sign, a true minus, and no sign where it rounds to zero."""
    text = f"{abs(value):.{digits}f}"
    if float(text) == 0:
        return text
    return f"{MINUS if value < 0 else '+'}{text}"


def _unmeasured(report: Report) -> tuple[Stage, ...]:
    """Return the stages before and after a prune that nothing evaluated."""
    before, after = report.before, report.after
    return Stage(BASELINE, before.params, before.macs), Stage(PRUNED, after.params, after.macs)


def _cells(stage: Stage, base: Stage | None) -> tuple[Cell, ...]:
    same = base if base and base.test_set == stage.test_set else None

    def cell(
        read: Callable[[Stage], float | None], show: Show, compare: Compare, base: Stage | None = base
    ) -> Cell:
        value, before = known(read(stage)), known(read(base)) if base else None
        if value is None:
            return Cell(MISSING)
        return Cell(show(value), "" if before is None else compare(value, before))

    return (
        cell(lambda one: one.params, quantity, _percent),
        cell(lambda one: one.macs, quantity, _percent),
        cell(lambda one: one.box_ap, "{:.1f}".format, _points, same),
        cell(lambda one: one.mask_ap, "{:.1f}".format, _points, same),
        _latency(stage.latency_ms, base),
        _latency(stage.end_to_end_ms, base),
    )


def _percent(value: float, before: float) -> str:
    return f"{signed(100 * (value / before - 1))}%" if before else ""


def _points(value: float, before: float) -> str:
    return signed(value - before)


def _latency(times: Latency | None, base: Stage | None) -> Cell:
    if times is None:
        return Cell(MISSING)
    ratio = known(times.ratio) if base else None
    return Cell(f"{times.median:.1f} ms", "" if ratio is None else f"×{ratio:.2f}")
