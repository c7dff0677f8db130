"""Cuts tried one at a time: prune, train for a little, evaluate, keep it or roll back."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from detectron2.config import CfgNode

from d2prune.checkpoint import build_from_cfg
from d2prune.engine.settings import FINAL_FILE, trace_input_from_cfg
from d2prune.errors import PruneError
from d2prune.pruning import find_groups
from d2prune.pruning.budget import Scores
from d2prune.recipes.changes import changes_between
from d2prune.recipes.execution import keys_of, request_of
from d2prune.recipes.recipe import Recipe, Step, narrowed
from d2prune.recipes.what_if import outline
from d2prune.report.record import BASELINE, FINE_TUNED, PRUNED, Stage, read_report_json
from d2prune.report.table import MISSING, aligned, quantity, signed

logger = logging.getLogger(__name__)
KEPT = "kept"
PRUNE_AND_TRAIN = {"MODEL.PRUNE": True, "MODEL.FINETUNE": True}


class _Trainer(Protocol):
    def resume_or_load(self, resume: bool) -> None: ...

    def train(self) -> Any: ...


@dataclass(frozen=True)
class Trial:
    """One cut, tried.

    Attributes:
        step: its name.
        verdict: "kept", "rolled back", or why it was not tried.
        params: parameters left; None if it was not tried.
        cut: AP by task right after the cut.
        tuned: the same after the short training.
        drop: the largest loss of AP against the baseline, in points; None if it was not tried.
        folder: where the step's files are.
    """

    step: str
    verdict: str
    params: int | None = None
    cut: Scores | None = None
    tuned: Scores | None = None
    drop: float | None = None
    folder: str = ""


def ablate(
    cfg: CfgNode, recipe: Recipe, trainer: Callable[[CfgNode], _Trainer], allowed: float, alone: bool = False
) -> tuple[Trial, ...]:
    """Try each step of ``recipe``; what costs more AP than is allowed is rolled back.

    Args:
        cfg: of the baseline: MODEL.WEIGHTS its checkpoint, SOLVER the short training, OUTPUT_DIR a folder
            that gets one folder a step.
        recipe: the steps, in the order of trying.
        trainer: makes a trainer with :class:`d2prune.PruningMixin`, with an evaluator.
        allowed: AP in points that a kept step may have lost against the baseline.
        alone: start every step from the baseline; otherwise from the last one that was kept.

    Raises:
        PruneError: without MODEL.WEIGHTS, without an evaluation, or if a prune fails.
    """
    _check_weights(cfg)
    gate = _Gate(trainer, allowed)
    trials: list[Trial] = []
    kept: list[Step] = []
    weights = cfg.MODEL.WEIGHTS
    for number, step in enumerate(recipe.steps, 1):
        start = _with(cfg, {"MODEL.WEIGHTS": weights, "OUTPUT_DIR": _folder(cfg, number)})
        steps = [step] if alone else [*kept, step]
        keys = _pruning_keys(start, narrowed(cfg, steps))
        if isinstance(keys, str):
            trials.append(Trial(step.name, f"not tried: {keys}"))
            continue
        trials.append(gate.trial(step.name, _with(start, keys)))
        if trials[-1].verdict == KEPT and not alone:
            kept.append(step)
            weights = str(Path(start.OUTPUT_DIR) / FINAL_FILE)
    return tuple(trials)


def largest_kept(
    cfg: CfgNode, amounts: Sequence[float], trainer: Callable[[CfgNode], _Trainer], allowed: float
) -> tuple[Trial, ...]:
    """Prune the baseline by each amount, the largest first, and train, until one costs no more than allowed.

    Unlike MODEL.PRUNING.BUDGET, which judges a cut before any training, this finds what training makes good.

    Args:
        cfg: as for :func:`ablate`; MODEL.PRUNING.TARGET says what the amounts are of.
        amounts: fractions to remove.
        trainer: as for :func:`ablate`.
        allowed: AP in points that the trained model may have lost against the baseline.

    Raises:
        PruneError: without MODEL.WEIGHTS, without an evaluation, or if a prune fails.
    """
    _check_weights(cfg)
    gate = _Gate(trainer, allowed)
    trials: list[Trial] = []
    for number, amount in enumerate(sorted(amounts, reverse=True), 1):
        keys = {"MODEL.PRUNING.AMOUNT": amount, "OUTPUT_DIR": _folder(cfg, number), **PRUNE_AND_TRAIN}
        trials.append(gate.trial(f"−{amount:.0%}", _with(cfg, keys)))
        if trials[-1].verdict == KEPT:
            break
    return tuple(trials)


class _Gate:
    """Lets a cut through if, after training, it has lost no more than is allowed since the first baseline."""

    def __init__(self, trainer: Callable[[CfgNode], _Trainer], allowed: float) -> None:
        self._trainer, self._allowed = trainer, allowed
        self._baseline: Scores | None = None

    def trial(self, name: str, cfg: CfgNode) -> Trial:
        before, cut, tuned, params = _run(cfg, self._trainer)
        self._baseline = self._baseline or before
        drop = max(value - tuned[task] for task, value in self._baseline.items())
        verdict = KEPT if drop <= self._allowed else "rolled back"
        logger.info("'%s': %.1f points of AP lost, %.1f allowed: %s", name, drop, self._allowed, verdict)
        return Trial(name, verdict, params, cut, tuned, drop, cfg.OUTPUT_DIR)


def _check_weights(cfg: CfgNode) -> None:
    if not cfg.MODEL.WEIGHTS:
        raise PruneError("an ablation needs MODEL.WEIGHTS: the path of the trained baseline")


def _folder(cfg: CfgNode, number: int) -> str:
    return str(Path(cfg.OUTPUT_DIR) / f"step{number}")


def _pruning_keys(cfg: CfgNode, narrower: CfgNode) -> dict[str, Any] | str:
    """MODEL.* keys that prune MODEL.WEIGHTS to ``narrower`` and train it; or why that can't be."""
    model = build_from_cfg(cfg)
    changes = changes_between(model, find_groups(model, trace_input_from_cfg(cfg, model)), outline(narrower))
    inexact = cfg.MODEL.PRUNING.ALLOW_INEXACT
    wrong = [change for change in changes if change.reason and not (inexact and change.group)]
    if wrong:
        return f"{wrong[0]} is not exact ({wrong[0].reason})"
    keys = keys_of(request_of(cfg, model, changes, inexact))
    return {**keys, **PRUNE_AND_TRAIN}


