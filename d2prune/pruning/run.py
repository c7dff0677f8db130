"""One prune from end to end: trace, calibrate, rank, plan, cut, prove, repair."""

from __future__ import annotations

import copy
import dataclasses
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic

import numpy as np
import torch
from torch import nn

from d2prune.adapters import TraceInput
from d2prune.core.calibrate.moments import Statistics
from d2prune.core.cut.coverage import UNREACHED, coverage
from d2prune.core.cut.proof import MisfitError
from d2prune.core.cut.repair import Repaired, repair
from d2prune.core.cut.spec import PruneSpec
from d2prune.core.plan.criteria import Criterion, rank_groups
from d2prune.core.plan.limits import Limits, limits_of
from d2prune.core.plan.planner import TOLERANCE, check, fraction_removed, plan
from d2prune.core.plan.ranking import Ranking, Sensitivity, by_score, sensitivity
from d2prune.core.plan.review import Review, decide
from d2prune.core.types import Coverage, Group, Proof, PrunePlan, Request, Totals
from d2prune.errors import MISFITS, PruneError, told
from d2prune.pruning.bisect import without_misfits
from d2prune.pruning.budget import Budget, Point, bisect
from d2prune.pruning.calibration import Data, losses_of, statistics_of
from d2prune.pruning.checks import check_inputs, check_model, check_repeatable
from d2prune.pruning.choosing import Judge, Tried, Way, held_out, ways
from d2prune.pruning.cutting import cut_by_plan, misfit
from d2prune.pruning.measuring import find_groups, measure_model
from d2prune.pruning.proving import proof_of
from d2prune.pruning.result import Model, PruneResult, Repair
from d2prune.rebuild import prune_further, spec_of_model

logger = logging.getLogger(__name__)
ROUNDS = 4  # plans made, at most, until the measured cost is the requested one


@torch.inference_mode(False)  # else the new model could not be traced, nor trained
def prune_model(
    model: Model,
    request: Request,
    trace_input: TraceInput,
    prove: bool = True,
    review: Review | None = None,
    criterion: Criterion | None = None,
    data: Data | None = None,
    budget: Budget | None = None,
) -> PruneResult[Model]:
    """Prune as :func:`prune` does.

    ``criterion``, if given, replaces the one that ``request`` names; ``budget`` replaces its amount.
    """
    choices = ways(request, criterion, data is not None)
    for way in choices:
        check(way.request)
    check_model(model)
    try:
        groups = find_groups(model, trace_input)
    except PruneError:
        raise
    except MISFITS as error:
        told(error)
        check_inputs(model, trace_input)
        raise
    run = _Run(model, choices, trace_input, prove, review, data, budget)
    while True:
        try:
            return run.pruned(groups)
        except MisfitError:
            check_repeatable(model, trace_input)
            remaining = without_misfits(model, groups, trace_input, request.allow_inexact)
            if remaining is None:
                raise
            groups = remaining


@dataclass(frozen=True, eq=False)
class _Cut(Generic[Model]):
    """A plan carried out, and repaired where there are statistics."""

    way: Way
    rankings: tuple[Ranking, ...]
    limits: tuple[Limits, ...]
    plan: PrunePlan
    spec: PruneSpec
    unrepaired: Model
    after: Totals
    reached: float
    reference: Model
    model: Model
    layers: tuple[Repaired, ...]


