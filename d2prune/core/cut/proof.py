"""The proof that a pruned model computes what the original would without the removed channels."""

from __future__ import annotations

import copy
import dataclasses
import logging
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from d2prune.core.cut.arithmetic import ReversedSums, in_float64
from d2prune.core.cut.spec import PruneSpec, spec_of
from d2prune.core.cut.surgery import mask
from d2prune.core.types import Proof, PrunePlan
from d2prune.errors import MISFITS, PruneError, told

Outputs = Mapping[str, Tensor]
Forward = Callable[[nn.Module], Outputs]
Forwards = Mapping[str, Forward]
"""By input sizes, functions that return a model's dense outputs. The model must take the first input."""

logger = logging.getLogger(__name__)
ALLOWED = 1e-9  # of each output's largest magnitude, in float64
CONTROL = 1_000  # how many times more the control must err
ROUNDING = (
    10  # how many times the masked model's own rounding error is allowed, where that is more than ALLOWED ...
)
MOST = 1e-6  # ... but never more than this


class MisfitError(PruneError):
    """A pruned model that does not run, or does not compute what the masked one does."""


@dataclass(frozen=True)
class Comparison:
    """The differences between the masked and the pruned model, output by output.

    Attributes:
        masked: the masked model's outputs, by the sizes of the input.
        errors: by output, the largest difference relative to its largest magnitude.
        allowed: by output, the largest allowed error.
    """

    masked: Mapping[str, Outputs]
    errors: Mapping[str, float]
    allowed: Mapping[str, float]

    @property
    def worst(self) -> str:
        """The output with the largest error relative to what is allowed."""
        return max(self.errors, key=lambda name: self.errors[name] / self.allowed[name])

    @property
    def error(self) -> float:
        """The error of the :attr:`worst` output."""
        return self.errors[self.worst]

    @property
    def equal(self) -> bool:
        """Whether no output differs by more than is allowed."""
        return self.error <= self.allowed[self.worst]


def verify(
    model: nn.Module,
    pruned: nn.Module,
    plan: PrunePlan,
    spec: PruneSpec,
    forwards: Forwards,
    varied: Forward,
) -> Proof:
    """Compare the masked original with the pruned model on every dense output, in float64.

    Args:
        model: the original, untouched.
        pruned: the result of :func:`d2prune.core.cut.surgery.resize`.
        plan: what was removed; the control masks as many of the units that stayed.
        spec: the plan as carried out.
        forwards: return the dense outputs of either model; inputs after the first that the original
            does not take are left out.
        varied: the same on another input of the first one's sizes, to find outputs that are constant.

    Returns:
        The proof. It is not exact, with the reason, if channels under a LayerNorm were removed with
        ALLOW_INEXACT (differences are expected then), or if the control errs too little to prove anything.

    Raises:
        MisfitError: if any output differs by more than ``ALLOWED`` and by more than rounding explains.
        PruneError: if any output is not finite.
    """
    found, inexact = compare(model, pruned, plan, spec, forwards), inexact_in(plan)
    if not found.equal and not inexact:
        raise MisfitError(
            f"the pruned model is not equal to the masked one: error {found.error:.1e} at {found.worst} "
            f"(allowed {found.allowed[found.worst]:.0e})"
        )
    size, masked = next(iter(found.masked.items()))
    control = _run(_control(model, plan, spec.base), forwards[size])
    contrasts = {name: _error(tensor, control[name]) for name, tensor in masked.items()}
    constant = _constant(model, masked, contrasts, forwards[size], varied)
    contrast = max(contrasts.values())
    shown = contrast >= CONTROL * max(found.error, float(np.finfo(np.float64).eps))
    reason = "" if shown else _inconclusive(masked, constant, contrast)
    return Proof(
        exact=shown and not inexact,
        error=found.error,
        control_error=contrast,
        dtype="float64",
        compared=tuple(masked),
        reason=inexact or reason,
        inputs=tuple(found.masked),
        constant=constant,
    )


@torch.no_grad()
def compare(
    model: nn.Module, pruned: nn.Module, plan: PrunePlan, spec: PruneSpec, forwards: Forwards
) -> Comparison:
    """Compare the pruned model with the masked one, in float64."""
    reference = mask(copy.deepcopy(model), spec, plan)
    masked, small = _reference(reference, forwards), copy.deepcopy(pruned)
    errors = _errors(masked, {size: _run_at(size, small, forwards[size]) for size in masked})
    allowed = dict.fromkeys(errors, ALLOWED)
    if max(errors.values()) > ALLOWED:
        turned = {size: _run(reference, forwards[size], reverse=True) for size in masked}
        rounding = _errors(masked, turned)
        undecided = _undecided(masked, rounding)
        errors = {name: error for name, error in errors.items() if name not in undecided}
        allowed = {name: min(MOST, max(ALLOWED, ROUNDING * rounding[name])) for name in errors}
    return Comparison(masked, errors, allowed)


