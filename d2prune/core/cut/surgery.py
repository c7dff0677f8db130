"""Two ways to remove channels: by cutting tensors (:func:`resize`), and by zeros (:func:`mask`)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeVar

import numpy as np
from torch import Tensor, nn

from d2prune.core.cut.spec import PruneSpec
from d2prune.core.layers.kinds import (
    cut,
    groups_after,
    module_at,
    select,
    widths_of,
    zero_inputs,
    zero_outputs,
)
from d2prune.core.layers.table import parameter_dim
from d2prune.core.types import PrunePlan
from d2prune.errors import PruneError

Model = TypeVar("Model", bound=nn.Module)


def resize(model: Model, spec: PruneSpec) -> Model:
    """Remove from ``model``, in place, the channels that ``spec`` does not keep; kept weights do not change.

    It works on any device, meta included; tensors keep their device, dtype and ``requires_grad``.

    Raises:
        PruneError: if a layer is missing or has another width than the spec was made for. All layers
            are checked before anything is changed.
    """
    for name in spec.layers:
        _check(model, name, spec)
    for name, keep in spec.layers.items():
        target = module_at(model, name)
        if not isinstance(target, Tensor):
            cut(target, keep)
        elif keep.out is not None:
            parent, _, leaf = name.rpartition(".")
            select(model.get_submodule(parent), leaf, parameter_dim(target), keep.out)
    return model


def _check(model: nn.Module, name: str, spec: PruneSpec) -> None:
    keep, expected = spec.layers[name], spec.widths[name]
    try:
        found = widths_of(model, name)
    except (AttributeError, IndexError):  # not there, or a scalar
        raise PruneError(
            f"the pruning spec cuts layer '{name}', which this {type(model).__name__} does not have"
        ) from None
    for axis, before, now in zip(("output", "input"), expected, found, strict=True):
        if before is not None and before != now:
            raise PruneError(
                f"layer '{name}' has {now} {axis} channels; the pruning spec was made for {before}"
            )
    target = module_at(model, name)
    groups = groups_after(target, len(keep.out)) if keep.out is not None else None
    if keep.groups != groups:
        raise PruneError(f"layer '{name}' would have {groups} groups; the pruning spec has {keep.groups}")


def mask(model: Model, spec: PruneSpec, plan: PrunePlan | None = None) -> Model:
    """Zero, in place, the weights by which each consumer reads the channels that ``spec`` drops.

    Zeroing the *consumers'* input columns equals removal whatever lies between: zeroing the producer
    instead would leave the following norm's ``beta - gamma * mean / std``. A product of activations has
    no columns to zero, so the producers of ``plan``'s contracted groups are zeroed, too.
    """
    for member, positions in _products(plan):
        zero_outputs(module_at(model, member), positions)
    for name, keep in spec.layers.items():
        if keep.inp is not None:
            dropped = set(range(spec.widths[name][1] or 0)) - set(keep.inp)
            zero_inputs(model.get_submodule(name), sorted(dropped))
    return model


def _products(plan: PrunePlan | None) -> Iterator[tuple[str, list[int]]]:
    """Yield each producer of contracted groups with the positions of its channels that are removed."""
    for group, kept in zip(plan.groups, plan.kept, strict=True) if plan is not None else ():
        gone = np.setdiff1d(np.arange(group.units), kept)
        for member in group.members if group.contracted and gone.size else ():
            if member.axis == "out":
                yield member.layer, member.indices[gone].reshape(-1).tolist()
