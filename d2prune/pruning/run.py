"""One prune from end to end: trace, calibrate, rank, plan, cut, prove, repair."""

from __future__ import annotations

import copy
import dataclasses
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic

import numpy as np
import torch
from torch import nn

from d2prune.adapters import TraceInput
from d2prune.core.calibrate.moments import Statistics
from d2prune.core.cut.coverage import UNREACHED, coverage
from d2prune.core.cut.proof import MisfitError
from d2prune.core.cut.repair import repair
from d2prune.core.cut.spec import PruneSpec
from d2prune.core.plan.costs import CostModel
from d2prune.core.plan.criteria import AUTO, Criterion, chosen, criterion_of, rank_groups
from d2prune.core.plan.limits import Limits, limits_of
from d2prune.core.plan.planner import TOLERANCE, check, plan
from d2prune.core.plan.ranking import Ranking, by_score
from d2prune.core.plan.review import Review, decide
from d2prune.core.types import Coverage, Group, Proof, PrunePlan, Request, Totals
from d2prune.errors import MISFITS, PruneError, told
from d2prune.pruning.bisect import without_misfits
from d2prune.pruning.calibration import Data, statistics_of
from d2prune.pruning.checks import check_inputs, check_model, check_repeatable
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
) -> PruneResult[Model]:
    """Prune as :func:`prune` does; ``criterion``, if given, replaces the one that ``request`` names."""
    request = _decided(request, data)
    check(request)
    criterion = criterion or criterion_of(request.criterion)
    if criterion.needs and data is None:
        raise PruneError(
            f"MODEL.PRUNING.CRITERION '{request.criterion}' needs data: give prune(data=...), or "
            "DATASETS.TRAIN and MODEL.PRUNING.CALIBRATION_IMAGES",
            keys=("MODEL.PRUNING.CRITERION",),
        )
    check_model(model)
    try:
        groups = find_groups(model, trace_input)
    except PruneError:
        raise
    except MISFITS as error:
        told(error)
        check_inputs(model, trace_input)
        raise
    run = _Run(model, request, trace_input, prove, review, criterion, data)
    while True:
        try:
            return run.pruned(groups)
        except MisfitError:
            check_repeatable(model, trace_input)
            remaining = without_misfits(model, groups, trace_input, request.allow_inexact)
            if remaining is None:
                raise
            groups = remaining


def _decided(request: Request, data: Data | None) -> Request:
    """Return the request with what "auto" stands for, and say so where no data decide."""
    criterion, allocation = chosen(request.criterion, request.allocation, data is not None)
    if request.criterion == AUTO and data is None:
        logger.warning(
            "no data to calibrate on: channels are chosen by magnitude and nothing is repaired, which loses "
            "far more accuracy; give a few batches (prune(data=...), DATASETS.TRAIN)"
        )
    return dataclasses.replace(request, criterion=criterion, allocation=allocation)


