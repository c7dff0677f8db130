"""Rules for operators that work element by element, or do not read the elements."""

from __future__ import annotations

from typing import Any

from d2prune.core.trace.labels import merge
from d2prune.core.trace.operators.call import Bound, Labels, first, keep, sized, tensors_in


def unknown(labels: Labels, func: Any, bound: Bound, out: Any) -> None:
    """Handle an operator that is not in the table: keep all labels that go into it."""
    for tensor in tensors_in(bound):
        keep(labels, labels.of(tensor), f"go through {func._schema.name}, which d2prune does not know")


def pointwise(labels: Labels, func: Any, bound: Bound, out: Any) -> None:
    """Follow an elementwise operator: operands are broadcast, and labels at the same place are tied."""
    parts = [sized(labels, tensor) for tensor in tensors_in(bound)]
    for result in tensors_in(out):
        labels.set(result, merge(labels.store, parts, result.shape))


def same(labels: Labels, func: Any, bound: Bound, out: Any) -> None:
    """Give the result the labels of the first argument, whose shape it has."""
    labels.set(out, labels.of(first(bound)))


def constant(labels: Labels, func: Any, bound: Bound, out: Any) -> None:
    """Give the result no labels, because it does not depend on the arguments' elements."""


def write(labels: Labels, func: Any, bound: Bound, out: Any) -> None:
    """Follow a write: a whole tensor without labels takes the source's; otherwise tie target and source."""
    target, source = bound["self"], tensors_in([v for k, v in bound.items() if k != "self"])
    if target.storage_offset() == 0 and target._base is None and not labels.of(target):
        labels.set(target, merge(labels.store, [sized(labels, t) for t in source], target.shape))
    else:
        merge(labels.store, [sized(labels, t) for t in (target, *source)], target.shape)