def _reference(masked: nn.Module, forwards: Forwards) -> dict[str, Outputs]:
    found: dict[str, Outputs] = {}
    for size, forward in forwards.items():
        try:
            outputs = _run(masked, forward)
            if not found or _same_kind(next(iter(found.values())), outputs):
                found[size] = outputs
        except PruneError:
            raise
        except MISFITS as error:
            why = told(error)
            if not found:
                raise PruneError(
                    f"the proof needs {type(masked).__name__} in float64, where it does not run: {why} "
                    "(verify=False leaves the proof out)"
                ) from error
    return found


def _same_kind(first: Outputs, other: Outputs) -> bool:
    """Return whether outputs match in names, and in rows or twice as many (for a doubled batch)."""
    rows = [(len(t), len(other[name])) for name, t in first.items() if t.dim() and name in other]
    return first.keys() == other.keys() and all(new in (old, 2 * old) for old, new in rows)


def _run_at(size: str, pruned: nn.Module, forward: Forward) -> Outputs:
    try:
        return _run(pruned, forward)
    except PruneError:
        raise
    except MISFITS as error:
        raise MisfitError(f"{told(error)} (the pruned model, on an input of {size})") from error


def _undecided(masked: Mapping[str, Outputs], rounding: Mapping[str, float]) -> set[str]:
    """Return outputs that rounding alone decides (top-k of equal scores), except on the first input."""
    labels = (label for size in list(masked)[1:] for label in _names(size, masked))
    found = {label for label in labels if ROUNDING * rounding[label] > MOST}
    if found:
        logger.info("not compared, because rounding alone changes them: %s", ", ".join(sorted(found)))
    return found


def _names(size: str, outputs: Mapping[str, Outputs]) -> dict[str, str]:
    """Return the names of the outputs on an input of ``size``, by their labels in messages."""
    first = next(iter(outputs))
    return {(n if size == first else f"{n} on an input of {size}"): n for n in outputs[size]}


def _errors(expected: Mapping[str, Outputs], got: Mapping[str, Outputs]) -> dict[str, float]:
    return {
        label: _error(outputs[name], got[size][name])
        for size, outputs in expected.items()
        for label, name in _names(size, expected).items()
    }


def inexact_in(plan: PrunePlan) -> str:
    """Return why removal can't equal masking for this plan; empty if it must."""
    pruned = (g for g, k in zip(plan.groups, plan.kept, strict=True) if len(k) < g.units)
    return next((g.inexact for g in pruned if g.inexact), "")


@torch.no_grad()
def _run(model: nn.Module, forward: Forward, reverse: bool = False) -> Outputs:
    with in_float64(), ReversedSums() if reverse else nullcontext():
        outputs = forward(model.double().eval())
    for name, tensor in outputs.items():
        if not torch.isfinite(tensor).all():
            raise PruneError(f"output '{name}' is not finite: can't compare")
    return outputs


def _error(expected: Tensor, got: Tensor) -> float:
    """Return the largest difference relative to the largest expected magnitude; inf if shapes differ."""
    if expected.shape != got.shape:
        return float("inf")
    largest = expected.abs().max().item() if expected.numel() else 0.0
    worst = (expected - got).abs().max().item() if expected.numel() else 0.0
    return worst / largest if largest else worst


def _constant(
    model: nn.Module, masked: Outputs, contrasts: Mapping[str, float], *forwards: Forward
) -> tuple[str, ...]:
    """Return the names of outputs that depend neither on the mask nor on the input: they prove nothing."""
    if all(contrasts.values()):
        return ()
    runs = [masked, *(_run(copy.deepcopy(model), forward) for forward in forwards)]
    unmoved = (name for name, contrast in contrasts.items() if not contrast)
    return tuple(n for n in unmoved if all(_same(masked[n], run.get(n)) for run in runs))


def _same(one: Tensor, two: Tensor | None) -> bool:
    return two is not None and torch.equal(one, two)


def _inconclusive(masked: Outputs, constant: tuple[str, ...], contrast: float) -> str:
    if len(constant) < len(masked):
        return f"inconclusive: the control errs by only {contrast:.1e}"
    zero = ", all zeros" if not any(tensor.any() for tensor in masked.values()) else ""
    return f"inconclusive: the output is constant{zero}: initialise the head or load weights"


def control_plan(plan: PrunePlan) -> PrunePlan:
    """Return the control's plan: it drops as many units of each pruned group, chosen from the kept ones.

    If fewer were kept than removed, it drops all that were kept. It is only masked, never cut.
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
