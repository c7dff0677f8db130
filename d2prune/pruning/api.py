"""``prune``, the public function."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from torch import nn

from d2prune.adapters import TraceInput
from d2prune.core.plan.criteria import AUTO, criterion_of
from d2prune.core.plan.review import Review
from d2prune.core.plan.torch_pruning_criteria import Importance, name_of
from d2prune.core.types import Request
from d2prune.errors import PruneError
from d2prune.pruning.budget import Budget, Left, left_of
from d2prune.pruning.calibration import Losses, data_of
from d2prune.pruning.result import Model, PruneResult
from d2prune.pruning.run import prune_model


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
    budget: float | str | None = None,
    evaluate: Callable[[nn.Module], float | Mapping[str, float]] | None = None,
    include: Sequence[str] = (),
    max_ratio: float = 0.75,
    input_size: tuple[int, int] | None = None,
    interactive: Review | None = None,
    latency_table: str | os.PathLike[str] = "",
) -> PruneResult[Model]:
    """Remove channels from a copy of ``model`` and prove that the rest computes the same.

    Args:
        model: any module; the common Detectron2 and AdelaiDet architectures have adapters.
        amount: fraction of the whole model's ``target`` to REMOVE, 0 < amount < 1.
        target: what ``amount`` counts: "channels", "params", "macs", or "latency", which is measured on the
            model's device.
        criterion: name of a registered criterion, "torch_pruning.LAMPImportance" and the like, or an
            instance of torch-pruning's ``Importance``. "auto" is "magnitude" without ``data``; with it,
            "reconstruction" or, where there is a loss, "fisher": see ``allocation``.
        allocation: "uniform" (the same fraction of every group), "global" (lowest scores first) or
            "per_cost" (least error per cost saved). "auto" is the first for criteria that need no data.
            Otherwise "auto" tries every way that is left open, repaired, and takes the one with the least
            loss and change of outputs on a sixth of ``data`` that serves for nothing else.
        ratios: fractions of channels to remove, by shell-style pattern over dotted module names;
            such groups are left out of the allocation.
        protect: patterns of layers whose output channels stay.
        round_to: widths become multiples of this.
        example_inputs: the model's input, for models without an adapter: a tensor, or a tuple or dict of
            arguments. With an adapter: (N, 3, H, W) raw images in place of noise.
        forward_fn: ``forward_fn(model, example_inputs)``, returning the outputs that must be kept.
        allow_inexact: also prune what can't be proved (channels under a LayerNorm).
        verify: whether to make the proof.
        data: a few batches (100 to 250 images) of the model's inputs, to choose and repair channels by; the
            model runs on one at a time. For Detectron2's models: list[dict], best with their labels.
        loss: ``loss(model, batch)``, a scalar or a dict of them, that tells how much each output matters.
            Without it, models of Detectron2 use their own where batches have labels; others do without.
        repair: "refit" (the default with ``data``): what is left of each layer's input takes over what was
            removed, by least squares. "fold" is faster and weaker, "" leaves weights as they are.
        budget: points of accuracy that may be lost; then ``amount`` is ignored, and the largest cut that is
            within the budget after the repair, before any training, is found by bisection. Or what may be
            left of a cost: "25 ms", "60 GMACs", "12 M params"; then ``target`` is ignored, too.
        evaluate: what the budget is measured by: returns a model's score, or several by name, the larger the
            better. Give it other data than those that you report on.
        include: if given, only groups all of whose producers match one of these patterns are pruned.
        max_ratio: largest fraction of any one group's channels to remove.
        input_size: (height, width) that costs are counted on; default 800 x 1344.
        interactive: called with a :class:`d2prune.core.plan.review.Proposal` for each group that may be
            pruned, before anything is cut. True or None accepts it, False leaves the group whole, and a
            sequence of integers gives the units to remove instead. It is called again if the plan does
            not run.
        latency_table: path of a JSON table of latencies for target "latency" or a budget in ms, measured
            here or on another machine; written if there is none. By default it is kept in ~/.cache/d2prune.

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
    calibration, limit = data_of(data, loss, repair), _budget(budget, evaluate)
    path = os.fspath(latency_table)
    return prune_model(model, request, traced, verify, interactive, given, calibration, limit, path)


def _budget(points: float | str | None, evaluate: Callable[[nn.Module], Any] | None) -> Budget | Left | None:
    if isinstance(points, str):
        return left_of(points)
    if (points is None) != (evaluate is None):
        raise PruneError("budget= and evaluate= go together: points that may be lost, and what measures them")
    return None if points is None or evaluate is None else Budget(points, evaluate)


def _patterns(given: Sequence[str]) -> tuple[str, ...]:
    return (given,) if isinstance(given, str) else tuple(given)
