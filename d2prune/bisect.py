"""Finding the channels that a model's own code counts on, when a pruned model turns out wrong.

The trace follows what code does, not why: ``x[:, :8]`` and ``x[:, : c // 2]`` look the same. So where
the pruned model fails or differs, every group is tried by itself, one unit taken out, and those that
do not stand it are left whole.
"""

from __future__ import annotations

import copy
import dataclasses
import logging
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import nn

from d2prune.adapters import TraceInput
from d2prune.core.cut.proof import ALLOWED, compare
from d2prune.core.types import Group, PrunePlan
from d2prune.cutting import cut_by_plan
from d2prune.errors import MISFITS

logger = logging.getLogger(__name__)


def without_misfits(
    model: nn.Module, groups: Sequence[Group], trace_input: TraceInput, allow_inexact: bool = False
) -> tuple[Group, ...] | None:
    """The groups, with those left whole that the model's code does not let go; None if there are none.

    Takes some forward passes in float64: twice the logarithm of the number of groups for each one
    found. Of groups that can't be exact, where these are allowed, it is asked only that the model runs.
    """
    candidates = [i for i, g in enumerate(groups) if not g.fixed and g.units > 1]
    exact = [i for i in candidates if not groups[i].inexact]
    found = dict(_bisect(model, groups, exact, trace_input))
    if allow_inexact:
        found.update(_bisect(model, groups, [i for i in candidates if groups[i].inexact], trace_input))
    if not found:
        return None
    for index, why in found.items():
        logger.warning("%s is left whole: %s", groups[index].name, why)
    return tuple(dataclasses.replace(g, fixed=found[i]) if i in found else g for i, g in enumerate(groups))


def _bisect(
    model: nn.Module, groups: Sequence[Group], some: Sequence[int], trace_input: TraceInput
) -> Mapping[int, str]:
    """Which of ``some`` groups fail on their own, and why."""
    why = _try(model, groups, some, trace_input) if some else ""
    if not why or len(some) == 1:
        return dict.fromkeys(some, why) if why else {}
    half = len(some) // 2
    parts = (_bisect(model, groups, part, trace_input) for part in (some[:half], some[half:]))
    return {index: reason for part in parts for index, reason in part.items()}


def _try(model: nn.Module, groups: Sequence[Group], some: Sequence[int], trace_input: TraceInput) -> str:
    """What goes wrong when one unit of each of ``some`` groups goes; empty if nothing does."""
    kept = tuple(
        np.delete(np.arange(g.units), g.units // 2) if i in some else np.arange(g.units)
        for i, g in enumerate(groups)
    )
    plan = PrunePlan(tuple(groups), kept, ("",) * len(groups), 0.0)
    try:
        spec, pruned = cut_by_plan(copy.deepcopy(model).double(), plan, trace_input)
        with torch.no_grad():
            errors = compare(model, pruned, plan, spec, trace_input.outputs)
    except MISFITS as error:
        return f"without one of its channels the model does not run ({str(error)[:120]})"
    worst = max(errors, key=lambda name: errors[name])
    if errors[worst] <= ALLOWED or any(groups[i].inexact for i in some):
        return ""
    return (
        f"without one of its channels the model's code mixes up others (error {errors[worst]:.0e} at {worst})"
    )
