"""The search for groups that a model's own code depends on, when a pruned model fails or differs.

The trace follows what code does, not why: ``x[:, :8]`` and ``x[:, : c // 2]`` look the same. So if the
pruned model fails or differs, some units of every group are removed on trial, and groups that break the
model are left whole.
"""

from __future__ import annotations

import copy
import dataclasses
import logging
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from torch import nn

from d2prune.adapters import TraceInput
from d2prune.core.cut.proof import compare
from d2prune.core.types import Group, Indices, PrunePlan
from d2prune.errors import MISFITS, told
from d2prune.pruning.checks import computing_weights
from d2prune.pruning.cutting import cut_by_plan
from d2prune.pruning.proving import changes_code

logger = logging.getLogger(__name__)


def _ends_and_middle(units: int) -> Indices:
    return np.unique([0, units // 2, units - 1])


def _every_other(units: int) -> Indices:
    return np.arange(1, units, 2)


# Units to remove. One from the middle alone would not reveal code that reverses channels, say.
TRIALS: tuple[Callable[[int], Indices], ...] = (_ends_and_middle, _every_other)


def without_misfits(
    model: nn.Module, groups: Sequence[Group], trace_input: TraceInput, allow_inexact: bool = False
) -> tuple[Group, ...] | None:
    """Return the groups, with those fixed that the model's code depends on; None if there are none.

    It takes some forward passes in float64: twice the logarithm of the number of groups for each one
    found. For inexact groups, if these are allowed, it only checks that the model runs.
    """
    candidates = [i for i, g in enumerate(groups) if not g.fixed and g.units > 1]
    exact = [i for i in candidates if not groups[i].inexact]
    inexact = [i for i in candidates if groups[i].inexact and allow_inexact]
    found: dict[int, str] = {}
    for trial in TRIALS:
        for some in (exact, inexact):
            found.update(_bisect(model, groups, some, trace_input, trial))
        if found:
            break
    if not found:
        return None
    computing = computing_weights(model, trace_input)
    for index, why in found.items():
        layers = [m.layer for m in groups[index].members if m.axis == "in" and m.layer in computing]
        if layers:
            found[index] = why = f"{layers[0]} computes its weights (weight standardisation?): {why}"
        logger.warning("%s is left whole: %s", groups[index].name, why)
    return tuple(dataclasses.replace(g, fixed=found[i]) if i in found else g for i, g in enumerate(groups))


def _bisect(
    model: nn.Module,
    groups: Sequence[Group],
    some: Sequence[int],
    trace_input: TraceInput,
    trial: Callable[[int], Indices],
) -> Mapping[int, str]:
    """Return which of ``some`` groups fail on their own, with the reasons."""
    why = _try(model, groups, some, trace_input, trial) if some else ""
    if not why or len(some) == 1:
        return dict.fromkeys(some, why) if why else {}
    half = len(some) // 2
    parts = (_bisect(model, groups, part, trace_input, trial) for part in (some[:half], some[half:]))
    return {index: reason for part in parts for index, reason in part.items()}


def _try(
    model: nn.Module,
    groups: Sequence[Group],
    some: Sequence[int],
    trace_input: TraceInput,
    trial: Callable[[int], Indices],
) -> str:
    """Return why removing the ``trial`` units of each of ``some`` groups fails; empty if it does not."""
    every = [np.arange(g.units) for g in groups]
    # At least one unit stays, also of a small group.
    kept = tuple(
        np.delete(units, trial(len(units))[: len(units) - 1]) if i in some else units
        for i, units in enumerate(every)
    )
    plan = PrunePlan(tuple(groups), kept, ("",) * len(groups), 0.0)
    try:
        spec, pruned = cut_by_plan(copy.deepcopy(model).double(), plan, trace_input)
        found = compare(model, pruned, plan, spec, trace_input.forwards(changes_code(spec)))
    except MISFITS as error:
        return f"without some of its channels the model does not run ({told(error)[:120]})"
    if found.equal or any(groups[i].inexact for i in some):
        return ""
    return (
        "without some of its channels the model's code mixes up others "
        f"(error {found.error:.0e} at {found.worst})"
    )
