"""Repair: each consumer's remaining inputs take over what the removed ones did, by least squares.

He et al., "Channel Pruning for Accelerating Very Deep Neural Networks" (arXiv 1707.06168), equation 4, in
closed form: W_K += W_R S_RK (S_KK + l I)^-1, with S the second moments of the input; the means go into what
follows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from d2prune.core.calibrate.moments import Consumer, Statistics, ridged
from d2prune.core.cut.spec import positions_removed
from d2prune.core.layers.kinds import module_at, places
from d2prune.core.types import PrunePlan


@dataclass(frozen=True)
class Repaired:
    """What repair did to one layer.

    Attributes:
        layer: its path.
        before: the squared error of its output without the removed channels, by its variance.
        after: what is left of it after the repair; both on the data that the repair was made by.
        reason: why the layer was not repaired; empty where it was.
    """

    layer: str
    before: float = 0.0
    after: float = 0.0
    reason: str = ""


@torch.no_grad()
def repair(model: nn.Module, plan: PrunePlan, statistics: Statistics) -> tuple[Repaired, ...]:
    """Change the weights of all consumers of removed channels, in place and at full width.

    The weights that read removed channels stay as they are: a mask or a cut takes them away. Biases, and
    running means of norms, take up constants.
    """
    found = []
    for (name, axis), positions in positions_removed(plan).items():
        if axis != "in":
            continue
        if name in statistics.consumers:
            found.append(_repair(model, name, sorted(positions), statistics.consumers[name]))
        else:
            found.append(Repaired(name, reason=statistics.unmeasured.get(name, "it was not measured")))
    return tuple(found)


def _repair(model: nn.Module, name: str, removed: Sequence[int], consumer: Consumer) -> Repaired:
    layer = module_at(model, name)
    weight = places(layer, "in")[0].tensor.data
    changed = weight.clone(memory_format=torch.contiguous_format)
    matrix = consumer.moments.layout.matrix(changed, consumer.geometry)  # a view of it
    shifts = matrix.new_zeros(matrix.shape[:2], dtype=torch.float64)
    before = after = total = 0.0
    every = consumer.moments.layout.columns(np.array([removed]))
    for part in range(len(matrix)):
        rows = matrix[part].double()
        second, mean = consumer.moments.second(part, consumer.centred)
        total += _variance(rows, second)
        if part not in every:
            continue
        gone = torch.from_numpy(every[part][1].ravel()).to(weight.device)
        rest = torch.ones(len(mean), dtype=torch.bool, device=weight.device)
        rest[gone] = False
        kept = rest.nonzero().flatten()
        share = torch.linalg.solve(ridged(second)[kept][:, kept], second[kept][:, gone])  # (kept, gone)
        lost = rows[..., gone]
        before += _variance(lost, second[gone][:, gone])
        after += _variance(lost, second[gone][:, gone] - second[gone][:, kept] @ share)
        matrix[part][..., kept] += (lost @ share.T).to(weight.dtype)
        means = lost @ (mean[gone] - share.T @ mean[kept])
        # Of a transposed convolution, each tap makes another place of the result.
        shifts[part] = means.mean(1) if consumer.geometry.transposed else means.sum(1)
    weight.copy_(changed)
    _absorb(model, layer, shifts.flatten(), consumer)
    scale = max(total, 1e-300)  # rounding may make the variance of a constant negative
    return Repaired(name, max(before, 0.0) / scale, max(min(after, before), 0.0) / scale)


def _absorb(model: nn.Module, layer: Any, constants: Tensor, consumer: Consumer) -> None:
    if consumer.bias:
        layer.bias.data += constants.to(layer.bias.dtype)
        return
    for norm in consumer.norms:
        mean = module_at(model, norm).running_mean
        mean -= constants.to(mean.dtype)


def _variance(rows: Tensor, second: Tensor) -> float:
    return float(torch.einsum("ord,de,ore->", rows, second, rows))
