"""Trials as Markdown."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Sequence

from d2prune.benchmarks.quality.trial import Trial
from d2prune.pruning.budget import Scores
from d2prune.report.record import BASELINE

STUDENT = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78}
"""Two-sided 95% quantiles of Student's t, by the number of trials."""


def markdown(trials: Sequence[Trial]) -> str:
    """Return a table: a line for each family, method and amount, with all metrics, means over seeds."""
    lines = [
        "| model | method | MACs | at once | of the baseline's | iterations | trained | seeds | s |",
        "|" + "---|" * 9,
    ]
    rows: dict[tuple[str, str, float, int], list[Trial]] = defaultdict(list)
    for trial in trials:
        rows[trial.family, trial.method, trial.amount, trial.iterations].append(trial)
    for (family, method, amount, iterations), same in rows.items():
        whole = [t.cut for t in trials if t.family == family and t.method == BASELINE]
        if same[0].refused:
            lines.append(f"| {family} | {method} | −{amount:.0%} | refused: {same[0].refused} |" + " |" * 5)
            continue
        cells = (
            family,
            method,
            f"−{amount:.0%}" if amount else "",
            _cell([t.cut for t in same]),
            _kept(same, whole) if amount else "",
            str(iterations or ""),
            _cell([t.tuned for t in same]) if iterations else "",
            str(len(same)),
            f"{statistics.mean(t.seconds for t in same):.0f}" if amount else "",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _cell(scores: Sequence[Scores]) -> str:
    """Return "mask / box" and the like: each mean, with half of its 95% interval where there are several."""
    return " / ".join(_interval([row[name] for row in scores]) for name in reversed(list(scores[0])))


def _interval(values: Sequence[float]) -> str:
    mean = f"{statistics.mean(values):.1f}"
    if len(values) < 2:
        return mean
    half = STUDENT.get(len(values), 1.96) * statistics.stdev(values) / len(values) ** 0.5
    return f"{mean} ± {half:.1f}"


def _kept(trials: Sequence[Trial], baselines: Sequence[Scores]) -> str:
    if not baselines:
        return ""
    means = {n: statistics.mean(t.cut[n] for t in trials) for n in trials[0].cut}
    return " / ".join(f"{means[name] / baselines[0][name]:.0%}" for name in reversed(list(means)))
