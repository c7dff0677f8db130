"""Channel identities as labels on the elements of tensors.

Every channel of every layer has a label, an integer above 0. A tensor carries *sheets*: integer
tensors of its own number of dimensions, each of size 1 or the tensor's, that say which label each
element goes with; 0 says with none. An element goes when any of its sheets' labels goes, so a
convolution's weight has two sheets, (O, 1, 1, 1) and (1, I, 1, 1), and an activation mostly one.
What moves elements moves labels alike; what combines elements ties their labels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from d2prune.core.types import OUTPUT

Sheets = tuple[Tensor, ...]
Dims = tuple[int, ...]
Sized = tuple[torch.Size, Sheets]
Ids = NDArray[np.int64]


class Book:
    """Which labels there are, which of them belong together, and which must stay.

    Args:
        where: says for messages where in the model the trace is.
    """

    def __init__(self, where: Callable[[], str]) -> None:
        self.count = 1  # 0 is no label
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


def support(sheet: Tensor) -> Dims:
    """The dimensions along which a sheet varies."""
    return tuple(dim for dim, size in enumerate(sheet.shape) if size > 1)


def compact(sheet: Tensor) -> Tensor:
    """The sheet without the dimensions along which it does not vary."""
    for dim in support(sheet):
        first = sheet.narrow(dim, 0, 1)
        if bool((sheet == first).all()):
            sheet = first
    return sheet


def spread(values: Ids | Tensor, dim: int, dims: int, like: Tensor) -> Tensor:
    """A sheet of ``dims`` dimensions with ``values`` along ``dim``, where ``like`` is."""
    shape = [1] * dims
    shape[dim] = len(values)
    return torch.as_tensor(values, device=like.device).reshape(shape)


def along(sheets: Iterable[Tensor], dim: int) -> Tensor | None:
    """The labels (C,) of dimension ``dim``; None where nothing on it is labelled."""
    return next((s.reshape(-1) for s in sheets if support(s) == (dim,)), None)


def settle(book: Book, sheet: Tensor) -> Tensor | None:
    """What a sheet comes to after elements moved: labels along one dimension, or None.

    Taking channels out must leave a tensor rectangular. Where labels vary along several dimensions
    together (channels seen as (groups, channels of a group)), positions of the last one go for all
    of the others at once.
    """
    sheet = compact(sheet)
    dims = support(sheet)
    if not dims:
        book.keep(sheet, "are no longer told apart")
        return None
    if len(dims) == 1:
        return sheet
    lowest = sheet.amin(dims[:-1], keepdim=True)
    book.tie(sheet, lowest)
    return settle(book, lowest)


def merge(book: Book, parts: Sequence[Sized], shape: Sequence[int]) -> Sheets:
    """The sheets of an elementwise result of ``shape`` from its operands' shapes and sheets.

    Labels along the same dimensions are tied. An operand that has no labels along them, but is not
    broadcast there either, does not shrink, so they stay.
    """
    lifted = [_lift(part, len(shape)) for part in parts]
    merged: dict[Dims, Tensor] = {}
    for _, sheets in lifted:
        for sheet in sheets:
            known = merged.setdefault(support(sheet), sheet)
            if known is not sheet:
                book.tie(known, sheet)
    left = dict(merged)
    for dims, sheet in merged.items():
        for size, sheets in lifted:
            if any(size[d] > 1 for d in dims) and all(support(s) != dims for s in sheets):
                book.keep(sheet, f"meet a tensor of shape {tuple(size)} that does not shrink with them")
                left.pop(dims, None)  # nothing that they meet further on may shrink either
    return tuple(left.values())


def _lift(part: Sized, dims: int) -> Sized:
    """Broadcasting puts missing dimensions in front."""
    size, sheets = part
    ones = [1] * (dims - len(size))
    return torch.Size([*ones, *size]), tuple(s.reshape([*ones, *s.shape]) for s in sheets)
