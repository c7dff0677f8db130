"""One prune from end to end: trace, calibrate, rank, plan, cut, prove, repair."""

from __future__ import annotations

import copy
import dataclasses
import logging
from collections.abc import Sequence
from typing import Generic

import torch

from d2prune.adapters import TraceInput
from d2prune.core.cut.coverage import UNREACHED, coverage
from d2prune.core.cut.proof import MisfitError
from d2prune.core.plan.costs import CostModel
from d2prune.core.plan.criteria import Criterion
from d2prune.core.plan.limits import Limits, limits_of
from d2prune.core.plan.planner import check
from d2prune.core.plan.review import Review, decide
from d2prune.core.types import Coverage, Group, Proof, Request
from d2prune.errors import MISFITS, PruneError, told
from d2prune.pruning.bisect import without_misfits
from d2prune.pruning.budget import Budget, Left, Point, largest_within
from d2prune.pruning.calibration import Data, losses_of, statistics_of
from d2prune.pruning.checks import check_inputs, check_model, check_repeatable
from d2prune.pruning.choosing import COLLAPSE, Judge, Tried, Way, held_out, ways
from d2prune.pruning.cutter import Cut, Cutter
from d2prune.pruning.latency import Timed, compare, described_here, table_for
from d2prune.pruning.measuring import find_groups, measure_model
from d2prune.pruning.proving import proof_of
from d2prune.pruning.result import Model, PruneResult, Repair
from d2prune.rebuild import prune_further, spec_of_model

logger = logging.getLogger(__name__)


