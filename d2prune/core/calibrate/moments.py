"""Second moments of layers' inputs: how well some columns of an input explain the others."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from d2prune.core.calibrate.products import Geometry, patches
from d2prune.core.types import Indices

logger = logging.getLogger(__name__)
WIDEST = 2_400
"""The most columns of patches whose moments are kept; of wider inputs those of single places are."""
ROWS = 40
"""The most rows taken of an input, as a multiple of its columns."""
BLOCK = 4_096
"""Rows that are copied and multiplied at a time, so that few large images need no more memory than many."""
PRECISE = 1_024
"""The most columns whose sums are kept in float64; those of wider inputs fill the memory: in float32."""
MEMORY = 2_000_000_000
"""The most bytes of all moments; beyond, those of the widest patches give way to those of single places."""
FOCUS = 10
"""The weight of rows by the loss's gradient, relative to that of all rows alike."""
RIDGE = 1e-3
"""Added to the diagonal of second moments, as a fraction of its mean."""


@dataclass(frozen=True)
class Layout:
    """Where the columns of a layer's input lie.

    Attributes:
        parts: groups of the convolution; each has moments of its own.
        channels: channels of one part.
        taps: columns of each channel: places of the kernel, or 1 where each place is a row of its own.
        joined: positions of a linear layer's input (after a flatten) that are rows of one channel.
    """

    parts: int
    channels: int
    taps: int
    joined: int = 1

    @property
    def width(self) -> int:
        """Columns of one part."""
        return self.channels * self.taps

    @property
    def memory(self) -> int:
        """Bytes of its :class:`Moments`."""
        return 2 * self.parts * (self.width + 1) ** 2 * (8 if self.width <= PRECISE else 4)

    def matrix(self, weight: Tensor, geometry: Geometry) -> Tensor:
        """Return a view of a contiguous weight: (parts, outputs, rows of an output, columns)."""
        split: Tensor = weight.unflatten(0, (self.parts, -1))
        if geometry.transposed:
            return split.flatten(3).permute(0, 2, 3, 1)
        if self.joined > 1:
            split = split.unflatten(2, (-1, self.joined))
            return split.transpose(2, 3)
        if self.taps > 1 or not geometry.kernel:
            return split.flatten(2).unsqueeze(2)
        return split.flatten(3).transpose(2, 3)

    def columns(self, indices: Indices) -> dict[int, tuple[Indices, Indices]]:
        """Return, by part, the (u,) units that have columns there, and the (u, n) columns.

        Args:
            indices: (U, K) positions of units on the layer's input axis; a unit has as many in each part
                that it is in.
        """
        channel = indices // self.joined
        part = channel // self.channels
        found: dict[int, tuple[Indices, Indices]] = {}
        for p in np.unique(part).tolist():
            rows = [np.unique(c[at == p]) % self.channels for c, at in zip(channel, part, strict=True)]
            units = np.flatnonzero([len(row) for row in rows])
            first = np.stack([rows[u] for u in units])
            columns = first[:, :, None] * self.taps + np.arange(self.taps)
            found[p] = units, columns.reshape(len(units), -1)
        return found


