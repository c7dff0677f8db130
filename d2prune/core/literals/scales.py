"""Attention that derives its scale from the width of a head: made up for where the keys are made.

``scaled_dot_product_attention`` divides by the root of the width it is given. A head that was ``old``
channels wide and is ``new`` now needs keys that are sqrt(new / old) as large: then it computes what it
did. Keys, not queries: position tables are multiplied with queries in some models (ViTDet).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

Ranges = tuple[tuple[int, int, float], ...]
"""(start, stop, factor) over a layer's output channels."""


@contextmanager
def asking_gradients(weights: Collection[Tensor]) -> Iterator[None]:
    """Have these weights, and no others on their account, take part in what autograd follows."""
    before = [weight.requires_grad for weight in weights]
    try:
        for weight in weights:
            weight.requires_grad_(True)
        with torch.enable_grad():
            yield
    finally:
        for weight, required in zip(weights, before, strict=True):
            weight.requires_grad_(required)


def rows_behind(tensor: Tensor, weights: Mapping[str, Tensor]) -> dict[str, list[bool]]:
    """By name of those weights that ``tensor`` depends on, which of their rows it does."""
    if not weights or not tensor.requires_grad:
        return {}
    probe = tensor.flatten() @ torch.linspace(1, 2, tensor.numel(), dtype=tensor.dtype, device=tensor.device)
    grads = torch.autograd.grad(probe, list(weights.values()), retain_graph=True, allow_unused=True)
    found = zip(weights, grads, strict=True)
    return {name: (grad.flatten(1).abs().sum(1) > 0).tolist() for name, grad in found if grad is not None}


def scale_rows(layer: Any, ranges: Ranges) -> None:
    """Multiply the weights and biases of some output channels; the layer gets new parameters."""
    for name, parameter in list(layer.named_parameters(recurse=False)):
        values = parameter.detach().clone()
        for start, stop, factor in ranges:
            values[start:stop] *= factor
        setattr(layer, name, nn.Parameter(values, parameter.requires_grad))


def as_ranges(factors: Sequence[float]) -> Ranges:
    """Runs of one factor; those of 1 are left out."""
    ranges: list[tuple[int, int, float]] = []
    for i, factor in enumerate(factors):
        if ranges and ranges[-1][1] == i and ranges[-1][2] == factor:
            ranges[-1] = (ranges[-1][0], i + 1, factor)
        else:
            ranges.append((i, i + 1, factor))
    return tuple(row for row in ranges if row[2] != 1)


def combined(width: int, first: Ranges, kept: Sequence[int] | None, second: Ranges) -> Ranges:
    """The factors of ``first``, of which the channels ``kept`` stay, times those of ``second``.

    Args:
        width: channels that ``first`` is about.
        first: made earlier.
        kept: those of its channels that the later prune has kept; None: all.
        second: made later, of the channels that are left.
    """
    factors = [1.0] * width
    for start, stop, factor in first:
        factors[start:stop] = [f * factor for f in factors[start:stop]]
    factors = factors if kept is None else [factors[i] for i in kept]
    for start, stop, factor in second:
        factors[start:stop] = [f * factor for f in factors[start:stop]]
    return as_ranges(factors)
