"""MODEL.PRUNING.BUDGET: what it may say, and the images that it is measured on and nothing else uses."""

from __future__ import annotations

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog

from d2prune.engine.budget import budget_of
from d2prune.engine.calibration import calibration_data
from d2prune.engine.held_out import held_out_files
from d2prune.errors import PruneError
from tests.tiny_blendmask import tiny_cfg


@pytest.fixture
def train():
    """A registered training set of 30 images."""
    name = "budget_train"
    DatasetCatalog.register(name, lambda: [{"file_name": f"{i}.jpg", "image_id": i} for i in range(30)])
    MetadataCatalog.get(name).set(thing_classes=["a"], json_file="x.json", evaluator_type="coco")
    yield name
    for known in (name, f"{name}_held_out"):
        DatasetCatalog.pop(known, None)
        MetadataCatalog.pop(known, None)


def cfg_with(budget, train=()):
    cfg = tiny_cfg()
    cfg.defrost()
    cfg.MODEL.PRUNING.BUDGET = budget
    cfg.DATASETS.TRAIN = train
    return cfg


@pytest.mark.parametrize(
    "text", ["half an AP", "AP", "-1 AP", "1 mAP", "1,5 AP", "25", "25 s", "0 ms", "-3 GMACs"]
)
def test_what_is_no_budget_is_refused(text):
    with pytest.raises(
        PruneError,
        match="MODEL.PRUNING.BUDGET is .*; expected a number and a unit: ms, GMACs, MMACs, M params, ",
    ):
        budget_of(cfg_with(text), lambda cfg, model: {})


@pytest.mark.parametrize(
    ("text", "left"),
    [("25 ms", (25, "latency")), ("1.5GMACs", (1.5e9, "macs")), (" 12 M params ", (12e6, "params"))],
)
def test_a_budget_may_be_what_is_left(text, left):
    budget = budget_of(cfg_with(text), lambda cfg, model: {})
    assert (budget.value, budget.target) == left and held_out_files(cfg_with(text)) == frozenset()


def test_without_a_budget_there_is_none():
    assert budget_of(cfg_with(""), lambda cfg, model: {}) is None
    assert held_out_files(cfg_with("")) == frozenset()


def test_a_budget_needs_a_training_set():
    with pytest.raises(PruneError, match="DATASETS.TRAIN, which is empty"):
        budget_of(cfg_with("1 AP"), lambda cfg, model: {})


def test_a_data_set_may_be_named(train):
    seen = []
    budget = budget_of(
        cfg_with(f"2 AP on {train}"), lambda cfg, model: seen.append(cfg.DATASETS.TEST) or {"a": {"AP": 1.0}}
    )
    assert budget.points == 2 and budget.scores(torch.nn.Identity()) == {"a": 1.0} and seen == [(train,)]
    with pytest.raises(PruneError, match="names the data set 'nowhere', which is not registered"):
        budget_of(cfg_with("2 AP on nowhere"), lambda cfg, model: {})


def test_a_part_of_the_training_set_is_held_out(train):
    cfg, seen = cfg_with("1.5 AP", (train,)), []

    def test(cfg, model):
        seen.append(cfg.DATASETS.TEST)
        return {"bbox": {"AP": 12.0}}

    budget = budget_of(cfg, test)
    assert budget.points == 1.5 and budget.scores(torch.nn.Identity()) == {"bbox": 12.0}
    assert seen == [("budget_train_held_out",)]
    held = {record["file_name"] for record in DatasetCatalog.get(seen[0][0])}
    assert len(held) == 10 and held_out_files(cfg) == held
    known = MetadataCatalog.get(seen[0][0])
    assert known.thing_classes == ["a"] and not hasattr(known, "json_file")
    budget_of(cfg, test)  # again: nothing is registered twice

    def load(cfg):
        image = torch.empty(3, 8, 8, device="meta")
        return [[{**record, "image": image}] for record in DatasetCatalog.get(train)]

    data = calibration_data(cfg, load)
    used = {batch[0]["file_name"] for batch in data.batches}
    assert len(used) == 20 and not used & held
