"""One prune from end to end: trace, score, plan, cut, prove. The composition root of the core."""

from __future__ import annotations

import copy
import dataclasses
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import nn
from torch.utils._pytree import tree_map

from d2prune.adapters import Target
from d2prune.core.choices import Ask, decide
from d2prune.core.constraints import rooms
from d2prune.core.copies import in_float32, on_meta
from d2prune.core.costs import CostModel, measure
from d2prune.core.coverage import UNREACHED, coverage
from d2prune.core.graph import trace_groups
from d2prune.core.importance import score
from d2prune.core.layers import is_layer
from d2prune.core.planner import TOLERANCE, check, plan
from d2prune.core.repeats import install, needed
from d2prune.core.spec import PruneSpec, spec_of
from d2prune.core.types import Coverage, Group, Proof, PrunePlan, Request, Totals
from d2prune.core.verify import MisfitError, verify
from d2prune.engine.trial import without_misfits
from d2prune.errors import MISFITS, PruneError
from d2prune.rebuild import prune_further

Model = TypeVar("Model", bound=nn.Module)
logger = logging.getLogger(__name__)
ROUNDS = 4  # plans made, at most, until the cost that is measured is the one asked for


@dataclass(frozen=True, eq=False)
class PruneResult(Generic[Model]):
    """What :func:`prune` returns.

    Attributes:
        model: a new model; the one passed in is untouched.
        spec: what was kept of the unpruned model, enough to rebuild it without tracing.
        step: what was kept of the model passed in: ``spec`` itself, unless that was pruned before.
        coverage: one row per layer, with the reason where it was left whole.
        proof: None only with ``verify=False``.
        before: parameters and MACs of the model passed in.
        after: those of the pruned one, measured again, not predicted.
        request: what was asked for.
        reached: fraction of the request's target that went.
        plan: which units of which groups stayed.
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


def prune(
    model: Model,
    amount: float = 0.5,
    target: str = "macs",
    criterion: str = "magnitude",
    allocation: str = "global",
    ratios: dict[str, float] | Sequence[tuple[str, float]] = (),
    protect: Sequence[str] = (),
    round_to: int = 1,
    example_inputs: Any = None,
    forward_fn: Callable[[nn.Module, Any], Any] | None = None,
    allow_inexact: bool = False,
    verify: bool = True,
    *,
    include: Sequence[str] = (),
    max_ratio: float = 0.75,
    input_size: tuple[int, int] | None = None,
    interactive: Ask | None = None,
) -> PruneResult[Model]:
    """Removes channels from a copy of ``model`` and proves that the rest computes the same.

    Args:
        model: any module; the common Detectron2 and AdelaiDet architectures have adapters.
        amount: fraction of the whole model's ``target`` to REMOVE, 0 < amount < 1.
        target: "channels", "params" or "macs": what ``amount`` counts.
        criterion: name of a registered criterion.
        allocation: "uniform" (the same fraction of every group) or "global" (lowest scores first).
        ratios: fractions of channels to remove, by shell-style pattern over dotted module names;
            such groups take no part in the allocation.
        protect: patterns of layers whose output channels stay.
        round_to: widths become multiples of this.
        example_inputs: what to run, for models without an adapter: a tensor, or a tuple or dict of
            arguments. With an adapter: (N, 3, H, W) raw images in place of noise.
        forward_fn: ``forward_fn(model, example_inputs)``, returning the outputs that must be kept.
        allow_inexact: prune also what can't be proved (channels under a LayerNorm).
        verify: make the proof.
        include: if given, only groups all of whose producers match one of these patterns.
        max_ratio: largest fraction of any one group's channels.
        input_size: (height, width) that costs are counted on; default 800 x 1344.
        interactive: called with a :class:`d2prune.core.choices.Proposal` for each group that may be
            pruned, before anything is cut. True or None accepts it, False leaves the group whole, and a
            sequence of integers names the units to remove instead. Asked again if the plan turns out
            not to run.

    Raises:
        PruneError: for a request that can't be met, a model that can't be traced, non-finite weights,
            or a pruned model that fails the proof.
    """
    pairs = ratios.items() if isinstance(ratios, dict) else ratios
    request = Request(
        amount, target, criterion, allocation, tuple((p, float(r)) for p, r in pairs),
        _patterns(protect), _patterns(include), max_ratio, round_to, allow_inexact,
    )  # fmt: skip
    traced = Target(model, example_inputs, forward_fn, input_size)
    return prune_model(model, request, traced, verify, interactive)


def _patterns(given: Sequence[str]) -> tuple[str, ...]:
    return (given,) if isinstance(given, str) else tuple(given)


@torch.inference_mode(False)  # else the new model could not be traced, nor trained
def prune_model(
    model: Model, request: Request, target: Target, prove: bool = True, ask: Ask | None = None
) -> PruneResult[Model]:
    """As :func:`prune`, from a request and a trace target."""
    check(request)
    _check_model(model)
    try:
        groups = find_groups(model, target)
    except PruneError:
        raise
    except MISFITS:
        _check_inputs(model, target)
        raise
    costs = measure_model(model, target)
    while True:
        try:
            return _prune_groups(model, groups, costs, request, target, prove, ask)
        except MisfitError:
            remaining = without_misfits(model, groups, target, request.allow_inexact)
            if remaining is None:
                raise
            groups = remaining


def _prune_groups(
    model: Model,
    groups: tuple[Group, ...],
    costs: CostModel,
    request: Request,
    target: Target,
    prove: bool,
    ask: Ask | None,
) -> PruneResult[Model]:
    names = [name for name, _ in model.named_modules()]
    scores, spaces = score(model, groups, request.criterion), rooms(groups, request, names)
    asked = request
    for _ in range(ROUNDS):
        decided = plan(groups, scores, spaces, costs, asked)
        spec, pruned, after, reached = _carried_out(model, decided, costs, request, target)
        if abs(reached - decided.reached) <= TOLERANCE or abs(reached - request.amount) <= TOLERANCE:
            break
        # Some products of activations became cheaper, too, than the layers' widths foretold.
        asked = dataclasses.replace(asked, amount=asked.amount * request.amount / reached)
    if ask is not None:
        decided = decide(decided, scores, spaces, costs, request, ask)
        spec, pruned, after, reached = _carried_out(model, decided, costs, request, target)
    proof = verify(model, pruned, decided, spec, target.outputs) if prove else None
    rows = coverage(model, pruned, decided, costs)
    _warn_unreached(rows)
    if ask is None:
        _warn_missed(request, reached)
    return PruneResult(
        model=pruned,
        spec=pruned.prune_spec,
        step=spec,
        coverage=rows,
        proof=proof,
        before=costs.totals,
        after=after,
        request=request,
        reached=reached,
        plan=decided,
    )


def _carried_out(
    model: Model, decided: PrunePlan, costs: CostModel, request: Request, target: Target
) -> tuple[PruneSpec, Model, Totals, float]:
    """The plan's spec, the model that is left, what it costs, and the fraction that this saves."""
    spec = spec_of(decided, type(model).__name__, model)
    pruned = _cut(model, spec, target)
    after = _measure_pruned(pruned, target)
    return spec, pruned, after, _saved(costs.totals, after, request, decided.reached)


