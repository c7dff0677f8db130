"""The proof that a pruned model computes what the original would without the removed channels."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor, nn

from d2prune.core.layers import Keep
from d2prune.core.spec import PruneSpec, spec_of
from d2prune.core.surgery import mask
from d2prune.core.types import Proof, PrunePlan
from d2prune.errors import PruneError

Outputs = Mapping[str, Tensor]
Forward = Callable[[nn.Module], Outputs]

ALLOWED = 1e-9  # of each output's largest magnitude, in float64
CONTROL = 1_000  # how many times more the control must err


def verify(model: nn.Module, pruned: nn.Module, plan: PrunePlan, spec: PruneSpec, forward: Forward) -> Proof:
    """Compares the masked original with the pruned model on every dense output, in float64.

    Args:
        model: the original, untouched.
        pruned: the result of :func:`d2prune.core.surgery.shrink`.
        plan: what was removed; the control masks as many of the units that stayed.
        spec: the plan as carried out.
        forward: gives the dense outputs of either model on the same fixed input, in its dtype.

    Returns:
        The proof; not exact, with the reason, where ALLOW_INEXACT let channels under a LayerNorm go
        (any difference is expected then) or the control shows that the test could not fail.

    Raises:
        PruneError: if any output is not finite, or differs by more than ``ALLOWED``.
    """
    with torch.no_grad():
        small = _run(copy.deepcopy(pruned), forward)
        masked = _run(mask(copy.deepcopy(model), spec), forward)
        control = _run(mask(copy.deepcopy(model), control_spec(plan, spec, model)), forward)
    errors = {name: _error(masked[name], small[name]) for name in masked}
    worst = max(errors, key=lambda name: errors[name])
    inexact = _inexact(plan)
    if not errors[worst] <= ALLOWED and not inexact:
        raise PruneError(
            f"the pruned model is not equal to the masked one: error {errors[worst]:.1e} at {worst} "
            f"(allowed {ALLOWED:.0e})"
        )
    contrast = max(_error(masked[name], control[name]) for name in masked)
    shown = contrast >= CONTROL * max(errors[worst], np.finfo(np.float64).eps)
    reason = "" if shown else f"inconclusive: the control errs by only {contrast:.1e}"
    return Proof(shown and not inexact, errors[worst], contrast, "float64", tuple(masked), inexact or reason)


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


def control_spec(plan: PrunePlan, spec: PruneSpec, model: nn.Module) -> PruneSpec:
    """A spec that drops as many units of each pruned group as the plan, but of those that stayed.

    Where fewer stayed than went, all that stayed go but none is taken twice. Only its input columns
    matter: it is masked, never cut.
    """
    rng = np.random.default_rng(0)
    swapped = []
    for group, kept in zip(plan.groups, plan.kept, strict=True):
        count = min(group.units - len(kept), len(kept))
        gone = rng.permutation(kept)[:count]
        swapped.append(np.setdiff1d(np.arange(group.units), gone))
    control = spec_of(PrunePlan(plan.groups, tuple(swapped), plan.reasons, plan.reached), spec.base, model)
    layers = {name: Keep(inp=keep.inp) for name, keep in control.layers.items()}
    return PruneSpec(control.base, layers, control.widths)
