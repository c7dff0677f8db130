"""A stage says on which data set it was evaluated, and by which run."""

from __future__ import annotations

import pytest
from detectron2.data import DatasetCatalog

import d2prune
from d2prune.core.types import Totals
from d2prune.engine.publish import evaluated_stage

AP = {"bbox": {"AP": 12.0}}


@pytest.fixture
def cfg():
    """Two test sets, one of them registered, with three images."""
    DatasetCatalog.register("publish_known", lambda: [{}, {}, {}])
    cfg = d2prune.get_cfg()
    cfg.DATASETS.TEST = ("publish_known", "publish_unknown")
    yield cfg
    DatasetCatalog.remove("publish_known")


def stage(cfg, results):
    return evaluated_stage(cfg, "pruned", Totals(1, 2), results, "x.pth", 7)


def test_the_data_set_its_images_and_the_seed_are_noted(cfg):
    cfg.SEED = 3
    found = stage(cfg, AP)
    assert (found.test_set, found.images, found.seed) == ("publish_known", 3, 3)
    assert (found.box_ap, found.iterations) == (12.0, 7)


def test_of_several_data_sets_it_is_the_first_with_scores(cfg):
    found = stage(cfg, {"publish_known": {}, "publish_unknown": AP})
    assert (found.test_set, found.images, found.seed) == ("publish_unknown", None, None)


def test_what_was_not_evaluated_names_none(cfg):
    assert stage(cfg, {}).test_set == ""
    cfg.DATASETS.TEST = ()
    assert stage(cfg, AP).test_set == ""