def layout_of(given: Tensor, geometry: Geometry, indices: Indices, widest: int = WIDEST) -> Layout | None:
    """Return the layout of the moments of an input; None if even those of single places are too large.

    Args:
        given: (N, C, *space) of a convolution, (..., D) of a linear layer.
        geometry: how it is read.
        indices: (U, K) positions on it of a group that is read.
        widest: the most columns of patches.
    """
    if geometry.kernel:
        channels = given.shape[1] // geometry.groups
        narrow = not geometry.transposed and channels * geometry.taps <= widest
        return Layout(geometry.groups, channels, geometry.taps if narrow else 1)
    width, joined = given.shape[-1], indices.shape[1]
    if width <= WIDEST or joined == 1:
        return Layout(1, width, 1)
    starts = indices[:, :1]
    whole = width == indices.size and not (starts % joined).any()
    flat = whole and np.array_equal(indices, starts + np.arange(joined))
    return Layout(1, width // joined, 1, joined) if flat else None


def within(layouts: Mapping[str, Layout], memory: int = MEMORY) -> dict[str, Layout]:
    """Return the layouts by layer, of single places for as many of the widest patches as ``memory`` asks."""
    found, narrowed = dict(layouts), 0
    total = sum(layout.memory for layout in found.values())
    for layer in sorted(found, key=lambda layer: -found[layer].memory):
        layout = found[layer]
        if total > memory and layout.taps > 1:
            found[layer] = replace(layout, taps=1)
            total += found[layer].memory - layout.memory
            narrowed += 1
    if narrowed:
        limit = memory / 1e9
        logger.info("%d inputs are measured by whole channels: more would take over %.1f GB", narrowed, limit)
    return found


class Moments:
    """The sums of products of an input's columns, and of a constant 1 (the last column), over its rows.

    Attributes:
        layout: where the columns lie.
        every: (parts, D + 1, D + 1) float64, or float32 beyond ``PRECISE`` columns, over all rows alike.
        focused: the same, with rows weighted by squared gradients of the loss; zeros without a loss.
    """

    def __init__(self, layout: Layout, device: torch.device) -> None:
        size = layout.width + 1
        dtype = torch.float64 if layout.width <= PRECISE else torch.float32
        self.layout = layout
        self.every = torch.zeros(layout.parts, size, size, dtype=dtype, device=device)
        self.focused = torch.zeros_like(self.every)

    def add(self, given: Tensor, geometry: Geometry, most: int, generator: torch.Generator) -> None:
        """Add at most ``most`` rows of one input, chosen at random."""
        rows, dims = self._rows(given, geometry)
        count = math.prod(rows.shape[:dims])
        all_alike = torch.arange(count) if count <= most else torch.randperm(count, generator=generator)
        self._sum(self.every, rows, dims, all_alike[:most].to(given.device), max(count / most, 1.0))

    def focus(
        self, given: Tensor, geometry: Geometry, squares: Tensor, most: int, generator: torch.Generator
    ) -> None:
        """Add at most ``most`` rows, weighted by ``squares``: one number per position of the result."""
        if geometry.kernel and (geometry.transposed or self.layout.taps != geometry.taps):
            return  # places of the input are no places of the result
        rows, dims = self._rows(given, geometry)
        weights = squares.reshape(-1).float().repeat_interleave(self.layout.joined)
        total = float(weights.sum())
        if not total > 0:
            return
        chosen = weights.nonzero().flatten()
        if len(chosen) > most:
            chosen = torch.multinomial(weights.cpu(), most, True, generator=generator).to(given.device)
            weights = torch.full_like(weights, total / most)
        self._sum(self.focused, rows, dims, chosen, weights[chosen])

    def _rows(self, given: Tensor, geometry: Geometry) -> tuple[Tensor, int]:
        """Return the rows as a view, and how many of its first dimensions count them."""
        if not geometry.kernel:
            rows = given.unflatten(-1, (self.layout.channels, self.layout.joined)).transpose(-1, -2)
            return rows, rows.dim() - 1
        whole = self.layout.taps == geometry.taps and not geometry.transposed
        return patches(given, geometry) if whole else given.movedim(1, -1), given.dim() - 1

    def _sum(self, gram: Tensor, rows: Tensor, dims: int, chosen: Tensor, weights: Tensor | float) -> None:
        """Add to ``gram`` the ``chosen`` rows, counted along the first ``dims`` dimensions, weighted."""
        for start in range(0, len(chosen), BLOCK):
            part = slice(start, start + BLOCK)
            block = rows[torch.unravel_index(chosen[part], rows.shape[:dims])]
            block = block.reshape(len(block), self.layout.parts, self.layout.width).transpose(0, 1)
            block = torch.cat([block, block.new_ones(*block.shape[:2], 1)], dim=-1)
            if isinstance(weights, Tensor):
                gram += (block * weights[part].to(block.dtype)[:, None]).transpose(1, 2) @ block
            else:
                gram += (block.transpose(1, 2) @ block).to(gram.dtype) * weights

    def most(self, batches: int) -> int:
        """Return how many rows to take of each of ``batches`` batches, at most."""
        return -(-ROWS * (self.layout.width + 1) // batches)

    def gram(self, part: int) -> Tensor:
        """Return the mean products (D + 1, D + 1) of a part's columns and the constant."""
        every, focused = self.every[part].double(), self.focused[part].double()
        gram = every / every[-1, -1]
        return (gram + FOCUS * focused / focused[-1, -1]) / (1 + FOCUS) if focused[-1, -1] > 0 else gram

    def second(self, part: int, centred: bool) -> tuple[Tensor, Tensor]:
        """Return a part's second moments (D, D), about the means if ``centred``, and the means (D,)."""
        gram = self.gram(part)
        mean = gram[-1, :-1]
        second = gram[:-1, :-1]
        return (second - torch.outer(mean, mean) if centred else second), mean


@dataclass(frozen=True, eq=False)
class Consumer:
    """What calibration found about one layer that reads channels of groups.

    Attributes:
        moments: of its input; layers that read the same input share them.
        geometry: how it reads it.
        norms: paths of the norms that read all of its results and hold a running mean.
        bias: whether it has a bias.
    """

    moments: Moments
    geometry: Geometry
    norms: tuple[str, ...]
    bias: bool

    @property
    def centred(self) -> bool:
        """Whether a constant is taken up by its bias or by a norm after it."""
        return self.bias or bool(self.norms)

    def matrix(self, weight: Tensor) -> Tensor:
        """Return its weight as :meth:`Layout.matrix`, in float64."""
        return self.moments.layout.matrix(weight.contiguous(), self.geometry).double()


@dataclass(frozen=True, eq=False)
class Statistics:
    """What calibration found about a model.

    Attributes:
        consumers: by path.
        weights: by consumer, (O,) what a squared error of each output costs.
        gates: by path of a consumer, (S, C) the loss's derivatives by a factor on each input channel, one row
            a labelled batch; empty unless asked for.
        batches: how many were seen.
        labelled: how many of them had a loss.
        unmeasured: by path, why a consumer has no moments.
    """

    consumers: Mapping[str, Consumer]
    weights: Mapping[str, Tensor]
    gates: Mapping[str, Tensor]
    batches: int
    labelled: int
    unmeasured: Mapping[str, str] = field(default_factory=dict)


def ridged(second: Tensor) -> Tensor:
    """Return second moments with ``RIDGE`` times their mean variance added to the diagonal."""
    ridge = RIDGE * second.diagonal().mean().clamp(min=1e-12)
    return second + ridge * torch.eye(len(second), dtype=second.dtype, device=second.device)
