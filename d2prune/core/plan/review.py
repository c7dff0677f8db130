"""Interactive pruning: a callback accepts, refuses or changes what is planned for each group."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from d2prune.core.plan.costs import CostModel
from d2prune.core.plan.limits import Limits
from d2prune.core.plan.planner import fraction_removed
from d2prune.core.plan.ranking import Ranking, Scores
from d2prune.core.types import Group, Indices, PrunePlan, Request, Site
from d2prune.errors import PruneError

REFUSED = "protected by the answer of interactive="


@dataclass(frozen=True, eq=False)
class Proposal:
    """The part of a plan for one group.

    Attributes:
        group: the group; ``group.name`` is its first layer, ``group.members`` has every layer's axis
            with the positions of each unit on it.
        scores: (U,) the criterion's scores of the units.
        remove: (R,) sorted indices of the units to remove; empty if all are to stay. A unit is one
            channel of ``group.name`` in most groups (``group.step`` is the number).
        errors: (U + 1,) the error, or score, that is added by removing the 0 to U first units of the ranking:
            what the width was chosen by, and what the report draws.
    """

    group: Group
    scores: Scores
    remove: Indices
    errors: Scores

    @property
    def name(self) -> str:
        """Path of the group's first layer."""
        return self.group.name

    @property
    def widths(self) -> dict[Site, tuple[int, int]]:
        """Channels that the group has on each layer's axis, before and after; by (layer, "out" or "in")."""
        units = self.group.units
        sizes = {member.site: member.indices.shape[1] for member in self.group.members}
        return {site: (units * k, (units - len(self.remove)) * k) for site, k in sizes.items()}

    def __str__(self) -> str:
        rows = [f"{layer} {axis} {a} -> {b}" for (layer, axis), (a, b) in self.widths.items()]
        return f"{self.name}: {len(self.remove)} of {self.group.units} units go: {', '.join(rows)}"


Answer = bool | Sequence[int] | None
Review = Callable[[Proposal], Answer]
"""``review(proposal)``: True or None accepts, False refuses, indices: these units go instead."""


def decide(
    plan: PrunePlan,
    rankings: Sequence[Ranking],
    limits: Sequence[Limits],
    costs: CostModel,
    request: Request,
    review: Review,
) -> PrunePlan:
    """Return the plan after ``review`` has seen every group that may be pruned, in the model's order.

    What is refused is not removed from other groups instead, and indices that it returns are not checked
    against MAX_RATIO and ROUND_TO.

    Raises:
        PruneError: for indices that the group does not have or that are all of it, or if nothing is removed.
    """
    kept, reasons = list(plan.kept), list(plan.reasons)
    for i, group in enumerate(plan.groups):
        if reasons[i]:
            continue
        planned = np.setdiff1d(np.arange(group.units), kept[i])
        remove = _answered(
            review(Proposal(group, rankings[i].scores, planned, rankings[i].summed)), group, planned
        )
        kept[i] = np.setdiff1d(np.arange(group.units), remove)
        if not remove.size and planned.size:
            reasons[i] = REFUSED
    gone = [group.units - len(k) for group, k in zip(plan.groups, kept, strict=True)]
    if not any(gone):
        raise PruneError("nothing was pruned: interactive= refused all that was planned")
    reached = fraction_removed(plan.groups, limits, costs, request.target, gone)
    return PrunePlan(plan.groups, tuple(kept), tuple(reasons), reached)


def _answered(answer: Answer, group: Group, planned: Indices) -> Indices:
    if answer is None or isinstance(answer, bool | np.bool_):
        return planned if answer is None or answer else planned[:0]
    try:
        given = [operator.index(i) for i in answer]
    except TypeError:
        given = []
        valid = False
    else:
        valid = len(set(given)) == len(given) < group.units and all(0 <= i < group.units for i in given)
    if not valid:
        raise PruneError(
            f"interactive= gave {answer!r} for {group.name}; expected True, False or the units to remove: "
            f"distinct integers from 0 to {group.units - 1}, not all of them"
        )
    return np.array(sorted(given), dtype=np.int64)