class _Run(Generic[Model]):
    """One prune, and what stays the same if some groups turn out to be fixed."""

    def __init__(
        self,
        model: Model,
        choices: tuple[Way, ...],
        trace_input: TraceInput,
        prove: bool,
        review: Review | None,
        data: Data | None,
        budget: Budget | None,
    ) -> None:
        self.budget = budget
        self.model, self.choices, self.trace_input = model, choices, trace_input
        self.prove, self.review = prove, review
        self.costs = measure_model(model, trace_input)
        self.losses = losses_of(model, trace_input, data) if data is not None else None
        self.data, self.judge = data, None
        if data is not None and len(choices) > 1:
            self.data, last = held_out(data)
            self.judge = Judge(model, last, trace_input, self.losses)
        self.statistics: Statistics | None = None
        self.ranked: dict[str, dict[str, Ranking | None]] = {}

    def pruned(self, groups: tuple[Group, ...]) -> PruneResult[Model]:
        """Prune these groups.

        Raises:
            MisfitError: if the pruned model does not run, or is not equal to the masked one.
        """
        names = [name for name, _ in self.model.named_modules()]
        limits = limits_of(groups, self.choices[0].request, names)
        self._calibrate([group for group, limit in zip(groups, limits, strict=True) if not limit.reason])
        curve: tuple[Point, ...] = ()
        if self.budget is None:
            cut, tried = self._best(self.choices, groups, limits)
        else:
            cut, tried, curve = self._within(self.budget, groups, limits)
        if self.review is not None:
            request = cut.way.request
            cut = self._carried_out(cut.way, cut.rankings, cut.limits, decide(
                cut.plan, cut.rankings, cut.limits, self.costs, request, self.review
            ))  # fmt: skip
        else:
            _warn_missed(cut.way.request, cut.reached)
        proof = self._proof(self.model, cut.unrepaired, cut)
        rows = coverage(self.model, cut.unrepaired, cut.plan, self.costs)
        _warn_unreached(rows)
        repaired = None
        if cut.reference is not self.model:
            assert self.statistics is not None, "the repair was made by it"
            for layer in (layer for layer in cut.layers if layer.reason):
                logger.warning("%s is not repaired: %s", layer.layer, layer.reason)
            proved = self._proof(cut.reference, cut.model, cut)
            repaired = Repair(cut.layers, self.statistics.batches, proved)
        return PruneResult(
            model=cut.model,
            spec=spec_of_model(cut.model) or cut.spec,
            step=cut.spec,
            coverage=rows,
            proof=proof,
            before=self.costs.totals,
            after=cut.after,
            request=cut.way.request,
            reached=cut.reached,
            plan=cut.plan,
            repair=repaired,
            tried=tried,
            sensitivities=_sensitivities(cut),
            curve=curve,
            reference=cut.reference,
        )

    def _within(
        self, budget: Budget, groups: tuple[Group, ...], limits: Sequence[Limits]
    ) -> tuple[_Cut[Model], tuple[Tried, ...], tuple[Point, ...]]:
        """Return the largest cut within the budget; the way is chosen at the first amount that is tried."""
        choices: tuple[Way, ...] = self.choices
        tried: tuple[Tried, ...] = ()

        def cut(amount: float) -> tuple[_Cut[Model], Model, float]:
            nonlocal choices, tried
            found, ways = self._best([way.with_amount(amount) for way in choices], groups, limits)
            choices, tried = (found.way,), tried or ways
            return found, found.model, found.reached

        gone = [
            0 if limit.reason else group.units - limit.allowed_units[-1]
            for group, limit in zip(groups, limits, strict=True)
        ]
        most = fraction_removed(groups, limits, self.costs, choices[0].request.target, gone)
        best, curve = bisect(budget, self.model, most, cut)
        return best, tried, curve

    def _best(
        self, choices: Sequence[Way], groups: tuple[Group, ...], limits: Sequence[Limits]
    ) -> tuple[_Cut[Model], tuple[Tried, ...]]:
        """Cut in every way, and return the cut that costs least."""
        if len(choices) == 1 or self.judge is None:
            return self._cut(choices[0], groups, limits), ()
        best: _Cut[Model] | None = None
        tried: list[Tried] = []
        refused: list[PruneError] = []
        for way in choices:
            if way.criterion.needs == "loss" and self.losses is None:
                continue
            try:
                cut = self._cut(way, groups, limits)
            except MisfitError:
                raise
            except PruneError as error:  # one way may not reach the amount where another does
                refused.append(error)
                continue
            found = Tried(way.request.criterion, way.request.allocation, *self.judge.measure(cut.model))
            if best is None or found.cost < min(one.cost for one in tried):
                best = cut
            tried.append(found)
        if best is None:
            raise refused[0]
        costs = "; ".join(
            f"{one.criterion}, {one.allocation}: {one.loss:.3f}, {one.change:.3f}" for one in tried
        )
        logger.info(
            "%s is the best on %d batches (loss and change of outputs: %s)", best.way, len(self.judge), costs
        )
        return best, tuple(tried)

    def _calibrate(self, free: Sequence[Group]) -> None:
        """Collect the statistics that criteria and repair need, once.

        Raises:
            PruneError: if the criterion needs a loss, and there is none.
        """
        needs = {way.criterion.needs for way in self.choices}
        if self.statistics is not None or self.data is None or not (any(needs) or self.data.repair):
            return
        if needs == {"loss"} and self.losses is None:
            raise PruneError(
                "this MODEL.PRUNING.CRITERION needs the gradients of a loss: give prune(loss=...), or "
                "batches with labels",
                keys=("MODEL.PRUNING.CRITERION",),
            )
        gates = "loss" in needs
        self.statistics = statistics_of(self.model, free, self.trace_input, self.data, self.losses, gates)

    def _cut(self, way: Way, groups: tuple[Group, ...], limits: Sequence[Limits]) -> _Cut[Model]:
        """Plan, cut and repair in one way, so that the measured cost is the requested one."""
        rankings, limits = self._rank(way, groups, limits)
        asked = request = way.request
        for _ in range(ROUNDS):
            decided = plan(groups, rankings, limits, self.costs, asked)
            cut = self._carried_out(way, rankings, limits, decided)
            if min(abs(cut.reached - decided.reached), abs(cut.reached - request.amount)) <= TOLERANCE:
                break
            # Some products of activations became cheaper than the layers' widths predicted.
            asked = dataclasses.replace(asked, amount=asked.amount * request.amount / cut.reached)
        return cut

    def _rank(
        self, way: Way, groups: Sequence[Group], limits: Sequence[Limits]
    ) -> tuple[tuple[Ranking, ...], tuple[Limits, ...]]:
        """Return the groups' rankings, and the limits, which leave groups whole that can't be ranked."""
        name = way.request.criterion
        if name not in self.ranked:
            whole = [group for group, limit in zip(groups, limits, strict=True) if limit.reason]
            found = rank_groups(self.model, groups, way.criterion, whole, self.statistics)
            self.ranked[name] = {group.name: r for group, r in zip(groups, found, strict=True)}
        why = f"what reads its channels was not measured, which CRITERION '{name}' needs"
        rankings = [self.ranked[name][group.name] for group in groups]
        nothing = [by_score(np.zeros(group.units)) for group in groups]
        return (
            tuple(ranking or zeros for ranking, zeros in zip(rankings, nothing, strict=True)),
            tuple(li if r is not None else Limits(why) for li, r in zip(limits, rankings, strict=True)),
        )

    def _carried_out(
        self, way: Way, rankings: tuple[Ranking, ...], limits: tuple[Limits, ...], decided: PrunePlan
    ) -> _Cut[Model]:
        """Carry out a plan, and repair what it took from."""
        spec, cut = cut_by_plan(self.model, decided, self.trace_input)
        after = _measure_pruned(cut, self.trace_input)
        reached = _saved(self.costs.totals, after, way.request, decided.reached)
        reference, pruned = self.model, cut
        layers: tuple[Repaired, ...] = ()
        if self.statistics is not None and self.data is not None and self.data.repair:
            reference = copy.deepcopy(self.model)
            layers = repair(reference, decided, self.statistics)
            pruned = prune_further(copy.deepcopy(reference), spec)
        return _Cut(way, rankings, limits, decided, spec, cut, after, reached, reference, pruned, layers)

    def _proof(self, model: Model, pruned: Model, cut: _Cut[Model]) -> Proof | None:
        if not self.prove:
            return None
        # Factors on weights are exact in float64 only, so for the proof they are applied in it.
        exact = prune_further(copy.deepcopy(model).double(), cut.spec) if cut.spec.scales else pruned
        return proof_of(model, exact, cut.plan, cut.spec, self.trace_input)


