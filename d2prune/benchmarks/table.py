"""The zoo as a Markdown table."""

from __future__ import annotations

from collections.abc import Sequence

from d2prune.benchmarks.row import OK, Row

HEAD = (
    "architecture", "MACs", "parameters", "error", "control", "runs", "trains", "reloads", "s", "GB",
    "plain torch-pruning",
)  # fmt: skip


def markdown(rows: Sequence[Row]) -> str:
    """Return one line an architecture; what went wrong in its own words."""
    lines = [HEAD, tuple("---" for _ in HEAD), *(_cells(row) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def _cells(row: Row) -> tuple[str, ...]:
    peer = "works" if row.peer == OK else row.peer
    if row.refused:
        return (row.name, f"refused: {row.refused}", *[""] * (len(HEAD) - 3), peer)
    return (
        row.name,
        f"−{row.macs:.1%}",
        f"−{row.params:.1%}",
        f"{row.error:.0e}",
        f"{row.control:.0e}",
        *("yes" if text == OK else text for text in (row.runs, row.trains, row.reloads)),
        f"{row.seconds:.1f}",
        f"{row.peak_gb:.1f}",
        peer,
    )
