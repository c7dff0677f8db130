"""A budget in accuracy gives the largest cut within it, with all that was tried."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from d2prune.errors import PruneError
from d2prune.pruning import prune
from d2prune.pruning.budget import Budget, largest_within
from tests.each import each
from tests.plain_net import X, net

BATCHES = tuple(torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(i)) for i in range(10))


class Cut(nn.Module):
    """A model that has lost a part."""

    def __init__(self, amount):
        super().__init__()
        self.amount = amount


def bisected(points, loss, most=0.9):
    budget = Budget(points, lambda cut: {"a": 60 - loss(cut.amount), "b": 70.0})
    return largest_within(budget, Cut(0.0), most, lambda amount: (amount, Cut(amount), amount))


def test_the_largest_cut_within_the_budget_is_found():
    best, curve = bisected(1.0, lambda amount: 4 * amount)
    assert 0.25 - 0.02 < best <= 0.25
    assert [point.reached for point in curve] == sorted(point.reached for point in curve)
    assert all(point.within == (point.reached <= 0.25) for point in each(curve))
    assert curve[0].scores == {"a": 60, "b": 70.0} and len(curve) <= 8


def test_all_that_can_go_goes_where_nothing_is_lost():
    best, curve = bisected(1.0, lambda amount: 0.0)
    assert best > 0.9 - 0.02 and all(point.within for point in each(curve))


def test_a_way_that_can_remove_no_more_ends_the_search():
    budget = Budget(1.0, lambda cut: 60.0)
    tried = []

    def cut(amount):
        tried.append(min(amount, 0.3))
        return tried[-1], Cut(tried[-1]), tried[-1]

    best, curve = largest_within(budget, Cut(0.0), 0.9, cut)
    assert best == 0.3 and tried == [0.3] and curve[-1].reached == 0.3


def test_no_cut_within_the_budget_is_refused_with_figures():
    with pytest.raises(PruneError, match="no cut is within the budget of 1 points: .* loses 30.00"):
        bisected(1.0, lambda amount: 30.0 if amount else 0.0)


@pytest.mark.parametrize("points", [0, -1.0, float("nan")])
def test_a_budget_of_nothing_is_refused(points):
    with pytest.raises(PruneError, match="the budget is"):
        Budget(points, lambda model: 0.0)


def test_a_budget_without_scores_is_refused():
    with pytest.raises(PruneError, match="needs an evaluation"):
        Budget(1.0, lambda model: {}).scores(nn.Identity())


def score(model):
    with torch.no_grad():
        return 100 - 100 * float(F.mse_loss(model(X), net()(X)) / net()(X).var())


def test_prune_by_a_budget():
    small, large = (
        prune(net(), example_inputs=X, data=BATCHES, budget=b, evaluate=score) for b in (0.5, 20.0)
    )
    for result, points in ((small, 0.5), (large, 20.0)):
        assert result.proof.exact and result.repair.proof.exact
        assert score(result.model) >= 100 - points - 1e-4
        within = [point.reached for point in result.curve if point.within]
        assert result.reached == max(within) and result.tried and result.curve[0].scores == {"score": 100.0}
    assert small.reached < large.reached


def test_half_a_budget_is_refused():
    with pytest.raises(PruneError, match="budget= and evaluate= go together"):
        prune(net(), example_inputs=X, budget=1.0)
