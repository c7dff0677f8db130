"""Operators that work element by element, or not at all on the elements."""

from __future__ import annotations

from typing import Any

from d2prune.core.trace.labels import merge
from d2prune.core.trace.operators.call import Bound, Labels, first, keep, sized, tensors_in


def unknown(labels: Labels, func: Any, bound: Bound, out: Any) -> None:
    """An operator that is not in the table: nothing that goes into it is cut."""
    for tensor in tensors_in(bound):
        keep(labels, labels.of(tensor), f"go through {func._schema.name}, which d2prune does not know")


def pointwise(labels: Labels, func: Any, bound: Bound, out: Any) -> None:
    """Operands are broadcast; labels of the same place are tied."""
    parts = [sized(labels, tensor) for tensor in tensors_in(bound)]
    for result in tensors_in(out):
        labels.set(result, merge(labels.store, parts, result.shape))


def same(labels: Labels, func: Any, bound: Bound, out: Any) -> None:
    """The result has the shape of the first argument, element by element."""
    labels.set(out, labels.of(first(bound)))


def constant(labels: Labels, func: Any, bound: Bound, out: Any) -> None:
    """The result holds nothing of the arguments."""


def write(labels: Labels, func: Any, bound: Bound, out: Any) -> None:
    """A copy into a tensor, or a part of it: it is the whole that has labels, or none of it."""
    target, source = bound["self"], tensors_in([v for k, v in bound.items() if k != "self"])
    if target.storage_offset() == 0 and target._base is None and not labels.of(target):
        labels.set(target, merge(labels.store, [sized(labels, t) for t in source], target.shape))
    else:
        merge(labels.store, [sized(labels, t) for t in (target, *source)], target.shape)
