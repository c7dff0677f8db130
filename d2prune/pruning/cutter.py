"""A cut of a model in one way: ranked, planned, carried out so that the measured cost is right, repaired."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic

import numpy as np
from torch import nn

from d2prune.adapters import TraceInput
from d2prune.core.calibrate.moments import Statistics
from d2prune.core.cut.repair import Repaired, repair
from d2prune.core.cut.spec import PruneSpec
from d2prune.core.plan.costs import CostModel
from d2prune.core.plan.criteria import rank_groups
from d2prune.core.plan.limits import Limits
from d2prune.core.plan.planner import TOLERANCE, most_removed, plan
from d2prune.core.plan.ranking import Ranking, Sensitivity, by_score, sensitivity
from d2prune.core.types import Group, PrunePlan, Request, Totals
from d2prune.errors import MISFITS
from d2prune.pruning.choosing import Way
from d2prune.pruning.cutting import cut_by_plan, misfit
from d2prune.pruning.measuring import measure_model
from d2prune.pruning.result import Model
from d2prune.rebuild import prune_further

ROUNDS = 4  # plans made, at most, until the measured cost is the requested one


@dataclass(frozen=True, eq=False)
class Cut(Generic[Model]):
    """A plan carried out, and repaired where there are statistics.

    Attributes:
        way: what was asked for.
        rankings, limits: of the plan's groups.
        plan: the units that stay.
        spec: what carries it out.
        unrepaired: the pruned model with its own weights.
        after: its costs.
        reached: the fraction that was removed.
        model: the pruned model, repaired.
        reference: the model repaired at full width; the unpruned one itself where nothing is repaired.
        layers: what the repair did to each layer.
    """

    way: Way
    rankings: tuple[Ranking, ...]
    limits: tuple[Limits, ...]
    plan: PrunePlan
    spec: PruneSpec
    unrepaired: Model
    after: Totals
    reached: float
    model: Model
    reference: Model
    layers: tuple[Repaired, ...] = ()

    @property
    def sensitivities(self) -> tuple[Sensitivity, ...]:
        """What each group that was open loses as it gets narrower."""
        rows = zip(self.plan.groups, self.rankings, self.limits, self.plan.kept, strict=True)
        return tuple(sensitivity(g.name, r, len(kept)) for g, r, limit, kept in rows if not limit.reason)


class Cutter(Generic[Model]):
    """Cuts one model in any way; each criterion ranks its groups once."""

    def __init__(
        self,
        model: Model,
        trace_input: TraceInput,
        costs: CostModel,
        statistics: Statistics | None,
        repairs: bool,
    ) -> None:
        self._model, self._trace_input, self._costs = model, trace_input, costs
        self.statistics, self._repairs = statistics, repairs
        self._ranked: dict[str, dict[str, Ranking | None]] = {}

    def cut(self, way: Way, groups: tuple[Group, ...], limits: Sequence[Limits]) -> Cut[Model]:
        """Plan, cut and repair in one way, so that the measured cost is the requested one."""
        rankings, limits = self._rank(way, groups, limits)
        asked = request = way.request
        for _ in range(ROUNDS):
            decided = plan(groups, rankings, limits, self._costs, asked)
            cut = self._carried_out(way, rankings, limits, decided)
            short = request.amount - cut.reached if request.at_least else 0.0
            if short > 0:
                asked = dataclasses.replace(asked, amount=asked.amount + max(short, TOLERANCE))
                continue
            if min(abs(cut.reached - decided.reached), abs(cut.reached - request.amount)) <= TOLERANCE:
                break
            # Some products of activations became cheaper than the layers' widths predicted.
            asked = dataclasses.replace(asked, amount=asked.amount * request.amount / cut.reached)
        return self._repaired(cut)

    def most(self, way: Way, groups: tuple[Group, ...], limits: Sequence[Limits]) -> float:
        """Return the largest fraction of the target's cost that this way can remove."""
        _, limits = self._rank(way, groups, limits)
        return most_removed(groups, limits, self._costs, way.request.target)

    def by_plan(self, cut: Cut[Model], decided: PrunePlan) -> Cut[Model]:
        """Cut by another plan for the same groups, and repair."""
        return self._repaired(self._carried_out(cut.way, cut.rankings, cut.limits, decided))

    def _rank(
        self, way: Way, groups: Sequence[Group], limits: Sequence[Limits]
    ) -> tuple[tuple[Ranking, ...], tuple[Limits, ...]]:
        """Return the groups' rankings, and the limits, which leave groups whole that can't be ranked."""
        name = way.request.criterion
        if name not in self._ranked:
            whole = [group for group, limit in zip(groups, limits, strict=True) if limit.reason]
            found = rank_groups(self._model, groups, way.criterion, whole, self.statistics)
            self._ranked[name] = {group.name: r for group, r in zip(groups, found, strict=True)}
        why = f"what reads its channels was not measured, which CRITERION '{name}' needs"
        rankings = [self._ranked[name][group.name] for group in groups]
        nothing = [by_score(np.zeros(group.units)) for group in groups]
        return (
            tuple(ranking or zeros for ranking, zeros in zip(rankings, nothing, strict=True)),
            tuple(li if r is not None else Limits(why) for li, r in zip(limits, rankings, strict=True)),
        )

    def _carried_out(
        self, way: Way, rankings: tuple[Ranking, ...], limits: tuple[Limits, ...], decided: PrunePlan
    ) -> Cut[Model]:
        spec, pruned = cut_by_plan(self._model, decided, self._trace_input)
        after = _measure_pruned(pruned, self._trace_input)
        reached = _saved(self._costs.totals, after, way.request, decided.reached)
        return Cut(way, rankings, limits, decided, spec, pruned, after, reached, pruned, self._model)

    def _repaired(self, cut: Cut[Model]) -> Cut[Model]:
        if self.statistics is None or not self._repairs:
            return cut
        reference = copy.deepcopy(self._model)
        layers = repair(reference, cut.plan, self.statistics)
        pruned = prune_further(copy.deepcopy(reference), cut.spec)
        return dataclasses.replace(cut, model=pruned, reference=reference, layers=layers)


def _saved(before: Totals, after: Totals, request: Request, planned: float) -> float:
    """Return the removed fraction of the target's cost, measured; for channels and latency, as planned."""
    if request.target in ("channels", "latency"):
        return planned
    old, new = (getattr(totals, request.target) for totals in (before, after))
    return 1 - float(new) / float(old)


def _measure_pruned(pruned: nn.Module, trace_input: TraceInput) -> Totals:
    try:
        return measure_model(pruned, trace_input).totals
    except MISFITS as error:
        raise misfit(error) from error
