"""Latency as a target: measured by layer, planned by, and timed after the cut."""

from __future__ import annotations

import json
import time

import pytest
import torch
from torch import nn

import d2prune
from d2prune.core.plan.costs import _Counter
from d2prune.errors import PruneError
from d2prune.pruning import clock, find_groups, latency, layer_times
from d2prune.pruning.latency import table_for
from d2prune.pruning.layer_times import SECONDS
from tests.each import each

INPUTS = torch.rand(1, 3, 32, 32)


class Net(nn.Module):
    """Plain, strided, grouped, depthwise and transposed convolutions, a norm and a linear layer."""

    def __init__(self, width=64):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU())
        self.wide = nn.Sequential(nn.Conv2d(width, width, 3, 2, 1), nn.ReLU())
        self.depthwise = nn.Conv2d(width, width, 3, padding="same", groups=width)
        self.grouped = nn.Conv2d(width, width, 3, padding=1, groups=4)
        self.up = nn.ConvTranspose2d(width, width, 2, 2)
        self.head = nn.Linear(width, 5)

    def forward(self, x):
        x = self.up(self.grouped(self.depthwise(self.wide(self.stem(x)))))
        return self.head(x.relu().mean((2, 3)))


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Net().eval()


@pytest.fixture
def by_macs(monkeypatch):
    """A clock on which a thousand MACs take a millisecond, and everything else nothing."""

    def seconds(call, device):
        with torch.inference_mode(False), torch.no_grad(), _Counter() as counter:
            call()
        return counter.macs() / 1e6

    for module in (latency, layer_times):
        monkeypatch.setattr(module, "seconds_of", seconds)


def prune(model, amount=0.5, **options):
    return d2prune.prune(
        model, amount, example_inputs=INPUTS, **{"round_to": 8, "target": "latency", **options}
    )


def test_where_macs_are_the_time_a_plan_for_time_is_one_for_macs(model, by_macs, tmp_path):
    path = tmp_path / "table.json"
    found = prune(model, latency_table=path)
    macs = 1 - found.after.macs / found.before.macs
    assert found.reached == pytest.approx(0.5, abs=0.03) and macs == pytest.approx(found.reached, abs=0.03)
    assert found.latency.before == pytest.approx(found.before.macs / 1e3)
    assert found.latency.ratio == pytest.approx(1 - macs) and found.proof.exact
    assert found.latency.predicted == pytest.approx(found.latency.ratio, abs=0.03)
    table = json.loads(path.read_text())
    assert set(table["calls"]) == {"stem.0", "wide.0", "depthwise", "grouped", "up", "head"}
    assert table["whole"] == pytest.approx(found.before.macs / 1e3)


def test_a_table_is_measured_once(model, by_macs, monkeypatch, tmp_path):
    monkeypatch.setenv("D2PRUNE_CACHE", str(tmp_path / "cache"))
    first = prune(model)
    monkeypatch.setattr(latency, "measure_latency", None)
    again = prune(model)
    assert again.spec == first.spec
    files = list((tmp_path / "cache" / "latency").iterdir())
    assert len(files) == 1
    files[0].write_text("{")
    monkeypatch.undo()
    monkeypatch.setenv("D2PRUNE_CACHE", str(tmp_path / "cache"))
    assert prune(model).latency is not None, "a broken table of our own is measured anew"
    assert json.loads(files[0].read_text())


def test_a_cache_that_cannot_be_written_is_no_error(model, by_macs, monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("D2PRUNE_CACHE", str(tmp_path / "file"))
    assert prune(model).latency is not None
    with pytest.raises((PruneError, OSError)):
        prune(model, latency_table=tmp_path / "file" / "x.json")


def test_another_machines_table_is_planned_by_and_nothing_is_timed(model, by_macs, tmp_path, caplog):
    path = tmp_path / "table.json"
    here = prune(model, latency_table=path)
    table = json.loads(path.read_text())
    table["measured_on"]["device"] = "cpu: a small one"
    path.write_text(json.dumps(table))
    caplog.set_level("INFO")
    there = prune(model, latency_table=path)
    assert there.spec == here.spec and there.latency is None and "a small one" in caplog.text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda table: table["measured_on"].update(input="1x3x64x64"),
            "measured with input 1x3x64x64; expected",
        ),
        (
            lambda table: table["measured_on"].update(dtype="torch.float16"),
            "measured with dtype torch.float16",
        ),
        (
            lambda table: table["calls"].pop("up"),
            r"is of another model: it holds no times of up \(transposed",
        ),
    ],
)
def test_a_table_of_something_else_is_refused(model, by_macs, tmp_path, change, message):
    path = tmp_path / "table.json"
    prune(model, latency_table=path)
    table = json.loads(path.read_text())
    change(table)
    path.write_text(json.dumps(table))
    with pytest.raises(PruneError, match=message):
        prune(model, latency_table=path)


@pytest.mark.parametrize(("unit", "of"), [("GMACs", "macs"), ("MMACs", "macs"), ("M params", "params")])
def test_a_budget_is_what_may_be_left(model, unit, of):
    whole = getattr(prune(model, target="macs").before, of)
    factor = {"G": 1e9, "M": 1e6}[unit[0]]
    found = prune(model, budget=f"{0.6 * whole / factor:.9f} {unit}")
    left = getattr(found.after, of)
    assert 0.55 * whole <= left <= 0.6 * whole
    assert found.request.target == of and found.request.at_least


def test_a_budget_of_time_is_kept(model, by_macs, tmp_path):
    path = tmp_path / "table.json"
    whole = prune(model, latency_table=path).before.macs / 1e3
    found = prune(model, budget=f"{0.7 * whole:.3f} ms", latency_table=path)
    assert found.request.target == "latency" and found.latency.after <= 0.72 * whole


def test_budgets_that_can_not_be_are_refused(model):
    with pytest.raises(
        PruneError, match="BUDGET is '500 GMACs', and the unpruned model has .*nothing to prune"
    ):
        prune(model, budget="500 GMACs")
    with pytest.raises(PruneError, match="of params can't be reached"):
        prune(model, budget="0.1 k params")
    with pytest.raises(PruneError, match="BUDGET is 'fast'; expected a number and a unit: ms"):
        prune(model, budget="fast")


def test_real_times_are_measured(model):
    traced = d2prune.adapters.TraceInput(model, INPUTS)
    begin = time.monotonic()
    table = table_for(model, traced, find_groups(model, traced))
    assert time.monotonic() - begin < 2 * SECONDS
    assert table.whole > 0 and all(table.price(layer, 64, 64) > 0 for layer in each(table.calls))
    wide, narrow = (table.price("wide.0", 64, inp) for inp in (64, 16))
    assert 0 < narrow <= wide
    assert not any(module.training for module in model.modules())


def test_the_clock_waits_for_the_call():
    assert clock.seconds_of(lambda: time.sleep(0.01), torch.device("cpu")) >= 0.01
