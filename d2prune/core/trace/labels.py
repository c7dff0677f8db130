"""Channel identities as labels on the elements of tensors.

Every channel of every layer has a label, an integer above 0. A tensor carries *label maps*: integer
tensors with as many dimensions, each of size 1 or the tensor's size, that give each element a label;
0 is no label. An element is removed when the label of any of its maps is removed, so a convolution's
weight has two maps, (O, 1, 1, 1) and (1, I, 1, 1), and an activation mostly one. Operators that move
elements move labels alike; operators that combine elements tie their labels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from d2prune.core.types import OUTPUT

LabelMaps = tuple[Tensor, ...]
Dims = tuple[int, ...]
Sized = tuple[torch.Size, LabelMaps]
Ids = NDArray[np.int64]


class LabelStore:
    """All labels of a trace: which of them belong together, and which must stay.

    Args:
        where: returns, for messages, where in the model the trace is.
        whole_rows: labels that, when they vary along several dimensions, are removed by whole rows
            instead of by the same positions of every row (heads, not channels of every head).

    Attributes:
        jointly: labels that varied along several dimensions.
    """

    def __init__(self, where: Callable[[], str], whole_rows: Ids | None = None) -> None:
        self.count = 1  # 0 is no label
        self.whole_rows = whole_rows if whole_rows is not None else np.zeros(0, dtype=np.int64)
        self.jointly: list[Ids] = []
        self.outputs: list[tuple[Ids, str]] = []
        self.kept: list[tuple[Ids, str]] = []
        self.inexact: list[tuple[Ids, str]] = []
        self.products: list[tuple[Ids, Ids]] = []
        self._where = where
        self._ties: list[tuple[Ids, Ids]] = []

    def new(self, count: int) -> Ids:
        """Return ``count`` new labels."""
        self.count += count
        return np.arange(self.count - count, self.count)

    def tie(self, one: Tensor, two: Tensor) -> None:
        """Tie labels at the same place, so that they are removed together; keep those that meet none."""
        a, b = (_flat(t) for t in torch.broadcast_tensors(one, two))
        both = (a > 0) & (b > 0)
        self._ties.append((a[both], b[both]))
        if not both.all():
            self.keep(torch.from_numpy(np.maximum(a, b)[~both]), "meet channels that can't go")

    def tie_columns(self, rows: Tensor) -> None:
        """Tie the labels (R, C) of each column, so that all rows lose the same positions."""
        self.tie(rows, rows[:1])

    def multiply(self, one: Tensor, two: Tensor) -> None:
        """Tie labels at the same place, and note that a product sums over them."""
        self.tie(one, two)
        a, b = (_flat(t) for t in torch.broadcast_tensors(one, two))
        self.products.append((a, b))

    def keep(self, labels: Tensor, why: str) -> None:
        """Keep these labels, for the reason ``why``."""
        self._note(self.kept, labels, why)

    def keep_layer(self, labels: Tensor, why: str) -> None:
        """Keep the labels of a layer that can't be cut, for the reason ``why``."""
        self.kept.append((_flat(labels), why))

    def keep_output(self, labels: Tensor, name: str) -> None:
        """Keep labels that reach output ``name``; this reason takes precedence over all others."""
        self.outputs.append((_flat(labels), f"{OUTPUT} '{name}'"))

    def mix(self, labels: Tensor, why: str) -> None:
        """Note labels that an operator without weights mixes, so that removal can't equal masking."""
        self._note(self.inexact, labels, why)

    def _note(self, notes: list[tuple[Ids, str]], labels: Tensor, why: str) -> None:
        ids = np.unique(_flat(labels))
        if ids[ids > 0].size:
            notes.append((ids[ids > 0], f"its channels {why}, in {self._where()}"))

    def roots(self) -> Ids:
        """Return, for every label, the smallest label that it is tied to, directly or through others."""
        parent = np.arange(self.count)
        ends = [np.concatenate(column) for column in zip(*self._ties, strict=True)] or [parent, parent]
        while True:
            one, two = (parent[end] for end in ends)
            apart = one != two
            if not apart.any():
                return parent
            low, high = np.minimum(one, two)[apart], np.maximum(one, two)[apart]
            np.minimum.at(parent, high, low)
            while (parent[parent] != parent).any():
                parent = parent[parent]


def _flat(labels: Tensor) -> Ids:
    return labels.reshape(-1).cpu().numpy()


def support(label_map: Tensor) -> Dims:
    """Return the dimensions along which a label map is larger than 1."""
    return tuple(dim for dim, size in enumerate(label_map.shape) if size > 1)


def compact(label_map: Tensor) -> Tensor:
    """Return the label map with size 1 in every dimension along which it does not vary."""
    for dim in support(label_map):
        first = label_map.narrow(dim, 0, 1)
        if bool((label_map == first).all()):
            label_map = first
    return label_map


def spread(values: Ids | Tensor, dim: int, dims: int, like: Tensor) -> Tensor:
    """Return a label map of ``dims`` dimensions with ``values`` along ``dim``, on the device of ``like``."""
    shape = [1] * dims
    shape[dim] = len(values)
    return torch.as_tensor(values, device=like.device).reshape(shape)


def along(maps: Iterable[Tensor], dim: int) -> Tensor | None:
    """Return the labels (C,) of dimension ``dim``; None if none of ``maps`` varies along it alone."""
    return next((s.reshape(-1) for s in maps if support(s) == (dim,)), None)


def settle(store: LabelStore, label_map: Tensor) -> Tensor | None:
    """Reduce a label map whose elements were moved to labels along one dimension; None if it has none.

    Removing channels must leave a tensor rectangular. If labels vary along several dimensions together
    (channels seen as (groups, channels of a group)), labels that share a position on the last of these
    are tied; those in ``store.whole_rows``, if they share a position on the last but one.
    """
    label_map = compact(label_map)
    dims = support(label_map)
    if not dims:
        store.keep(label_map, "are no longer told apart")
        return None
    if len(dims) == 1:
        return label_map
    store.jointly.append(np.unique(_flat(label_map)))
    rows = bool(np.isin(store.jointly[-1], store.whole_rows).any())
    stays = dims[-2] if rows else dims[-1]
    lowest = label_map.amin([d for d in dims if d != stays], keepdim=True)
    store.tie(label_map, lowest)
    return settle(store, lowest)


def merge(store: LabelStore, parts: Sequence[Sized], shape: Sequence[int]) -> LabelMaps:
    """Return the maps of an elementwise result of ``shape`` from its operands' shapes and maps.

    Labels along the same dimensions are tied. An operand that has no labels along them, but is not
    broadcast there either, can't shrink, so these labels are kept.
    """
    lifted = [_lift(part, len(shape)) for part in parts]
    merged: dict[Dims, Tensor] = {}
    for _, maps in lifted:
        for label_map in maps:
            known = merged.setdefault(support(label_map), label_map)
            if known is not label_map:
                store.tie(known, label_map)
    left = dict(merged)
    for dims, label_map in merged.items():
        for size, maps in lifted:
            if any(size[d] > 1 for d in dims) and all(support(s) != dims for s in maps):
                store.keep(label_map, f"meet a tensor of shape {tuple(size)} that does not shrink with them")
                left.pop(dims, None)  # without labels, it keeps whatever meets it further on
    return tuple(left.values())


def _lift(part: Sized, dims: int) -> Sized:
    """Add leading dimensions of size 1, as broadcasting does, up to ``dims`` dimensions."""
    size, maps = part
    ones = [1] * (dims - len(size))
    return torch.Size([*ones, *size]), tuple(s.reshape([*ones, *s.shape]) for s in maps)