def _sensitivities(cut: _Cut[Any]) -> tuple[Sensitivity, ...]:
    rows = zip(cut.plan.groups, cut.rankings, cut.limits, cut.plan.kept, strict=True)
    return tuple(sensitivity(g.name, ranking, len(kept)) for g, ranking, li, kept in rows if not li.reason)


def _saved(before: Totals, after: Totals, request: Request, planned: float) -> float:
    """Return the removed fraction of the target's cost, as measured; for channels, as planned."""
    if request.target == "channels":
        return planned
    old, new = (getattr(totals, request.target) for totals in (before, after))
    return 1 - float(new) / float(old)


def _warn_missed(request: Request, reached: float) -> None:
    if abs(reached - request.amount) > 0.01:
        held = "RATIOS, steps" if request.ratios else "steps"
        logger.warning(
            "AMOUNT %s of %s: reached %.3f, %+.3f off; %s of the groups and ROUND_TO %d: no nearer found",
            request.amount, request.target, reached, reached - request.amount, held, request.round_to,
        )  # fmt: skip


def _warn_unreached(rows: Sequence[Coverage]) -> None:
    names = [row.name for row in rows if row.reason == UNREACHED and row.before]
    if names:
        logger.warning(
            "%d layers were not run by the forward pass that was traced: %s. If they read channels "
            "that were removed (a branch that only training runs, say), they no longer fit: give a "
            "forward_fn= that runs them too (one that sets model.training = True before it calls the model, "
            "where only training runs them), or an adapter",
            len(names),
            ", ".join(names[:5]) + (", ..." if len(names) > 5 else ""),
        )


def _measure_pruned(pruned: nn.Module, trace_input: TraceInput) -> Totals:
    try:
        return measure_model(pruned, trace_input).totals
    except MISFITS as error:
        raise misfit(error) from error
