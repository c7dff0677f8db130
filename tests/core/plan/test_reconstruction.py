"""Reconstruction ranks by what least squares leaves."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from d2prune.adapters import TraceInput
from d2prune.core.calibrate.collect import calibrate
from d2prune.core.plan.criteria import CRITERIA, criterion_of, register_criterion
from d2prune.core.plan.reconstruction import reconstruction
from d2prune.errors import PruneError
from d2prune.pruning import find_groups
from tests.core.nets import Grouped, Residual, Shared, lively
from tests.each import each


class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 6, 3, 2), nn.Conv2d(6, 4, 1)

    def forward(self, x):
        return self.b(self.a(x).relu())


def batch(seed):
    return torch.rand(2, 3, 24, 24, generator=torch.Generator().manual_seed(seed))


def measured(model, batches, loss=None, gates=False):
    groups = [g for g in find_groups(model, TraceInput(model, batches[0])) if not g.fixed]
    return groups, calibrate(model, groups, batches, lambda m, x: m(x), loss, gates)


def test_what_a_unit_adds_is_what_least_squares_leaves():
    torch.manual_seed(0)
    model, x = Pair().eval(), torch.randn(2, 3, 15, 15)
    (group,), statistics = measured(model, [x])
    ranking = reconstruction(model, group, statistics)
    rows = model.a(x).relu().detach().movedim(1, -1).flatten(0, 2).double()
    wanted = rows @ model.b.weight.detach().double().flatten(1).T
    wanted = wanted - wanted.mean(0)
    left = []
    for unit in range(6):
        rest = np.delete(np.arange(6), unit)
        given = rows[:, rest] - rows[:, rest].mean(0)
        best = torch.linalg.lstsq(given, wanted).solution
        left.append(float((wanted - given @ best).square().sum() / wanted.square().sum()))
    assert ranking.order[0] == np.argmin(left)
    assert ranking.added[0] == pytest.approx(min(left), rel=0.05)


def test_a_copy_goes_first_and_costs_nothing():
    torch.manual_seed(0)
    model = Pair().eval()
    with torch.no_grad():
        model.a.weight[4], model.a.bias[4] = model.a.weight[1] * 3, model.a.bias[1] * 3
    (group,), statistics = measured(model, [torch.randn(4, 3, 15, 15)])
    ranking = reconstruction(model, group, statistics)
    assert ranking.order[0] in (1, 4) and ranking.added[0] < 0.05 * ranking.added[1:-1].min()


@pytest.mark.parametrize("build", [Residual, Grouped, Shared])
def test_every_unit_is_ranked_once(build):
    model = lively(build()).eval()
    groups, statistics = measured(model, [batch(s) for s in range(2)])
    for group in each(groups):
        ranking = reconstruction(model, group, statistics)
        assert sorted(ranking.order) == list(range(group.units)) and (ranking.added >= 0).all()


@pytest.mark.parametrize("build", [Pair, Residual, Shared])
def test_fisher_and_taylor_are_derivatives_by_factors_on_units(build):
    """The derivative by a factor on a unit's channels, everywhere they are read, by finite differences."""
    torch.manual_seed(0)
    model = lively(build()).double().eval()
    batches = [batch(s).double() for s in range(3)]

    def loss(model, x):
        outputs = model(x)
        return sum(y.square().mean() for y in (outputs if isinstance(outputs, list) else [outputs]))

    groups, statistics = measured(model, batches, loss, gates=True)
    group, step = groups[0], 1e-5
    slopes = []
    with torch.no_grad():
        for x in batches:
            ends = []
            for factor in (1 + step, 1 - step):
                for member in group.members:
                    if member.axis == "in":
                        model.get_submodule(member.layer).weight[:, member.indices[2]] *= factor
                ends.append(float(loss(model, x)))
                for member in group.members:
                    if member.axis == "in":
                        model.get_submodule(member.layer).weight[:, member.indices[2]] /= factor
            slopes.append((ends[0] - ends[1]) / (2 * step))
    found = {name: criterion_of(name).function(model, group, statistics)[2] for name in ("fisher", "taylor")}
    assert found["fisher"] == pytest.approx(np.square(slopes).mean(), rel=1e-4)
    assert found["taylor"] == pytest.approx(np.abs(slopes).mean(), rel=1e-4)


def test_a_criterion_says_what_it_needs():
    @register_criterion("widest spread", needs="data")
    def spread(model, group, statistics):
        return np.arange(group.units, dtype=float) * len(statistics.consumers)

    assert CRITERIA["widest spread"].needs == "data" and CRITERIA["magnitude"].needs == ""
    with pytest.raises(PruneError, match="got needs='labels'; expected '', 'data' or 'loss'"):
        register_criterion("other", needs="labels")
