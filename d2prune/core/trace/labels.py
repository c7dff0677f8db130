"""Channel identities as labels on the elements of tensors.

Every channel of every layer has a label, an integer above 0. A tensor carries *maps*: integer
tensors of its own number of dimensions, each of size 1 or the tensor's, that say which label each
element goes with; 0 says with none. An element goes when any of its maps' labels goes, so a
convolution's weight has two maps, (O, 1, 1, 1) and (1, I, 1, 1), and an activation mostly one.
What moves elements moves labels alike; what combines elements ties their labels.
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
    """Which labels there are, which of them belong together, and which must stay.

    Args:
        where: says for messages where in the model the trace is.
        whole_rows: labels of which, where they vary along several dimensions, whole rows go rather
            than positions of every row (heads, rather than channels of every head).

    Attributes:
        jointly: labels that did vary along several dimensions.
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
        """So many labels that nothing has had before."""
        self.count += count
        return np.arange(self.count - count, self.count)

    def tie(self, one: Tensor, two: Tensor) -> None:
        """Labels at the same place go together; those that meet no label stay."""
        a, b = (_flat(t) for t in torch.broadcast_tensors(one, two))
        both = (a > 0) & (b > 0)
        self._ties.append((a[both], b[both]))
        if not both.all():
            self.keep(torch.from_numpy(np.maximum(a, b)[~both]), "meet channels that can't go")

    def tie_columns(self, rows: Tensor) -> None:
        """Of (R, C) labels, every column goes as one: all rows lose the same positions."""
        self.tie(rows, rows[:1])

    def multiply(self, one: Tensor, two: Tensor) -> None:
        """Labels at the same place are summed over in a product: they go together."""
        self.tie(one, two)
        a, b = (_flat(t) for t in torch.broadcast_tensors(one, two))
        self.products.append((a, b))

    def keep(self, labels: Tensor, why: str) -> None:
        """These stay."""
        self._note(self.kept, labels, why)

    def keep_layer(self, labels: Tensor, why: str) -> None:
        """These stay wherever they go: their layer can't be cut."""
        self.kept.append((_flat(labels), why))

    def keep_output(self, labels: Tensor, name: str) -> None:
        """These are part of the model's interface; that is said before any other reason."""
        self.outputs.append((_flat(labels), f"{OUTPUT} '{name}'"))

    def mix(self, labels: Tensor, why: str) -> None:
        """These are mixed by an operation without weights: removal can't equal masking."""
        self._note(self.inexact, labels, why)

    def _note(self, notes: list[tuple[Ids, str]], labels: Tensor, why: str) -> None:
        ids = np.unique(_flat(labels))
        if ids[ids > 0].size:
            notes.append((ids[ids > 0], f"its channels {why}, in {self._where()}"))

    def roots(self) -> Ids:
        """For every label the smallest of those it is tied to."""
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
    """The dimensions along which a label_map varies."""
    return tuple(dim for dim, size in enumerate(label_map.shape) if size > 1)


def compact(label_map: Tensor) -> Tensor:
    """The label_map without the dimensions along which it does not vary."""
    for dim in support(label_map):
        first = label_map.narrow(dim, 0, 1)
        if bool((label_map == first).all()):
            label_map = first
    return label_map


def spread(values: Ids | Tensor, dim: int, dims: int, like: Tensor) -> Tensor:
    """A label_map of ``dims`` dimensions with ``values`` along ``dim``, where ``like`` is."""
    shape = [1] * dims
    shape[dim] = len(values)
    return torch.as_tensor(values, device=like.device).reshape(shape)


def along(maps: Iterable[Tensor], dim: int) -> Tensor | None:
    """The labels (C,) of dimension ``dim``; None where nothing on it is labelled."""
    return next((s.reshape(-1) for s in maps if support(s) == (dim,)), None)


def settle(store: LabelStore, label_map: Tensor) -> Tensor | None:
    """What a label_map comes to after elements moved: labels along one dimension, or None.

    Taking channels out must leave a tensor rectangular. Where labels vary along several dimensions
    together (channels seen as (groups, channels of a group)), positions of the last one go for all
    of the others at once; of those in ``store.whole_rows``, positions of the last but one.
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
    """The maps of an elementwise result of ``shape`` from its operands' shapes and maps.

    Labels along the same dimensions are tied. An operand that has no labels along them, but is not
    broadcast there either, does not shrink, so they stay.
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
                left.pop(dims, None)  # nothing that they meet further on may shrink either
    return tuple(left.values())


def _lift(part: Sized, dims: int) -> Sized:
    """Broadcasting puts missing dimensions in front."""
    size, maps = part
    ones = [1] * (dims - len(size))
    return torch.Size([*ones, *size]), tuple(s.reshape([*ones, *s.shape]) for s in maps)
