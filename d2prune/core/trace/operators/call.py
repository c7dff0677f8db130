"""The inputs of every rule: an operator's arguments by name, and the labels of tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from d2prune.core.trace.labels import LabelMaps, LabelStore, Sized


class Labels(Protocol):
    """The labels of all tensors, as a rule reads and sets them."""

    store: LabelStore

    def of(self, tensor: Tensor | None) -> LabelMaps:
        """Return the tensor's maps."""

    def set(self, tensor: Tensor, maps: LabelMaps) -> None:
        """Set the tensor's maps."""


Bound = Mapping[str, Any]  # an operator's arguments by name
Handler = Callable[[Labels, Any, Bound, Any], None]


def tensors_in(value: Any) -> list[Tensor]:
    """Return all tensors of a nested value."""
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]


def first(bound: Bound) -> Tensor:
    """Return the first argument that is a tensor: "self" or "input" of PyTorch's own operators."""
    return next(value for value in bound.values() if isinstance(value, Tensor))


def sized(labels: Labels, tensor: Tensor) -> Sized:
    """Return a tensor's shape and maps; expanded dimensions have size 1, as they fit any width."""
    strides = tensor.stride() if tensor.layout == torch.strided else tensor.shape
    size = [1 if stride == 0 else n for n, stride in zip(tensor.shape, strides, strict=True)]
    return torch.Size(size), labels.of(tensor)


def keep(labels: Labels, maps: LabelMaps, why: str) -> None:
    """Keep the labels of all of ``maps``, for the reason ``why``."""
    for label_map in maps:
        labels.store.keep(label_map, why)
