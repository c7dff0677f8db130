"""Criteria: in which order the units of a group go, and how much each one matters."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from d2prune.core.calibrate.moments import Statistics
from d2prune.core.layers.kinds import module_at, weight_on
from d2prune.core.plan.ranking import Ranking, Scores, by_score
from d2prune.core.plan.reconstruction import reconstruction
from d2prune.core.plan.torch_pruning_criteria import PREFIX, Importance, TorchPruningCriterion
from d2prune.core.registry import Registry
from d2prune.core.types import Group, Member
from d2prune.errors import PruneError

AUTO = "auto"
Needs = Literal["", "data", "loss"]
Scored = Scores | Ranking | None


@dataclass(frozen=True)
class Criterion:
    """A way to score units.

    Attributes:
        function: ``function(model, group)``, or with ``needs`` ``function(model, group, statistics)``. It
            returns the (U,) scores of the group's units, of which the lowest go first, or their
            :class:`Ranking`; None if it can't score this group.
        needs: "data" for second moments of consumers' inputs, "loss" for gradients as well; "" for neither.
    """

    function: Callable[..., Scored]
    needs: Needs = ""

    def rank(self, model: nn.Module, group: Group, statistics: Statistics | None) -> Ranking | None:
        """Return the ranking of a group's units."""
        found = self.function(model, group, statistics) if self.needs else self.function(model, group)
        return by_score(found) if isinstance(found, np.ndarray) else found


CRITERIA: Registry[Criterion] = Registry("MODEL.PRUNING.CRITERION")


def register_criterion(name: str, needs: Needs = "") -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return a decorator that registers a criterion: see :class:`Criterion`.

    Scores are compared over groups by the allocations "global" and "per_cost", so their mean over a group
    should be comparable.

    Raises:
        PruneError: if the name is taken, or ``needs`` is none of "", "data" and "loss".
    """
    if needs not in ("", "data", "loss"):
        raise PruneError(f"register_criterion got needs={needs!r}; expected '', 'data' or 'loss'")

    def add(function: Callable[..., Any]) -> Callable[..., Any]:
        known = CRITERIA[name] if name in CRITERIA else None
        CRITERIA.register(name)(known if known and known.function is function else Criterion(function, needs))
        return function

    return add


def criterion_of(given: str | Importance) -> Criterion:
    """Return a registered criterion by its name, or one that scores by an importance of torch-pruning.

    Raises:
        PruneError: if there is no such name, or ``given`` is no importance.
    """
    if isinstance(given, str) and not given.startswith(PREFIX):
        return CRITERIA[given]
    return Criterion(TorchPruningCriterion(given))


def rank_groups(
    model: nn.Module,
    groups: Sequence[Group],
    criterion: Criterion,
    whole: Collection[Group] = (),
    statistics: Statistics | None = None,
) -> tuple[Ranking | None, ...]:
    """Return the ranking of every group; zeros for groups in ``whole``, None where it can't be ranked.

    Raises:
        PruneError: if ``criterion`` can't score a group.
    """
    zeros = (by_score(np.zeros(group.units)) for group in groups)
    return tuple(
        zero if group in whole else criterion.rank(model, group, statistics)
        for group, zero in zip(groups, zeros, strict=True)
    )


register_criterion("reconstruction", needs="data")(reconstruction)


@register_criterion("fisher", needs="loss")
def fisher(model: nn.Module, group: Group, statistics: Statistics) -> Scores | None:
    """Return the mean squares, over samples, of the loss's derivative by a factor on each unit.

    Liu et al., "Group Fisher Pruning" (arXiv 2108.00708), equation 6: summed over all consumers that read
    the unit, and only then squared.
    """
    slopes = _slopes(group, statistics)
    return slopes.square().mean(0).numpy() if slopes is not None else None


@register_criterion("taylor", needs="loss")
def taylor(model: nn.Module, group: Group, statistics: Statistics) -> Scores | None:
    """Return the mean magnitudes of the same derivatives: the loss's change to first order.

    Molchanov et al., "Pruning Convolutional Neural Networks for Resource Efficient Inference" (arXiv
    1611.06440), equation 8.
    """
    slopes = _slopes(group, statistics)
    return slopes.abs().mean(0).numpy() if slopes is not None else None


def _slopes(group: Group, statistics: Statistics) -> torch.Tensor | None:
    """Return the (S, U) derivatives of each sample's loss by a factor on each unit; None if not measured."""
    reading = [m for m in group.members if m.axis == "in" and m.layer in statistics.gates]
    parts = [statistics.gates[m.layer][:, torch.from_numpy(m.indices)].sum(2) for m in reading]
    return torch.stack(parts).sum(0) if parts else None


@register_criterion("random")
def random(model: nn.Module, group: Group) -> Scores:
    """Return random scores, by PyTorch's generator: what any other criterion must beat."""
    return torch.rand(group.units, dtype=torch.float64).numpy()


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