def _run(cfg: CfgNode, trainer: Callable[[CfgNode], _Trainer]) -> tuple[Scores, Scores, Scores, int]:
    """AP before, after the cut and after training, and the parameters that are left."""
    Path(cfg.OUTPUT_DIR).mkdir(parents=True, exist_ok=True)
    made = trainer(cfg)
    made.resume_or_load(resume=False)
    made.train()
    report = read_report_json(cfg.OUTPUT_DIR)
    stages = [report.stage(name) if report else None for name in (BASELINE, PRUNED, FINE_TUNED)]
    before, cut, tuned = (_scores(stage) for stage in stages)
    if not (before and cut and tuned and stages[-1]):
        raise PruneError(
            f"'{cfg.OUTPUT_DIR}': no AP to judge by; the trainer needs an evaluator, and DATASETS.TEST data"
        )
    return before, cut, tuned, stages[-1].params


def _scores(stage: Stage | None) -> dict[str, float]:
    found = {"box_ap": stage.box_ap, "mask_ap": stage.mask_ap} if stage else {}
    return {task: score for task, score in found.items() if score is not None}


def _with(cfg: CfgNode, keys: Mapping[str, Any]) -> CfgNode:
    out = cfg.clone()
    out.defrost()
    out.merge_from_list([x for pair in keys.items() for x in pair])
    out.freeze()
    return out


def ablation_table(trials: Sequence[Trial]) -> str:
    """Return the trials, and where to go on from."""
    heads = ["step", "params", "AP after the cut", "trained", "loss", "verdict"]
    body = [
        [
            trial.step,
            quantity(trial.params),
            _points(trial.cut),
            _points(trial.tuned),
            MISSING if trial.drop is None else signed(trial.drop),
            trial.verdict,
        ]
        for trial in trials
    ]
    kept = [trial for trial in trials if trial.verdict == KEPT]
    last = f"\nThe last one that was kept is in {kept[-1].folder} (pruned.yaml)" if kept else ""
    return aligned([heads, *body], left=(0, 5)) + last


def _points(scores: Scores | None) -> str:
    return " / ".join(f"{value:.1f}" for value in scores.values()) if scores else MISSING
