"""Factors on the weights that make keys, to keep the scale of attention whose heads became narrower.

``scaled_dot_product_attention`` divides by the root of the width it is given. To compute what it did
before, a head that was ``old`` channels wide and is ``new`` now needs its keys multiplied by
sqrt(new / old). Keys, not queries: some models (ViTDet) multiply position tables with queries.
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
    """Make these weights require gradients, with gradients enabled, while the context lasts."""
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
    """Return, by name of each weight that ``tensor`` depends on, whether it depends on each row."""
    if not weights or not tensor.requires_grad:
        return {}
    probe = tensor.flatten() @ torch.linspace(1, 2, tensor.numel(), dtype=tensor.dtype, device=tensor.device)
    grads = torch.autograd.grad(probe, list(weights.values()), retain_graph=True, allow_unused=True)
    found = zip(weights, grads, strict=True)
    return {name: (grad.flatten(1).abs().sum(1) > 0).tolist() for name, grad in found if grad is not None}


def scale_rows(layer: Any, ranges: Ranges) -> None:
    """Multiply the weights and biases of some output channels, in new parameters of ``layer``."""
    for name, parameter in list(layer.named_parameters(recurse=False)):
        values = parameter.detach().clone()
        for start, stop, factor in ranges:
            values[start:stop] *= factor
        setattr(layer, name, nn.Parameter(values, parameter.requires_grad))


def as_ranges(factors: Sequence[float]) -> Ranges:
    """Return the factors as runs of equal ones; runs of 1 are left out."""
    ranges: list[tuple[int, int, float]] = []
    for i, factor in enumerate(factors):
        if ranges and ranges[-1][1] == i and ranges[-1][2] == factor:
            ranges[-1] = (ranges[-1][0], i + 1, factor)
        else:
            ranges.append((i, i + 1, factor))
    return tuple(row for row in ranges if row[2] != 1)


def combined(width: int, first: Ranges, kept: Sequence[int] | None, second: Ranges) -> Ranges:
    """Return the factors of ``first`` for the channels in ``kept``, times those of ``second``.

    Args:
        width: number of channels that ``first`` refers to.
        first: ranges of the earlier prune.
        kept: the channels that the later prune has kept; None for all.
        second: ranges of the later prune, over the kept channels.
    """
    factors = [1.0] * width
    for start, stop, factor in first:
        factors[start:stop] = [f * factor for f in factors[start:stop]]
    factors = factors if kept is None else [factors[i] for i in kept]
    for start, stop, factor in second:
        factors[start:stop] = [f * factor for f in factors[start:stop]]
    return as_ranges(factors)
