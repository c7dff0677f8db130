"""The result of a prune."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

from torch import nn

from d2prune.core.cut.repair import Repaired
from d2prune.core.cut.spec import PruneSpec
from d2prune.core.plan.ranking import Sensitivity
from d2prune.core.types import Coverage, Proof, PrunePlan, Request, Totals
from d2prune.pruning.budget import Point
from d2prune.pruning.choosing import Tried
from d2prune.pruning.latency import Timed

Model = TypeVar("Model", bound=nn.Module)


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
        tried: the ways to prune that "auto" chose from, with what each loses; ``request`` has the one taken.
            Empty where there was no choice.
        sensitivities: of each group that was open to pruning, what it loses by the criterion as it gets
            narrower.
        curve: the cuts that a budget was found by, from the unpruned model on; empty without a budget.
        reference: the model at full width whose outputs, with the removed channels masked, ``model`` has: the
            one passed in, or that with repaired weights.
        latency: of the pruned model beside the unpruned one, with target "latency"; None without it, and
            where the table is another machine's.
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
    tried: tuple[Tried, ...]
    sensitivities: tuple[Sensitivity, ...]
    curve: tuple[Point, ...]
    reference: Model
    latency: Timed | None = None


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
