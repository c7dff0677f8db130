"""One prune from end to end: trace, calibrate, rank, plan, cut, prove, repair."""

from __future__ import annotations

import copy
import dataclasses
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import nn

from d2prune.adapters import TraceInput
from d2prune.bisect import without_misfits
from d2prune.calibrating import Data, Losses, data_of, statistics_of
from d2prune.checks import check_inputs, check_model, check_repeatable
from d2prune.core.calibrate.moments import Statistics
from d2prune.core.copies import in_float32, on_meta
from d2prune.core.cut.coverage import UNREACHED, coverage
from d2prune.core.cut.proof import MisfitError
from d2prune.core.cut.repair import Repaired, repair
from d2prune.core.cut.spec import PruneSpec
from d2prune.core.plan.costs import CostModel, measure
from d2prune.core.plan.criteria import AUTO, Criterion, chosen, criterion_of, rank_groups
from d2prune.core.plan.limits import Limits, limits_of
from d2prune.core.plan.planner import TOLERANCE, check, plan
from d2prune.core.plan.ranking import Ranking, by_score
from d2prune.core.plan.review import Review, decide
from d2prune.core.plan.torch_pruning_criteria import Importance, name_of
from d2prune.core.trace.tracer import trace_groups
from d2prune.core.types import Coverage, Group, Proof, PrunePlan, Request, Totals
from d2prune.cutting import cut_by_plan, misfit
from d2prune.errors import MISFITS, PruneError, told
from d2prune.proving import proof_of
from d2prune.rebuild import prune_further, spec_of_model

Model = TypeVar("Model", bound=nn.Module)
logger = logging.getLogger(__name__)
ROUNDS = 4  # plans made, at most, until the measured cost is the requested one


@dataclass(frozen=True, eq=False)
class PruneResult(Generic[Model]):
    """The result of :func:`prune`.

    Attributes:
        model: a new model; the one passed in is not changed.
        spec: the channels kept of the unpruned model, enough to rebuild the pruned one without tracing.
        step: the channels kept of the model passed in: ``spec`` itself, unless that was pruned before.
        coverage: one row per layer, with the reason if it was left whole.
        proof: the proof; None only with ``verify=False``.
        before: parameters and MACs of the model passed in.
        after: those of the pruned model, measured, not predicted.
        request: the request.
        reached: removed fraction of the request's target.
        plan: the units that stayed of each group.
        repair: what was done to the weights; None without data, or with repair="".
        reference: the model at full width whose outputs, with the removed channels masked, ``model`` has: the
            one passed in, or that with repaired weights.
    """

    model: Model
    spec: PruneSpec
    step: PruneSpec
    coverage: tuple[Coverage, ...]
    proof: Proof | None
    before: Totals
    after: Totals
    request: Request
    reached: float
    plan: PrunePlan
    repair: Repair | None
    reference: Model


@dataclass(frozen=True)
class Repair:
    """The repair of a pruned model.

    Attributes:
        layers: what it did to each layer that reads removed channels.
        batches: on how many batches it was made.
        proof: that it equals the model repaired at full width, with the removed channels masked.
    """

    layers: tuple[Repaired, ...]
    batches: int
    proof: Proof | None


def prune(
    model: Model,
    amount: float = 0.5,
    target: str = "macs",
    criterion: str | Importance = AUTO,
    allocation: str = AUTO,
    ratios: dict[str, float] | Sequence[tuple[str, float]] = (),
    protect: Sequence[str] = (),
    round_to: int = 1,
    example_inputs: Any = None,
    forward_fn: Callable[[nn.Module, Any], Any] | None = None,
    allow_inexact: bool = False,
    verify: bool = True,
    *,
    data: Iterable[Any] | None = None,
    loss: Losses | None = None,
    repair: str | None = None,
    include: Sequence[str] = (),
    max_ratio: float = 0.75,
    input_size: tuple[int, int] | None = None,
    interactive: Review | None = None,
) -> PruneResult[Model]:
    """Remove channels from a copy of ``model`` and prove that the rest computes the same.

    Args:
        model: any module; the common Detectron2 and AdelaiDet architectures have adapters.
        amount: fraction of the whole model's ``target`` to REMOVE, 0 < amount < 1.
        target: what ``amount`` counts: "channels", "params" or "macs".
        criterion: name of a registered criterion, "torch_pruning.LAMPImportance" and the like, or an
            instance of torch-pruning's ``Importance``. "auto" is "reconstruction" with ``data``, else
            "magnitude".
        allocation: "uniform" (the same fraction of every group), "global" (lowest scores first) or
            "per_cost" (least error per cost saved). "auto" is the last where the criterion is measured on
            data, else the first.
        ratios: fractions of channels to remove, by shell-style pattern over dotted module names;
            such groups are left out of the allocation.
        protect: patterns of layers whose output channels stay.
        round_to: widths become multiples of this.
        example_inputs: the model's input, for models without an adapter: a tensor, or a tuple or dict of
            arguments. With an adapter: (N, 3, H, W) raw images in place of noise.
        forward_fn: ``forward_fn(model, example_inputs)``, returning the outputs that must be kept.
        allow_inexact: also prune what can't be proved (channels under a LayerNorm).
        verify: whether to make the proof.
        data: a few batches (100 to 200 images) of the model's inputs, to choose and repair channels by; the
            model runs on one at a time. For Detectron2's models: list[dict], best with their labels.
        loss: ``loss(model, batch)``, a scalar or a dict of them, that tells how much each output matters.
            Without it, models of Detectron2 use their own where batches have labels; others do without.
        repair: "refit" (the default with ``data``): what is left of each layer's input takes over what was
            removed, by least squares. "fold" is faster and weaker, "" leaves weights as they are.
        include: if given, only groups all of whose producers match one of these patterns are pruned.
        max_ratio: largest fraction of any one group's channels to remove.
        input_size: (height, width) that costs are counted on; default 800 x 1344.
        interactive: called with a :class:`d2prune.core.plan.review.Proposal` for each group that may be
            pruned, before anything is cut. True or None accepts it, False leaves the group whole, and a
            sequence of integers gives the units to remove instead. It is called again if the plan does
            not run.

    Raises:
        PruneError: for a request that can't be met, a model that can't be traced, non-finite weights,
            or a pruned model that fails the proof.
    """
    pairs = ratios.items() if isinstance(ratios, dict) else ratios
    request = Request(
        amount, target, name_of(criterion), allocation, tuple((p, float(r)) for p, r in pairs),
        _patterns(protect), _patterns(include), max_ratio, round_to, allow_inexact,
    )  # fmt: skip
    traced = TraceInput(model, example_inputs, forward_fn, input_size)
    given = None if isinstance(criterion, str) else criterion_of(criterion)
    return prune_model(model, request, traced, verify, interactive, given, data_of(data, loss, repair))


def _patterns(given: Sequence[str]) -> tuple[str, ...]:
    return (given,) if isinstance(given, str) else tuple(given)


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


def find_groups(model: nn.Module, trace_input: TraceInput) -> tuple[Group, ...]:
    """Return the groups of channels that are cut together, traced in float32 on a copy."""
    return trace_groups(in_float32(model), trace_input.outputs)


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


def measure_model(model: nn.Module, trace_input: TraceInput) -> CostModel:
    """Measure the costs of one image, on the meta device (which takes no time) if the model runs there."""
    try:
        return measure(on_meta(model).eval(), trace_input.inference)
    except MISFITS as error:  # .numpy() and .item() have no values there
        logger.info("counting on the model's own device: it does not run on meta (%s)", told(error))
        return measure(copy.deepcopy(model).eval(), trace_input.inference)