@dataclass(eq=False)
class _Run(Generic[Model]):
    """One prune, and what stays the same if some groups turn out to be fixed."""

    model: Model
    request: Request
    trace_input: TraceInput
    prove: bool
    review: Review | None
    criterion: Criterion
    data: Data | None

    def __post_init__(self) -> None:
        self.costs = measure_model(self.model, self.trace_input)
        self.statistics: Statistics | None = None
        self.ranked: dict[str, Ranking | None] = {}

    def pruned(self, groups: tuple[Group, ...]) -> PruneResult[Model]:
        """Prune these groups.

        Raises:
            MisfitError: if the pruned model does not run, or is not equal to the masked one.
        """
        model, request, costs = self.model, self.request, self.costs
        limits = limits_of(groups, request, [name for name, _ in model.named_modules()])
        rankings, limits = self._rank(groups, limits)
        asked = request
        for _ in range(ROUNDS):
            decided = plan(groups, rankings, limits, costs, asked)
            spec, pruned, after, reached = _carried_out(model, decided, costs, request, self.trace_input)
            if abs(reached - decided.reached) <= TOLERANCE or abs(reached - request.amount) <= TOLERANCE:
                break
            # Some products of activations became cheaper than the layers' widths predicted.
            asked = dataclasses.replace(asked, amount=asked.amount * request.amount / reached)
        if self.review is not None:
            decided = decide(decided, rankings, limits, costs, request, self.review)
            spec, pruned, after, reached = _carried_out(model, decided, costs, request, self.trace_input)
        proof = self._proof(model, pruned, decided, spec)
        rows = coverage(model, pruned, decided, costs)
        _warn_unreached(rows)
        if self.review is None:
            _warn_missed(request, reached)
        reference, repaired = model, None
        if self.statistics is not None and self.data is not None and self.data.repair:
            reference, pruned, repaired = self._repaired(decided, spec, self.statistics)
        return PruneResult(
            model=pruned,
            spec=spec_of_model(pruned) or spec,
            step=spec,
            coverage=rows,
            proof=proof,
            before=costs.totals,
            after=after,
            request=request,
            reached=reached,
            plan=decided,
            repair=repaired,
            reference=reference,
        )

    def _rank(
        self, groups: Sequence[Group], limits: Sequence[Limits]
    ) -> tuple[tuple[Ranking, ...], tuple[Limits, ...]]:
        """Return the groups' rankings, and the limits, which leave groups whole that can't be ranked."""
        whole = [group for group, limit in zip(groups, limits, strict=True) if limit.reason]
        needs, data = self.criterion.needs, self.data
        if self.statistics is None and data is not None and (needs or data.repair):
            free = [group for group in groups if group not in whole]
            self.statistics = statistics_of(self.model, free, self.trace_input, data, needs)
        if not self.ranked:
            found = rank_groups(self.model, groups, self.criterion, whole, self.statistics)
            self.ranked = {group.name: ranking for group, ranking in zip(groups, found, strict=True)}
        why = f"what reads its channels was not measured, which CRITERION '{self.request.criterion}' needs"
        rankings = [self.ranked[group.name] for group in groups]
        nothing = [by_score(np.zeros(group.units)) for group in groups]
        return (
            tuple(ranking or zeros for ranking, zeros in zip(rankings, nothing, strict=True)),
            tuple(li if r is not None else Limits(why) for li, r in zip(limits, rankings, strict=True)),
        )

    def _repaired(
        self, decided: PrunePlan, spec: PruneSpec, statistics: Statistics
    ) -> tuple[Model, Model, Repair]:
        """Return the model repaired at full width, the same pruned, and what was done."""
        reference = copy.deepcopy(self.model)
        layers = repair(reference, decided, statistics)
        pruned = prune_further(copy.deepcopy(reference), spec)
        for layer in layers:
            if layer.reason:
                logger.warning("%s is not repaired: %s", layer.layer, layer.reason)
        proof = self._proof(reference, pruned, decided, spec)
        return reference, pruned, Repair(layers, statistics.batches, proof)

    def _proof(self, model: Model, pruned: Model, decided: PrunePlan, spec: PruneSpec) -> Proof | None:
        if not self.prove:
            return None
        # Factors on weights are exact in float64 only, so for the proof they are applied in it.
        exact = prune_further(copy.deepcopy(model).double(), spec) if spec.scales else pruned
        return proof_of(model, exact, decided, spec, self.trace_input)


def _carried_out(
    model: Model, decided: PrunePlan, costs: CostModel, request: Request, trace_input: TraceInput
) -> tuple[PruneSpec, Model, Totals, float]:
    """Carry out a plan; return its spec, the pruned model, its costs, and the fraction of costs saved."""
    spec, pruned = cut_by_plan(model, decided, trace_input)
    after = _measure_pruned(pruned, trace_input)
    return spec, pruned, after, _saved(costs.totals, after, request, decided.reached)


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
