"""Criteria: scores of how much each unit of a group matters."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from d2prune.core.layers.kinds import module_at, weight_on
from d2prune.core.plan.torch_pruning_criteria import PREFIX, Importance, TorchPruningCriterion
from d2prune.core.registry import Registry
from d2prune.core.types import Group, Member

Scores = NDArray[np.float64]
Criterion = Callable[[nn.Module, Group], Scores]
"""``criterion(model, group) -> (U,)`` scores of the group's units; the lowest go first. Scores are
compared over groups by the allocation "global", so their mean over a group should be comparable."""

CRITERIA: Registry[Criterion] = Registry("MODEL.PRUNING.CRITERION")
register_criterion = CRITERIA.register


def criterion_of(given: str | Importance) -> Criterion:
    """Return a registered criterion by its name, or one that scores by an importance of torch-pruning.

    Raises:
        PruneError: if there is no such name, or ``given`` is no importance.
    """
    if isinstance(given, str) and not given.startswith(PREFIX):
        return CRITERIA[given]
    return TorchPruningCriterion(given)


def score(
    model: nn.Module, groups: Sequence[Group], criterion: str | Criterion, whole: Collection[Group] = ()
) -> tuple[Scores, ...]:
    """Return the scores of every group; zeros for groups in ``whole``, which stay whole.

    Raises:
        PruneError: if ``criterion`` is an unknown name, or can't score a group.
    """
    function = criterion_of(criterion) if isinstance(criterion, str) else criterion
    return tuple(np.zeros(g.units) if g in whole else function(model, g) for g in groups)


@register_criterion("magnitude")
def magnitude(model: nn.Module, group: Group) -> Scores:
    """Return the L2 norms of each unit's weights, relative to each layer's mean, averaged over layers.

    Li et al., "Pruning Filters for Efficient ConvNets" (arXiv 1608.08710), extended to coupled
    layers as in Fang et al., "DepGraph" (arXiv 2301.12900): producers' filters, consumers' input
    columns and norm scales all count.
    """
    norms = [n for member in group.members if (n := _norms(model, member)) is not None]
    relative = [norm / norm.mean() if norm.mean() > 0 else norm for norm in norms]
    return np.mean(relative, axis=0) if relative else np.ones(group.units)


def _norms(model: nn.Module, member: Member) -> Scores | None:
    """Return the (U,) L2 norms of each unit's part of one layer's weight; None if it has no weight."""
    place = weight_on(module_at(model, member.layer), member.axis)
    if place is None:
        return None
    rows = place.by_position().flatten(0, 1).unsqueeze(-1)
    others = tuple(range(1, rows.dim()))
    precise = torch.promote_types(rows.dtype, torch.float32)
    lengths = torch.linalg.vector_norm(rows, dim=others, dtype=precise).double().cpu().numpy()
    norms: Scores = np.sqrt(np.square(lengths)[member.indices].sum(1))
    return norms
