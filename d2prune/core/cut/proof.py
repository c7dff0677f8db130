"""The proof that a pruned model computes what the original would without the removed channels."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor, nn

from d2prune.core.cut.spec import PruneSpec, spec_of
from d2prune.core.cut.surgery import mask
from d2prune.core.types import Proof, PrunePlan
from d2prune.errors import PruneError

Outputs = Mapping[str, Tensor]
Forward = Callable[[nn.Module], Outputs]

ALLOWED = 1e-9  # of each output's largest magnitude, in float64
CONTROL = 1_000  # how many times more the control must err


class MisfitError(PruneError):
    """A pruned model that does not run, or does not compute what the masked one does."""


def verify(model: nn.Module, pruned: nn.Module, plan: PrunePlan, spec: PruneSpec, forward: Forward) -> Proof:
    """Compares the masked original with the pruned model on every dense output, in float64.

    Args:
        model: the original, untouched.
        pruned: the result of :func:`d2prune.core.cut.surgery.shrink`.
        plan: what was removed; the control masks as many of the units that stayed.
        spec: the plan as carried out.
        forward: gives the dense outputs of either model on the same fixed input, in its dtype.

    Returns:
        The proof; not exact, with the reason, where ALLOW_INEXACT let channels under a LayerNorm go
        (any difference is expected then) or the control shows that the test could not fail.

    Raises:
        MisfitError: if any output differs by more than ``ALLOWED``.
        PruneError: if any is not finite.
    """
    with torch.no_grad():
        masked = _run(mask(copy.deepcopy(model), spec, plan), forward)
        control = _run(_control(model, plan, spec.base), forward)
        errors = _errors(masked, pruned, forward)
    worst = max(errors, key=lambda name: errors[name])
    inexact = _inexact(plan)
    if not errors[worst] <= ALLOWED and not inexact:
        raise MisfitError(
            f"the pruned model is not equal to the masked one: error {errors[worst]:.1e} at {worst} "
            f"(allowed {ALLOWED:.0e})"
        )
    contrast = max(_error(masked[name], control[name]) for name in masked)
    shown = contrast >= CONTROL * max(errors[worst], float(np.finfo(np.float64).eps))
    reason = "" if shown else f"inconclusive: the control errs by only {contrast:.1e}"
    return Proof(shown and not inexact, errors[worst], contrast, "float64", tuple(masked), inexact or reason)


def compare(
    model: nn.Module, pruned: nn.Module, plan: PrunePlan, spec: PruneSpec, forward: Forward
) -> dict[str, float]:
    """By output, how far the pruned model is from the masked one, in float64."""
    return _errors(_run(mask(copy.deepcopy(model), spec, plan), forward), pruned, forward)


def _errors(masked: Outputs, pruned: nn.Module, forward: Forward) -> dict[str, float]:
    small = _run(copy.deepcopy(pruned), forward)
    return {name: _error(tensor, small[name]) for name, tensor in masked.items()}


def _inexact(plan: PrunePlan) -> str:
    """Why removal can't equal masking here; empty where it must."""
    pruned = (g for g, k in zip(plan.groups, plan.kept, strict=True) if len(k) < g.units)
    return next((g.inexact for g in pruned if g.inexact), "")


def _run(model: nn.Module, forward: Forward) -> Outputs:
    outputs = forward(model.double().eval())
    for name, tensor in outputs.items():
        if not torch.isfinite(tensor).all():
            raise PruneError(f"output '{name}' is not finite: can't compare")
    return outputs


def _error(expected: Tensor, got: Tensor) -> float:
    """Largest absolute difference relative to the largest expected magnitude; inf for other shapes."""
    if expected.shape != got.shape:
        return float("inf")
    largest = expected.abs().max().item() if expected.numel() else 0.0
    worst = (expected - got).abs().max().item() if expected.numel() else 0.0
    return worst / largest if largest else worst


def control_plan(plan: PrunePlan) -> PrunePlan:
    """A plan that drops as many units of each pruned group, but of those that stayed.

    Where fewer stayed than went, all that stayed go but none is taken twice. It is masked, never cut.
    """
    rng = np.random.default_rng(0)
    swapped = []
    for group, kept in zip(plan.groups, plan.kept, strict=True):
        count = min(group.units - len(kept), len(kept))
        gone = rng.permutation(kept)[:count]
        swapped.append(np.setdiff1d(np.arange(group.units), gone))
    return dataclasses.replace(plan, kept=tuple(swapped))


def _control(model: nn.Module, plan: PrunePlan, base: str) -> nn.Module:
    swapped = control_plan(plan)
    return mask(copy.deepcopy(model), spec_of(swapped, base, model), swapped)
