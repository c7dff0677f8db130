"""Rules for operators that combine elements of one tensor: reductions, pooling, normalisation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from d2prune.core.trace.labels import Sized, along, merge, support
from d2prune.core.trace.operators.call import Bound, Labels, first, keep, sized, tensors_in


def _dims(bound: Bound, x: Tensor) -> set[int]:
    given = bound.get("dim")
    dims = [given] if isinstance(given, int) else given or range(x.dim())
    return {d % x.dim() for d in dims} if x.dim() else set()


def reduce(labels: Labels, func: Any, bound: Bound, out: Any) -> None:
    """Follow sums, means and maxima: labels along reduced dimensions are mixed, others pass through."""
    x = first(bound)
    dims = _dims(bound, x)
    left = []
    for label_map in labels.of(x):
        if dims & set(support(label_map)):
            labels.store.mix(label_map, f"are mixed by {func._schema.name}")
        elif support(label_map):
            left.append(label_map)
    for result in tensors_in([out]):
        kept = [s if result.dim() == x.dim() else _without(s, dims) for s in left]
        labels.set(result, tuple(kept))


def _without(label_map: Tensor, dims: set[int]) -> Tensor:
    return label_map.reshape([size for dim, size in enumerate(label_map.shape) if dim not in dims])


def mix(labels: Labels, func: Any, bound: Bound, out: Any) -> None:
    """Follow softmax and its like: labels along the dimension are mixed, and all pass through."""
    x = first(bound)
    for label_map in labels.of(x):
        if _dims(bound, x) & set(support(label_map)):
            labels.store.mix(label_map, f"are mixed by {func._schema.name}")
    for result in tensors_in([out]):
        labels.set(result, labels.of(x) if result.shape == x.shape else ())


def choose(labels: Labels, func: Any, bound: Bound, out: Any) -> None:
    """Follow top-k and sorting: labels along the sorted dimension are kept, others pass through."""
    x, dim = bound["self"], bound.get("dim", -1) % bound["self"].dim()
    free = tuple(s for s in labels.of(x) if dim not in support(s))
    keep(labels, tuple(s for s in labels.of(x) if dim in support(s)), f"are sorted by {func._schema.name}")
    for result in tensors_in([out]):
        labels.set(result, free)


def by_channel(labels: Labels, func: Any, bound: Bound, out: Any) -> None:
    """Follow pooling, resampling and the like, which work on each channel (dimension 1) alone."""
    x, *places = tensors_in(bound)
    for tensor in places:  # grids, or boxes
        keep(labels, labels.of(tensor), f"say where {func._schema.name} samples")
    others = tuple(s for s in labels.of(x) if support(s) not in ((0,), (1,)))
    keep(labels, others, f"lie along a dimension that {func._schema.name} resamples")
    for result in tensors_in([out]):
        through = [s for s in labels.of(x) if support(s) in ((0,), (1,)) and result.dim() == x.dim()]
        labels.set(
            result, tuple(s for s in through if all(result.shape[d] == x.shape[d] for d in support(s)))
        )


def batch_norm(labels: Labels, func: Any, bound: Bound, out: Any) -> None:
    """Follow batch norm: tie the input's channels to those of the statistics, weight and bias."""
    x = bound["input"]
    parts = by_channel_values(labels, bound, ("weight", "bias", "running_mean", "running_var"), x)
    labels.set(tensors_in([out])[0], merge(labels.store, [sized(labels, x), *parts], x.shape))


def channels_only(x: Tensor) -> torch.Size:
    """Return the shape that broadcasts channel values (C,) to ``x`` (N, C, ...)."""
    return torch.Size([x.shape[1] if d == 1 else 1 for d in range(x.dim())])


def by_channel_values(labels: Labels, bound: Bound, names: Sequence[str], x: Tensor) -> list[Sized]:
    """Return the arguments ``names``, one value per channel (C,), as they broadcast to ``x`` (N, C, ...)."""
    shape, found = channels_only(x), (bound.get(name) for name in names)
    return [(shape, tuple(s.reshape(shape) for s in labels.of(t))) for t in found if t is not None]


def group_norm(labels: Labels, func: Any, bound: Bound, out: Any) -> None:
    """Follow group norm: channels of one group share a mean, so they are tied."""
    x, groups = bound["input"], bound["group"]
    parts = by_channel_values(labels, bound, ("weight", "bias"), x)
    maps = merge(labels.store, [sized(labels, x), *parts], x.shape)
    values = along(maps, 1)
    if values is not None:
        labels.store.tie_columns(values.reshape(groups, -1).T)
    labels.set(tensors_in([out])[0], maps)


def layer_norm(labels: Labels, func: Any, bound: Bound, out: Any) -> None:
    """Follow layer norm: channels that are normalised together are mixed."""
    x = bound["input"]
    parts = [sized(labels, t) for n in ("weight", "bias") if (t := bound.get(n)) is not None]
    maps = merge(labels.store, [sized(labels, x), *parts], x.shape)
    first = x.dim() - len(bound["normalized_shape"])
    for label_map in maps:
        if any(dim >= first for dim in support(label_map)):
            labels.store.mix(label_map, "are normalised together (LayerNorm)")
    labels.set(tensors_in([out])[0], maps)
