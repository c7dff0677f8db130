"""Rules for operators that move elements: labels are moved in the same way."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from d2prune.core.trace.labels import LabelMaps, merge, settle, spread, support
from d2prune.core.trace.operators.call import Bound, Labels, first, keep, sized, tensors_in


def _moved(labels: Labels, x: Tensor, results: Sequence[Tensor], move: Callable[[Tensor], Any]) -> None:
    """Expand every label map of ``x`` to full size and move it as ``x`` was moved into ``results``."""
    maps: list[list[Tensor]] = [[] for _ in results]
    for label_map in labels.of(x):
        parts = move(label_map.expand(x.shape))
        for kept, part in zip(maps, [parts] if isinstance(parts, Tensor) else parts, strict=True):
            if part.numel() and part.any() and (settled := settle(labels.store, part)) is not None:
                kept.append(settled)
    for result, kept in zip(results, maps, strict=True):
        labels.set(result, tuple(kept))


def move(labels: Labels, func: Any, bound: Bound, out: Any) -> None:
    """Apply the operator itself to the labels, in place of its first argument."""
    x = first(bound)
    rest = {k: v for k, v in bound.items() if v is not x}

    def moved(label_map: Tensor) -> Any:
        if func.namespace == "aten":
            return func(label_map, **rest)
        parts = func(label_map.to(x.dtype), **rest)  # others' operators may take no integers
        return [part.long() for part in tensors_in([parts])]

    _moved(labels, x, tensors_in([out]), moved)


def view(labels: Labels, func: Any, bound: Bound, out: Tensor) -> None:
    """Follow a view, by ``reshape``: expanded labels have no strides that a view could keep."""
    _moved(labels, first(bound), [out], lambda label_map: label_map.reshape(out.shape))


def strided(labels: Labels, func: Any, bound: Bound, out: Tensor) -> None:
    """Follow ``as_strided`` where it keeps the shape; otherwise keep all labels."""
    x = bound["self"]
    if out.shape != x.shape:
        keep(labels, labels.of(x), "are read with strides of the code's own")
    else:
        labels.set(out, labels.of(x))


def pad(labels: Labels, func: Any, bound: Bound, out: Tensor) -> None:
    """Follow padding: added channels have no label; padding around an image has its channel's label."""
    x, maps = bound["self"], []
    for label_map in labels.of(x):
        amounts = list(bound["pad"])
        for place in range(0, len(amounts), 2):  # from the last dimension backwards
            if label_map.shape[x.dim() - 1 - place // 2] == 1:
                amounts[place : place + 2] = [0, 0]
        maps.append(func(label_map, amounts, 0))
    labels.set(out, tuple(maps))


def part(labels: Labels, func: Any, bound: Bound, out: Any) -> None:
    """Follow slices: equal parts of a labelled dimension lose the same positions, unequal ones their own.

    With a step, as rotary embeddings take every other channel, each run of that many channels is a unit.
    """
    x, dim = bound["self"], bound.get("dim", 0) % bound["self"].dim()
    parts = {t.shape[dim] if t.dim() == x.dim() else 1 for t in tensors_in([out])}
    for label_map in labels.of(x):
        if label_map.shape[dim] > 1 and parts != {x.shape[dim]}:
            _take(labels, label_map.movedim(dim, 0), max(parts), bound, len(parts) == 1)
    move(labels, func, bound, out)


def _take(labels: Labels, label_map: Tensor, length: int, bound: Bound, alike: bool) -> None:
    """Tie what must be removed together if parts of ``length`` of the first dimension are taken."""
    size, step, start = len(label_map), bound.get("step", 1), bound.get("start") or 0
    if step > 1 and size % step == 0 and length * step == size:
        labels.store.tie_columns(label_map.reshape(length, step, -1).transpose(0, 1).reshape(step, -1))
    elif step > 1 or length == 1:
        labels.store.keep(label_map, "are taken apart by position")
    elif alike and size % length == 0 and start % length == 0:
        labels.store.tie_columns(label_map.reshape(size // length, -1))


def blocks(labels: Labels, func: Any, bound: Bound, out: Tensor) -> None:
    """Follow pixel shuffle, which makes one channel of r * r, and pixel unshuffle and im2col, the reverse."""
    x, side = bound["self"], bound.get("downscale_factor", 1)
    joined, repeated = bound.get("upscale_factor", 1) ** 2, math.prod(bound.get("kernel_size", (side, side)))
    dim = x.dim() - 3
    for label_map in labels.of(x):
        if support(label_map) != (dim,):
            labels.store.keep(label_map, "lie along a dimension of the image")
            continue
        rows = label_map.reshape(-1, joined)
        labels.store.tie_columns(rows.T)
        values = rows[:, 0].repeat_interleave(repeated)
        labels.set(out, (spread(values, dim, out.dim(), label_map),))


def cat(labels: Labels, func: Any, bound: Bound, out: Tensor) -> None:
    """Follow concatenation and stacking: labels along ``dim`` are joined, those along others are tied."""
    tensors = [t for t in bound["tensors"] if t.shape != (0,)]  # torch lets an empty one join
    dim = bound.get("dim", 0) % out.dim()
    if func._schema.name == "aten::stack":
        parts = [(t.unsqueeze(dim).shape, tuple(s.unsqueeze(dim) for s in labels.of(t))) for t in tensors]
    else:
        parts = [sized(labels, t) for t in tensors]
    across = [tuple(s for s in maps if dim not in support(s)) for _, maps in parts]
    beside = [(_one(size, dim), maps) for (size, _), maps in zip(parts, across, strict=True)]
    joined = list(merge(labels.store, beside, _one(out.shape, dim)))
    pieces = [_piece(labels, size, maps, dim) for size, maps in parts]
    shape = torch.broadcast_shapes(*(_one(p.shape, dim) for p in pieces))
    whole = torch.cat([p.expand([*shape[:dim], p.shape[dim], *shape[dim + 1 :]]) for p in pieces], dim)
    if whole.any() and (settled := settle(labels.store, whole)) is not None:
        joined.append(settled)
    labels.set(out, tuple(joined))


def _one(size: Sequence[int], dim: int) -> torch.Size:
    return torch.Size([*size[:dim], 1, *size[dim + 1 :]])


def _piece(labels: Labels, size: Sequence[int], maps: LabelMaps, dim: int) -> Tensor:
    """Return the label map that varies along ``dim``; zeros of that size if there is none."""
    found = [s for s in maps if dim in support(s)]
    keep(labels, tuple(found[1:]), "are two sorts of channels in one dimension")
    if found:
        return found[0]
    shape = [1] * len(size)
    shape[dim] = size[dim]
    device = next((s.device for s in maps), None)
    return torch.zeros(shape, dtype=torch.long, device=device)
