"""Rules for products of activations with a layer's weights, or with each other."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from d2prune.core.trace.labels import LabelMaps, LabelStore, Sized, along, merge, spread, support
from d2prune.core.trace.operators.call import Bound, Labels, keep, sized
from d2prune.core.trace.operators.combining import by_channel_values, channels_only


def product(labels: Labels, func: Any, bound: Bound, out: Tensor) -> None:
    """Follow (…, M, K) times (…, K, N): labels along K are tied, those of other dimensions pass through."""
    one, two = bound.get("mat1", bound.get("batch1", bound["self"])), _second(bound)
    result = _contract(labels, one, two)
    added = bound["self"] if one is not bound["self"] else None
    if added is not None:
        result = merge(labels.store, [(out.shape, result), sized(labels, added)], out.shape)
    labels.set(out, result)


def _second(bound: Bound) -> Tensor:
    found: Tensor = bound["mat2"] if "mat2" in bound else bound["batch2"]
    return found


def _contract(labels: Labels, one: Tensor, two: Tensor) -> LabelMaps:
    rows = [s.transpose(-1, -2) for s in labels.of(one) if s.shape[-1] > 1]  # K before M
    columns = [s for s in labels.of(two) if s.shape[-2] > 1]
    for label_map in (*rows, *columns):
        if label_map.shape[-1] > 1:
            labels.store.keep(label_map, "are multiplied along two dimensions at once")
    if rows and columns:
        labels.store.multiply(rows[0], columns[0])
    elif rows or columns:
        labels.store.keep((rows or columns)[0], "are multiplied with values that do not shrink with them")
    keep(labels, tuple([*rows[1:], *columns[1:]]), "are two sorts of channels in one dimension")
    left = tuple(s for s in labels.of(one) if s.shape[-1] == 1)
    right = tuple(s for s in labels.of(two) if s.shape[-2] == 1)
    parts = [
        (torch.Size([*one.shape[:-1], 1]), left),
        (torch.Size([*two.shape[:-2], 1, two.shape[-1]]), right),
    ]
    return merge(labels.store, parts, torch.broadcast_shapes(*(size for size, _ in parts)))


def convolution(labels: Labels, func: Any, bound: Bound, out: Tensor) -> None:
    """Tie the input's channels to the weight's columns; give the result the labels of the weight's rows."""
    x, weight, groups = bound["input"], bound["weight"], bound["groups"]
    store = labels.store
    given = along(labels.of(x), 1)
    images = tuple(s for s in labels.of(x) if support(s) == (0,))
    others = tuple(s for s in labels.of(x) if support(s) not in ((0,), (1,)))
    keep(labels, others, "lie along a dimension that a convolution slides over")
    first, second = along(labels.of(weight), 0), along(labels.of(weight), 1)
    out_labels, in_labels = (second, first) if bound["transposed"] else (first, second)
    if groups > 1 and groups == x.shape[1] == out.shape[1]:
        made = _tied_or_kept(store, given, first)
    else:
        made = _grouped(store, given, in_labels, out_labels, groups, bound["transposed"])
    rows: Sized = (channels_only(out), () if made is None else (spread(made, 1, out.dim(), made),))
    bias = by_channel_values(labels, bound, ("bias",), out)
    labels.set(out, (*images, *merge(store, [rows, *bias], out.shape)))


def _tied_or_kept(store: LabelStore, one: Tensor | None, two: Tensor | None) -> Tensor | None:
    if one is not None and two is not None:
        store.tie(one, two)
        return two
    for labels in (one, two):
        if labels is not None:
            store.keep(labels, "are multiplied with values that do not shrink with them")
    return None


def _grouped(
    store: LabelStore,
    given: Tensor | None,
    in_labels: Tensor | None,
    out_labels: Tensor | None,
    groups: int,
    transposed: bool,
) -> Tensor | None:
    """Tie channels so that every group loses the same positions; return the labels of the result."""
    if given is not None and groups > 1:
        store.tie_columns(given.reshape(groups, -1))
    if in_labels is not None and not transposed:
        in_labels = in_labels.repeat(groups)
    _tied_or_kept(store, given, in_labels)
    if out_labels is not None and groups > 1:
        out_labels = out_labels.repeat(groups) if transposed else out_labels
        store.tie_columns(out_labels.reshape(groups, -1))
    return out_labels


def embedding(labels: Labels, func: Any, bound: Bound, out: Tensor) -> None:
    """Follow an embedding: rows of the table are chosen by index, so they are kept; columns are channels."""
    table = bound["weight"]
    values = along(labels.of(table), 1)
    keep(labels, tuple(s for s in labels.of(table) if support(s) != (1,)), "are picked by number")
    if values is not None:
        labels.set(out, (spread(values, out.dim() - 1, out.dim(), values),))