@torch.inference_mode(False)  # else the new model could not be traced, nor trained
def prune_model(
    model: Model,
    request: Request,
    trace_input: TraceInput,
    prove: bool = True,
    review: Review | None = None,
    criterion: Criterion | None = None,
    data: Data | None = None,
    budget: Budget | Left | None = None,
    latency_table: str = "",
) -> PruneResult[Model]:
    """Prune as :func:`prune` does.

    ``criterion``, if given, replaces the one that ``request`` names; ``budget`` replaces its amount, and of a
    cost its target. ``latency_table`` is the path of a table of latencies, see
    :func:`d2prune.pruning.latency.table_for`.
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
    costs = measure_model(model, trace_input)
    target = budget.target if isinstance(budget, Left) else request.target
    if target == "latency":
        costs = dataclasses.replace(costs, latency=table_for(model, trace_input, groups, latency_table))
    if isinstance(budget, Left):
        whole = costs.whole(budget.target)
        choices, budget = tuple(way.leaving(budget, whole) for way in choices), None
    run = _Run(model, choices, trace_input, prove, review, data, budget, costs)
    while True:
        try:
            return run.pruned(groups)
        except MisfitError:
            check_repeatable(model, trace_input)
            remaining = without_misfits(model, groups, trace_input, request.allow_inexact)
            if remaining is None:
                raise
            groups = remaining


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
        costs: CostModel,
    ) -> None:
        self.budget, self.costs = budget, costs
        self.model, self.choices, self.trace_input = model, choices, trace_input
        self.prove, self.review = prove, review
        self.losses = losses_of(model, trace_input, data) if data is not None else None
        self.data, self.judge = data, None
        if data is not None and len(choices) > 1:
            self.data, last = held_out(data)
            self.judge = Judge(model, last, trace_input, self.losses)
        self.cutter: Cutter[Model] | None = None

    def pruned(self, groups: tuple[Group, ...]) -> PruneResult[Model]:
        """Prune these groups.

        Raises:
            MisfitError: if the pruned model does not run, or is not equal to the masked one.
        """
        names = [name for name, _ in self.model.named_modules()]
        limits = limits_of(groups, self.choices[0].request, names)
        free = [group for group, limit in zip(groups, limits, strict=True) if not limit.reason]
        self.cutter = cutter = self.cutter or self._calibrated(free)
        curve: tuple[Point, ...] = ()
        if self.budget is None:
            cut, tried = self._best(cutter, self.choices, groups, limits)
            _warn_collapse(cut, tried)
        else:
            cut, tried, curve = self._within(cutter, self.budget, groups, limits)
        if self.review is not None:
            request = cut.way.request
            decided = decide(cut.plan, cut.rankings, cut.limits, self.costs, request, self.review)
            cut = cutter.by_plan(cut, decided)
        else:
            _warn_missed(cut.way.request, cut.reached)
        proof = self._proof(self.model, cut.unrepaired, cut)
        rows = coverage(self.model, cut.unrepaired, cut.plan, self.costs)
        _warn_unreached(rows)
        repaired = None
        if cut.reference is not self.model:
            assert cutter.statistics is not None, "the repair was made by it"
            for layer in (layer for layer in cut.layers if layer.reason):
                logger.warning("%s is not repaired: %s", layer.layer, layer.reason)
            proved = self._proof(cut.reference, cut.model, cut)
            repaired = Repair(cut.layers, cutter.statistics.batches, proved)
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
            sensitivities=cut.sensitivities,
            curve=curve,
            reference=cut.reference,
            latency=self._timed(cut),
        )

    def _timed(self, cut: Cut[Model]) -> Timed | None:
        """Time the pruned model where its latency was asked for, and say how near the table came."""
        table = self.costs.latency
        if table is None or dict(table.measured_on) != described_here(self.model, self.trace_input):
            return None
        timed = compare(self.model, cut.model, self.trace_input, 1 - cut.reached)
        logger.info(
            "latency of the dense part: %.1f ms, %.1f ms before: x%.2f, x%.2f predicted",
            timed.after, timed.before, timed.ratio, timed.predicted,
        )  # fmt: skip
        if timed.ratio >= 1:
            logger.warning("the pruned model is not faster here: measured x%.2f", timed.ratio)
        return timed

    def _within(
        self, cutter: Cutter[Model], budget: Budget, groups: tuple[Group, ...], limits: Sequence[Limits]
    ) -> tuple[Cut[Model], tuple[Tried, ...], tuple[Point, ...]]:
        """Return the largest cut within the budget; the way is chosen at the first amount that is tried."""
        choices: tuple[Way, ...] = self.choices
        tried: tuple[Tried, ...] = ()

        def cut(amount: float) -> tuple[Cut[Model], Model, float]:
            nonlocal choices, tried
            if len(choices) == 1:  # it may not be able to remove as much as the best
                amount = min(amount, cutter.most(choices[0], groups, limits))
            found, ways = self._best(cutter, [way.with_amount(amount) for way in choices], groups, limits)
            choices, tried = (found.way,), tried or ways
            return found, found.model, found.reached

        most = max(cutter.most(way, groups, limits) for way in choices)
        best, curve = largest_within(budget, self.model, most, cut)
        return best, tried, curve

    def _best(
        self,
        cutter: Cutter[Model],
        choices: Sequence[Way],
        groups: tuple[Group, ...],
        limits: Sequence[Limits],
    ) -> tuple[Cut[Model], tuple[Tried, ...]]:
        """Cut in every way, and return the cut that costs least."""
        if len(choices) == 1 or self.judge is None:
            return cutter.cut(choices[0], groups, limits), ()
        best: Cut[Model] | None = None
        tried: list[Tried] = []
        refused: list[PruneError] = []
        for way in choices:
            if way.criterion.needs == "loss" and self.losses is None:
                continue
            try:
                cut = cutter.cut(way, groups, limits)
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

    def _calibrated(self, free: Sequence[Group]) -> Cutter[Model]:
        """Return a cutter with the statistics that criteria and repair need.

        Raises:
            PruneError: if the criterion needs a loss, and there is none.
        """
        needs, data = {way.criterion.needs for way in self.choices}, self.data
        if needs == {"loss"} and self.losses is None:
            raise PruneError(
                "this MODEL.PRUNING.CRITERION needs the gradients of a loss: give prune(loss=...), or "
                "batches with labels",
                keys=("MODEL.PRUNING.CRITERION",),
            )
        statistics, repairs = None, data is not None and bool(data.repair)
        if data is not None and (any(needs) or repairs):
            gates = "loss" in needs
            statistics = statistics_of(self.model, free, self.trace_input, data, self.losses, gates)
        return Cutter(self.model, self.trace_input, self.costs, statistics, repairs)

    def _proof(self, model: Model, pruned: Model, cut: Cut[Model]) -> Proof | None:
        if not self.prove:
            return None
        # Factors on weights are exact in float64 only, so for the proof they are applied in it.
        exact = prune_further(copy.deepcopy(model).double(), cut.spec) if cut.spec.scales else pruned
        return proof_of(model, exact, cut.plan, cut.spec, self.trace_input)


def _warn_missed(request: Request, reached: float) -> None:
    if abs(reached - request.amount) > 0.01:
        held = "RATIOS, steps" if request.ratios else "steps"
        logger.warning(
            "AMOUNT %s of %s: reached %.3f, %+.3f off; %s of the groups and ROUND_TO %d: no nearer found",
            request.amount, request.target, reached, reached - request.amount, held, request.round_to,
        )  # fmt: skip


def _warn_collapse(cut: Cut[Model], tried: Sequence[Tried]) -> None:
    change = min(tried, key=lambda one: one.cost).change if tried else 0.0
    if change > COLLAPSE:
        logger.warning(
            "%.0f%% less %s: the outputs differ from the unpruned model's by %.2f of their variance, on data "
            "kept apart: expect little accuracy before fine-tuning; a smaller AMOUNT keeps more",
            100 * cut.reached, cut.way.request.target, change,
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
