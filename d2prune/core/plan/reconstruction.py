"""The criterion "reconstruction": what the remaining inputs of its consumers explain best goes first.

Greedy optimal brain surgeon (Hassibi and Stork, NIPS 1992) on every consumer's least-squares problem: taking
columns R away from W x, with the other weights adjusted, leaves the error tr(W_R [H^-1]_RR^-1 W_R^T), with H
the second moments of the input x (Frantar and Alistarh, "Optimal Brain Compression", arXiv 2208.11580).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from d2prune.core.calibrate.moments import Statistics, ridged
from d2prune.core.layers.kinds import module_at, places
from d2prune.core.plan.ranking import Ranking
from d2prune.core.types import Group, Indices

STEPS = 64
"""Removals, at most, by which a group's units are ranked."""


@dataclass
class _Problem:
    """The least-squares problem of all consumers that read the same columns of an input.

    Attributes:
        units: (u,) the units that have columns here.
        columns: (u, n) where.
        weight: (M, D) the rows of all these consumers, weighted by what their outputs' errors cost.
        inverse: (D, D) of the second moments.
    """

    units: Tensor
    columns: Tensor
    weight: Tensor
    inverse: Tensor

    def errors(self, left: Tensor) -> tuple[Tensor, Tensor]:
        """Return the units here that are ``left``, a mask (U,), and the error that each adds alone."""
        here = left[self.units]
        columns = self.columns[here]
        corners = self.inverse[columns[:, :, None], columns[:, None, :]]
        read = self.weight[:, columns].permute(1, 2, 0)  # (u, n, M)
        return self.units[here], (read * torch.linalg.solve(corners, read)).sum((1, 2))

    def remove(self, units: Tensor) -> float:
        """Remove units, let the other columns take over, and return the error that this adds."""
        gone = self.columns[torch.isin(self.units, units)].flatten()
        if not gone.numel():
            return 0.0
        across, read = self.inverse[:, gone], self.weight[:, gone]
        added = (read.T * torch.linalg.solve(across[gone], read.T)).sum()
        share = torch.linalg.solve(across[gone], across.T)
        self.weight -= read @ share
        self.inverse -= across @ share
        return float(added)


def reconstruction(model: nn.Module, group: Group, statistics: Statistics) -> Ranking | None:
    """Rank a group's units by the error that is left when each goes in turn; None if nothing was measured."""
    problems = _problems(model, group, statistics)
    if not problems:
        return None
    device = problems[0].inverse.device
    left = torch.ones(group.units, dtype=torch.bool, device=device)
    order: list[int] = []
    added: list[float] = []
    while len(order) < group.units - 1:
        alone = torch.zeros(group.units, dtype=torch.float64, device=device)
        for problem in problems:
            alone.index_add_(0, *problem.errors(left))
        alone[~left] = torch.inf
        count = min(max(1, group.units // STEPS), group.units - 1 - len(order))
        chosen = alone.argsort(stable=True)[:count]
        together = sum(problem.remove(chosen) for problem in problems)
        left[chosen] = False
        order += chosen.tolist()
        added += (alone[chosen] * together / alone[chosen].sum().clamp(min=1e-300)).tolist()
    last = int(left.nonzero()[0])
    return Ranking(np.array([*order, last]), np.maximum([*added, max(added)], 0.0))


def _problems(model: nn.Module, group: Group, statistics: Statistics) -> list[_Problem]:
    readers: dict[tuple[object, ...], list[tuple[str, int]]] = defaultdict(list)
    where: dict[tuple[object, ...], tuple[Indices, Indices]] = {}
    for member in group.members:
        consumer = statistics.consumers.get(member.layer) if member.axis == "in" else None
        if consumer is None:
            continue
        for part, (units, columns) in consumer.moments.layout.columns(member.indices).items():
            key = id(consumer.moments), part, consumer.centred, columns.tobytes()
            readers[key].append((member.layer, part))
            where[key] = units, columns
    return [_problem(model, found, *where[key], statistics) for key, found in readers.items()]


def _problem(
    model: nn.Module,
    readers: Sequence[tuple[str, int]],
    units: Indices,
    columns: Indices,
    statistics: Statistics,
) -> _Problem:
    rows = [_rows(model, name, part, statistics) for name, part in readers]
    name, part = readers[0]
    consumer = statistics.consumers[name]
    second, _ = consumer.moments.second(part, consumer.centred)
    inverse = torch.linalg.inv(ridged(second))
    on = inverse.device
    return _Problem(
        torch.from_numpy(units).to(on), torch.from_numpy(columns).to(on), torch.cat(rows), inverse
    )


def _rows(model: nn.Module, name: str, part: int, statistics: Statistics) -> Tensor:
    consumer, weight = statistics.consumers[name], places(module_at(model, name), "in")[0].tensor.detach()
    layout = consumer.moments.layout
    matrix = layout.matrix(weight.contiguous(), consumer.geometry)[part].double()
    weights = statistics.weights[name].unflatten(0, (layout.parts, -1))[part]
    rows: Tensor = matrix * weights.sqrt()[:, None, None]
    return rows.flatten(0, 1)