def _saved(before: Totals, after: Totals, request: Request, planned: float) -> float:
    """The fraction of the target's cost that went, as measured; as planned where channels are counted."""
    if request.target == "channels":
        return planned
    old, new = (getattr(totals, request.target) for totals in (before, after))
    return 1 - float(new) / float(old)


def _cut(model: Model, spec: PruneSpec, target: Target) -> Model:
    """A pruned copy that corrects no more calls than it must."""
    pruned = prune_further(copy.deepcopy(model), spec)
    if not pruned.prune_spec.corrections:
        return pruned
    try:
        corrections = needed(copy.deepcopy(pruned).eval(), target.outputs)
    except MISFITS as error:
        raise _misfit(error) from error
    install(pruned, corrections)
    recorded: PruneSpec = pruned.prune_spec  # type: ignore[assignment]
    pruned.prune_spec = dataclasses.replace(recorded, corrections=corrections)
    return pruned


def find_groups(model: nn.Module, target: Target) -> tuple[Group, ...]:
    """Groups of channels that go together; traced in float32 on a copy, autocast off."""
    return trace_groups(in_float32(model), target.outputs)


def _warn_missed(request: Request, reached: float) -> None:
    if abs(reached - request.amount) > 0.01:
        held = "RATIOS, steps" if request.ratios else "steps"
        logger.warning(
            "AMOUNT %s of %s: reached %.3f, %+.3f off; %s of the groups and ROUND_TO %d allow no nearer",
            request.amount, request.target, reached, reached - request.amount, held, request.round_to,
        )  # fmt: skip


def _warn_unreached(rows: Sequence[Coverage]) -> None:
    names = [row.name for row in rows if row.reason == UNREACHED and row.before]
    if names:
        logger.warning(
            "%d layers were not run by the forward pass that was traced: %s. If they read channels "
            "that were removed (a branch that only training runs, say), they no longer fit: give a "
            "forward_fn= that runs them too, or an adapter",
            len(names),
            ", ".join(names[:5]) + (", ..." if len(names) > 5 else ""),
        )


def _check_model(model: nn.Module) -> None:
    if not any(True for _ in model.parameters()):
        raise PruneError(f"{type(model).__name__} has no parameters: there is nothing to prune")
    layers = {name: module for name, module in model.named_modules() if is_layer(module)}
    statistics = ((f"{n}.{b}", t) for n, m in layers.items() for b, t in m.named_buffers(recurse=False))
    for name, tensor in (*model.named_parameters(), *statistics):
        # A finite sum has finite terms, and is had in one pass.
        if not torch.isfinite(tensor.sum()) and not torch.isfinite(tensor).all():
            raise PruneError(f"{name} is not finite; refusing to prune")


def _check_inputs(model: nn.Module, target: Target) -> None:
    """The model runs as it is: if not, that is what is wrong, and not the trace."""
    try:
        with torch.no_grad():
            target.outputs(in_float32(model))
    except PruneError:
        raise
    except MISFITS as error:
        shapes = tree_map(lambda v: tuple(v.shape) if isinstance(v, torch.Tensor) else v, target.inputs)
        raise PruneError(
            f"{type(model).__name__} does not run on example_inputs {shapes}: {error}; expected a tensor, or "
            "a tuple or dict of arguments, that its forward takes (or a forward_fn= that calls it)"
        ) from error


def _measure_pruned(pruned: nn.Module, target: Target) -> Totals:
    try:
        return measure_model(pruned, target).totals
    except MISFITS as error:
        raise _misfit(error) from error


def _misfit(error: Exception) -> MisfitError:
    return MisfitError(
        f"the pruned model does not run: {error} (its code may count on a width; "
        "keep the layers before that place whole with MODEL.PRUNING.PROTECT)"
    )


def measure_model(model: nn.Module, target: Target) -> CostModel:
    """Costs of one image; counted on the meta device, at no cost for any size, where the model runs there."""
    try:
        return measure(on_meta(model).eval(), target.inference)
    except (NotImplementedError, RuntimeError) as error:
        logger.info("counting on the model's own device: it does not run on meta (%s)", error)
        return measure(copy.deepcopy(model).eval(), target.inference)
