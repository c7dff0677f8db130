"""Carrying out a plan on a copy of a model: cutting its layers and updating the numbers in its code."""

from __future__ import annotations

import copy
import dataclasses
from importlib.metadata import PackageNotFoundError, version
from typing import TypeVar

import torch
from torch import nn

from d2prune.adapters import TraceInput
from d2prune.core.copies import in_float32
from d2prune.core.cut.proof import MisfitError
from d2prune.core.cut.spec import PruneSpec, spec_of
from d2prune.core.literals.settle import settle
from d2prune.core.literals.wanted import all_numbers, new_numbers
from d2prune.core.types import PrunePlan
from d2prune.errors import MISFITS, PruneError, told
from d2prune.rebuild import prune_further

Model = TypeVar("Model", bound=nn.Module)


def cut_by_plan(model: Model, plan: PrunePlan, trace_input: TraceInput) -> tuple[PruneSpec, Model]:
    """Return the spec that carries out ``plan`` on ``model``, and a pruned copy; ``model`` does not change.

    Raises:
        MisfitError: if the pruned copy does not run, or its code has numbers that can't be changed.
    """
    spec = dataclasses.replace(spec_of(plan, type(model).__name__, model), written_by=_versions())
    pruned, wanted = prune_further(copy.deepcopy(model), spec), new_numbers(plan)
    if all(new.unchanged for new in all_numbers(wanted)):
        return spec, pruned
    try:
        code = settle(in_float32(pruned), wanted, trace_input.outputs)
    except PruneError as error:
        raise MisfitError(str(error)) from error
    except MISFITS as error:
        raise misfit(error) from error
    if not code:
        return spec, pruned
    return spec.with_code(code), prune_further(copy.deepcopy(model), spec.with_code(code))


def misfit(error: Exception) -> MisfitError:
    """Return the error to raise for a pruned model that does not run."""
    return MisfitError(
        f"the pruned model does not run: {told(error)} (its code may count on a width; "
        "keep the layers before that place whole with MODEL.PRUNING.PROTECT)",
        keys=("MODEL.PRUNING.PROTECT",),
    )


def _versions() -> dict[str, str]:
    try:
        own = version("d2prune")
    except PackageNotFoundError:  # a checkout on the path that was never installed
        own = "unknown"
    return {"d2prune": own, "torch": torch.__version__}
