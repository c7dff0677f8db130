"""Latency: models take turns, ratios are paired, and nothing is changed by being timed."""

import re
import statistics
import time

import pytest
import torch
from torch import nn

from d2prune.errors import PruneError
from d2prune.report import environment, latency, latency_table, real_inputs
from d2prune.report.timing import evaluating
from tests.each import each


class Recorder(nn.Module):
    """Notes when it is called, with what, and in which mode."""

    def __init__(self, name, log):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.name, self.log = name, log

    def forward(self, batch):
        self.log.append((self.name, batch[0]["image"], self.training, torch.is_grad_enabled()))


@pytest.fixture
def clock(monkeypatch):
    """A clock that says how long each call takes: give it the seconds."""

    def run(durations):
        ticks = [t for d in durations for t in (0.0, d)]
        monkeypatch.setattr(time, "perf_counter", iter(ticks).__next__)

    return run


def batches(count):
    return [[{"image": i}] for i in range(count)]


def test_models_take_turns_on_the_same_inputs():
    log = []
    latency({"a": Recorder("a", log), "b": Recorder("b", log)}, batches(2), runs=3, warmup=1)
    assert [name for name, *_ in log] == ["a", "b"] * 4
    images = [image for _, image, *_ in log]
    assert images[::2] == images[1::2] and set(images) == {0, 1}


def test_models_run_in_eval_mode_without_gradients():
    log = []
    model = Recorder("a", log).train()
    latency({"a": model}, batches(1), runs=1, warmup=0)
    assert log[0][2:] == (False, False) and model.training


def test_ratio_is_the_median_of_pairs_not_of_medians(clock):
    first, second = [1.0, 10.0, 2.0], [2.0, 10.0, 6.0]
    clock([t for pair in zip(first, second, strict=True) for t in pair])
    found = latency({"a": Recorder("a", []), "b": Recorder("b", [])}, batches(1), 3, 0)
    assert found["b"].ratio == pytest.approx(2.0)  # of 2, 1 and 3; the medians' ratio is 3
    assert (found["b"].ratio_low, found["b"].ratio_high) == pytest.approx((1.5, 2.5))
    assert found["b"].median == pytest.approx(1000 * statistics.median(second))
    assert (found["b"].min, found["b"].max, found["b"].runs) == (2000.0, 10000.0, 3)
    assert (found["a"].ratio, found["a"].ratio_low, found["a"].ratio_high) == (1.0, 1.0, 1.0)


def test_warmup_is_not_counted(clock):
    clock([100.0, 1.0, 1.0])
    assert latency({"a": Recorder("a", [])}, batches(1), 2, 1)["a"].max == 1000.0


@pytest.mark.parametrize(
    ("round_takes", "seconds", "rounds"),
    [(0.1, 100, 3 + 5), (1, 8, 3 + 5), (1, 6, 2 + 5), (1, 3, 1 + 3), (50, 3, 1 + 1), (50, 0.1, 1 + 1)],
)
def test_rounds_are_left_out_where_time_is_short(monkeypatch, round_takes, seconds, rounds):
    log, now = [], [0.0]

    class Slow(Recorder):
        def forward(self, batch):
            now[0] += round_takes
            super().forward(batch)

    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    found = latency({"a": Slow("a", log)}, batches(2), runs=5, warmup=3, seconds=seconds)["a"]
    assert len(log) == rounds and found.runs >= 1
    assert now[0] <= max(seconds, 0) + 2 * round_takes


def test_every_module_gets_its_own_mode_back():
    model = nn.Sequential(nn.BatchNorm1d(2).eval(), nn.Dropout()).train()
    model[0].eval()
    with pytest.raises(KeyError), evaluating([model]):
        assert not any(module.training for module in model.modules())
        raise KeyError
    assert (model.training, model[0].training, model[1].training) == (True, False, True)


def test_a_detector_is_timed_whole_and_dense(build, cfg, scenes):
    models = {"a": build(), "b": build()}
    inputs = real_inputs(cfg, 2)
    for dense in (False, True):
        found = latency(models, inputs, runs=2, warmup=1, dense=dense)
        assert list(found) == ["a", "b"] and found["a"].min > 0


def test_dense_needs_an_adapter():
    with pytest.raises(PruneError, match="no adapter for Recorder"):
        latency({"a": Recorder("a", [])}, batches(1), 1, 0, dense=True)


def test_nothing_to_time_is_an_error():
    model = {"a": Recorder("a", [])}
    for arguments in (
        ({}, batches(1)),
        (model, []),
        (model, batches(1), 0),
        (model, batches(1), 1, -1),
    ):
        with pytest.raises(PruneError):
            latency(*arguments)


def test_inputs_are_the_first_images_one_by_one(cfg, scenes):
    records, _ = scenes
    inputs = real_inputs(cfg, 3)
    assert [batch[0]["file_name"] for batch in inputs] == [r["file_name"] for r in records[:3]]
    assert all(len(batch) == 1 and batch[0]["image"].shape[0] == 3 for batch in each(inputs))


def test_inputs_need_a_test_set(cfg):
    bare = cfg.clone()
    bare.DATASETS.TEST = ()
    with pytest.raises(PruneError, match="DATASETS.TEST is empty"):
        real_inputs(bare, 1)
    with pytest.raises(PruneError, match="expected 1 or more"):
        real_inputs(cfg, 0)


def test_table_tells_times_and_where(clock):
    clock([0.010, 0.005])
    found = latency({"base": Recorder("a", []), "pruned": Recorder("b", [])}, batches(1), 1, 0)
    text = latency_table(found, environment(torch.ones(1).device))
    assert re.search(r"pruned +5\.00 +5\.00 +5\.00 +0\.500 +0\.500–0\.500 +1\n", text)
    assert f"threads {torch.get_num_threads()}" in text and f"torch {torch.__version__}" in text


@pytest.mark.cuda
def test_queued_work_is_waited_for():
    class Busy(Recorder):
        def forward(self, batch):
            for _ in range(20):
                batch[0]["image"] @ batch[0]["image"]

    device = torch.accelerator.current_accelerator()
    inputs = [[{"image": torch.rand(4096, 4096, device=device)}]]
    small = [[{"image": torch.rand(16, 16, device=device)}]]
    model = Busy("a", []).to(device)
    slow, fast = (latency({"a": model}, batch, 5, 2)["a"].median for batch in (inputs, small))
    assert slow > 3 * fast
