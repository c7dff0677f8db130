"""What "auto" stands for: several ways where there are data, of which the one that loses least is taken."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from d2prune.adapters import TraceInput
from d2prune.core.types import Request
from d2prune.errors import PruneError
from d2prune.pruning import choosing, cutter, prune
from d2prune.pruning.calibration import Data
from tests.plain_net import X, net

AUTO = Request(criterion="auto", allocation="auto")
BATCHES = tuple(torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(i)) for i in range(10))


def names(request, has_data=True):
    return [str(way) for way in choosing.ways(request, None, has_data)]


def test_auto_leaves_a_choice_only_where_there_are_data():
    both = [f"{c}, {a}" for c in ("reconstruction", "fisher") for a in ("per_cost", "global", "uniform")]
    assert names(AUTO) == both
    assert names(Request(criterion="fisher", allocation="auto")) == both[3:]
    assert names(Request(criterion="auto", allocation="uniform")) == both[2::3]
    assert names(Request(criterion="magnitude", allocation="auto")) == ["magnitude, uniform"]
    assert names(Request(criterion="magnitude", allocation="global")) == ["magnitude, global"]


def test_without_data_it_is_magnitude_and_that_is_said(caplog):
    assert names(AUTO, has_data=False) == ["magnitude, uniform"]
    assert "no data to calibrate on" in caplog.text
    with pytest.raises(PruneError, match="'fisher' needs data"):
        names(Request(criterion="fisher"), has_data=False)


def test_some_batches_are_kept_apart_where_there_are_enough():
    first, last = choosing.held_out(Data(BATCHES))
    assert first.batches == BATCHES[:9] and last.batches == BATCHES[9:]
    few = Data(BATCHES[:5])
    assert choosing.held_out(few) == (few, few)


def labelled_loss(model, batch):
    return F.cross_entropy(model(batch), torch.tensor([0, 1]))


def test_the_way_that_costs_least_is_taken():
    result = prune(net(), 0.5, example_inputs=X, data=BATCHES, loss=labelled_loss)
    assert [(one.criterion, one.allocation) for one in result.tried] == [
        (c, a) for c in ("reconstruction", "fisher") for a in ("per_cost", "global", "uniform")
    ]
    best = min(result.tried, key=lambda one: one.loss**4 * one.change)
    assert (result.request.criterion, result.request.allocation) == (best.criterion, best.allocation)
    with torch.no_grad():
        before, after = net()(BATCHES[9]), result.model(BATCHES[9])
        pruned, unpruned = (float(labelled_loss(m, BATCHES[9])) for m in (result.model, net()))
    change = (after - before).square().sum() / (before - before.mean()).square().sum()
    assert best.change == pytest.approx(float(change), rel=1e-4)
    assert best.loss == pytest.approx(pruned / unpruned, rel=1e-5)
    assert result.repair is not None and result.repair.batches == 9
    assert result.proof.exact and result.repair.proof.exact


def test_a_cut_that_leaves_little_is_foretold(caplog):
    with caplog.at_level("WARNING", "d2prune"):
        mild = prune(net(), 0.1, example_inputs=X, data=BATCHES)
        assert "expect little accuracy" not in caplog.text and max(t.change for t in mild.tried) < 0.6
        harsh = prune(net(), 0.9, example_inputs=X, data=BATCHES, max_ratio=0.95)
    assert min(t.change for t in harsh.tried) > 0.6
    assert "expect little accuracy before fine-tuning" in caplog.text


def test_without_a_loss_the_outputs_decide():
    result = prune(net(), 0.5, example_inputs=X, data=BATCHES)
    assert [(one.criterion, one.loss) for one in result.tried] == [("reconstruction", 1.0)] * 3
    assert result.request.allocation == min(result.tried, key=lambda one: one.change).allocation


def test_a_way_that_is_given_is_not_compared():
    given = {"criterion": "reconstruction", "allocation": "per_cost"}
    result = prune(net(), 0.5, example_inputs=X, data=BATCHES, **given)
    assert result.tried == () and result.repair.batches == 10


def test_a_way_that_cannot_reach_the_amount_is_passed_over(monkeypatch):
    plan = cutter.plan

    def refusing(groups, rankings, limits, costs, request):
        if request.allocation == "per_cost":
            raise PruneError("AMOUNT can't be reached")
        return plan(groups, rankings, limits, costs, request)

    monkeypatch.setattr(cutter, "plan", refusing)
    result = prune(net(), 0.5, example_inputs=X, data=BATCHES)
    assert [one.allocation for one in result.tried] == ["global", "uniform"]


def judge(losses=None):
    return choosing.Judge(net(), Data(BATCHES[:2]), TraceInput(net(), X), losses)


def named_loss(model, batch):
    return {"loss": labelled_loss(model, batch)}


def test_a_judge_measures_held_out_batches():
    other = net()
    assert judge().measure(other) == (1, 0) and judge(named_loss).measure(other) == (pytest.approx(1), 0)
    nn.init.zeros_(other[-1].weight)
    assert 0.1 < judge().measure(other)[1] < math.inf
    nn.init.constant_(other[-1].weight, torch.nan)
    assert judge(named_loss).measure(other) == (math.inf, math.inf)


def test_a_small_loss_counts_as_much_as_a_large_one():
    def two(model, batch):
        out = model(batch)
        large, small = 10 * out[:, :4].square().mean(), 2 * out[:, 4:].square().mean()
        return {"large": large, "small": small, "none": 0 * out.sum()}

    other = net()
    other[-1].weight.data[4] *= 2
    other[-1].bias.data[4] *= 2
    assert judge(two).measure(other)[0] == pytest.approx((1 + 4 + 0) / 3, rel=1e-4)
