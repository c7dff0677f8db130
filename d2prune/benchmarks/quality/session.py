"""Many trials, one after the other: each is written down when it is done, and not done again."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from d2prune.benchmarks.quality.family import Family
from d2prune.benchmarks.quality.table import markdown
from d2prune.benchmarks.quality.trial import Trial, baseline, try_method
from d2prune.report.record import BASELINE

TRIALS, TABLE = "trials.jsonl", "quality.md"


def session(
    folder: Path,
    families: Sequence[Family],
    methods: Sequence[str],
    amounts: Sequence[float],
    seeds: Sequence[int],
    iterations: int,
) -> Iterator[Trial]:
    """Yield the trials that ``folder`` does not hold yet, in order; its table has all of them.

    Args:
        folder: gets trials.jsonl and quality.md.
        families: those that are tried, each by every one of the following.
        methods: names in METHODS.
        amounts: fractions of the MACs.
        seeds: of calibration images and training.
        iterations: of training after each prune.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / TRIALS
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    done = [Trial(**json.loads(line)) for line in lines]
    for family in families:
        for wanted in _wanted(family.name, methods, amounts, seeds, iterations):
            if any(trial.key == wanted.key for trial in done):
                continue
            done.append(_carried_out(family, wanted))
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(dataclasses.asdict(done[-1])) + "\n")
            (folder / TABLE).write_text(markdown(done), encoding="utf-8")
            yield done[-1]


def _wanted(
    family: str, methods: Sequence[str], amounts: Sequence[float], seeds: Sequence[int], iterations: int
) -> Iterator[Trial]:
    for seed in seeds:
        if iterations or seed == seeds[0]:  # without training, the baseline's score has no seed
            yield Trial(family, BASELINE, seed=seed, iterations=iterations)
        for amount in amounts:
            for method in methods:
                yield Trial(family, method, amount, seed, iterations=iterations)


def _carried_out(family: Family, wanted: Trial) -> Trial:
    if wanted.method == BASELINE:
        return baseline(family, wanted.seed, wanted.iterations)
    return try_method(family, wanted.method, wanted.amount, wanted.seed, wanted.iterations)
