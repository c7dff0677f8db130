"""A budget in accuracy: the largest cut whose score after the repair is within so many points."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from torch import nn

from d2prune.core.plan.costs import Target
from d2prune.errors import PruneError

logger = logging.getLogger(__name__)
STEP = 0.02
"""The bisection ends when it knows the fraction to remove to this."""
Scores = Mapping[str, float]
"""By the metric's name; the larger the better."""
Cut = TypeVar("Cut")


@dataclass(frozen=True, eq=False)
class Budget:
    """How much a prune may cost.

    Attributes:
        points: the largest loss of any score.
        evaluate: returns a model's scores, the larger the better, on data to choose by: not those that are
            reported on.
    """

    points: float
    evaluate: Callable[[nn.Module], float | Scores]

    def __post_init__(self) -> None:
        if not self.points > 0:
            raise PruneError(
                f"the budget is {self.points}; expected points of accuracy above 0",
                keys=("MODEL.PRUNING.BUDGET",),
            )

    def scores(self, model: nn.Module) -> Scores:
        """Return the model's scores by name.

        Raises:
            PruneError: if there are none.
        """
        found = self.evaluate(model)
        scores = dict(found) if isinstance(found, Mapping) else {"score": float(found)}
        if not scores:
            raise PruneError(
                "a budget needs an evaluation, and there is none: give the trainer a build_evaluator",
                keys=("MODEL.PRUNING.BUDGET",),
            )
        return scores


NUMBER = r"\s*(\d+(?:\.\d*)?|\.\d+)\s*"
"""The number that a budget begins with."""
UNITS: Mapping[str, tuple[Target, float]] = {
    "ms": ("latency", 1),
    "GMACs": ("macs", 1e9),
    "MMACs": ("macs", 1e6),
    "M params": ("params", 1e6),
    "k params": ("params", 1e3),
}


@dataclass(frozen=True)
class Left:
    """How much of a cost may be left.

    Attributes:
        value: in the target's own unit: parameters, MACs, or milliseconds.
        target: which cost.
        unit: one of ``UNITS``, for messages.
    """

    value: float
    target: Target
    unit: str

    def amount(self, whole: float) -> float:
        """Return the fraction to remove of a model that costs ``whole``.

        Raises:
            PruneError: if the model is within the budget already.
        """
        if self.value >= whole:
            factor = UNITS[self.unit][1]
            raise PruneError(
                f"MODEL.PRUNING.BUDGET is '{self.value / factor:g} {self.unit}', and the unpruned model has "
                f"{whole / factor:.4g}: there is nothing to prune",
                keys=("MODEL.PRUNING.BUDGET",),
            )
        return 1 - self.value / whole


def left_of(text: str) -> Left:
    """Read a budget such as "25 ms", "60 GMACs" or "12 M params".

    Raises:
        PruneError: if it is not a number above 0 and one of ``UNITS``.
    """
    found = re.fullmatch(rf"{NUMBER}(.*?)\s*", text)
    if found is None or found[2] not in UNITS or float(found[1]) <= 0:
        raise PruneError(
            f"MODEL.PRUNING.BUDGET is {text!r}; expected a number and a unit: {', '.join(UNITS)}, AP",
            keys=("MODEL.PRUNING.BUDGET",),
        )
    target, factor = UNITS[found[2]]
    return Left(float(found[1]) * factor, target, found[2])


@dataclass(frozen=True)
class Point:
    """One cut that was tried.

    Attributes:
        reached: fraction of the target that it removes.
        scores: after the repair, without training.
        within: whether they are within the budget.
    """

    reached: float
    scores: Scores
    within: bool


def largest_within(
    budget: Budget,
    unpruned: nn.Module,
    most: float,
    cut: Callable[[float], tuple[Cut, nn.Module, float]],
) -> tuple[Cut, tuple[Point, ...]]:
    """Return the largest cut within the budget, by bisection, and all that were tried, by what they remove.

    Args:
        budget: what it may cost.
        unpruned: the model to compare with.
        most: the largest fraction that can be removed.
        cut: ``cut(amount)`` returns a cut, its model, and the fraction that it removes.

    Raises:
        PruneError: if no cut is within the budget.
    """
    before = budget.scores(unpruned)
    points = [Point(0.0, before, True)]
    low, high, best = 0.0, most, None
    while high - low > STEP:
        amount = (low + high) / 2
        found, model, reached = cut(amount)
        scores = budget.scores(model)
        lost = max(value - scores.get(name, 0.0) for name, value in before.items())
        points.append(Point(reached, scores, lost <= budget.points))
        logger.info("%.1f%% removed: %.2f points lost, %g allowed", 100 * reached, lost, budget.points)
        if lost <= budget.points:
            low, best = amount, found
            if reached < amount - STEP:  # this way to prune can remove no more
                break
        else:
            high = amount
    if best is None:
        raise PruneError(
            f"no cut is within the budget of {budget.points:g} points: the smallest that was tried removes "
            f"{points[-1].reached:.1%} and loses {lost:.2f}",
            keys=("MODEL.PRUNING.BUDGET",),
        )
    return best, tuple(sorted(points, key=lambda point: point.reached))
