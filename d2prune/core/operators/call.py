"""What every handler works on: an operator's arguments by name, and the labels of tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from d2prune.core.labels import Book, Sheets, Sized


class Labels(Protocol):
    """Where the labels of tensors are written down."""

    book: Book

    def of(self, tensor: Tensor | None) -> Sheets:
        """The tensor's sheets."""

    def set(self, tensor: Tensor, sheets: Sheets) -> None:
        """Write them down."""


Bound = Mapping[str, Any]  # an operator's arguments by name
Handler = Callable[[Labels, Any, Bound, Any], None]


def tensors_in(value: Any) -> list[Tensor]:
    """All tensors of a nested value."""
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]


def sized(labels: Labels, tensor: Tensor) -> Sized:
    """A tensor's shape and sheets; what was expanded counts as broadcast: it follows any width."""
    strides = tensor.stride() if tensor.layout == torch.strided else tensor.shape
    size = [1 if stride == 0 else n for n, stride in zip(tensor.shape, strides, strict=True)]
    return torch.Size(size), labels.of(tensor)


def keep(labels: Labels, sheets: Sheets, why: str) -> None:
    """The labels of all of ``sheets`` stay."""
    for sheet in sheets:
        labels.book.keep(sheet, why)
