"""The images that a prune is calibrated on come from the trainer's own loader, or it says why not."""

from __future__ import annotations

import pytest
import torch

from d2prune.engine.calibration import calibration_data
from d2prune.errors import PruneError
from tests.tiny_blendmask import tiny_cfg


def endless(height, width):
    def load(cfg):
        while True:
            yield [{"image": torch.empty(3, height, width, device="meta")}] * cfg.SOLVER.IMS_PER_BATCH

    return load


load = endless(8, 8)


def missing(cfg):
    raise KeyError("Dataset 'coco_2017_train' is not registered!")


def calibration(*pairs, load=load):
    keys = [f"MODEL.PRUNING.{word}" if i % 2 == 0 else word for i, word in enumerate(pairs)]
    return calibration_data(tiny_cfg(*keys), load)


def test_as_many_images_as_the_key_says_one_at_a_time():
    data = calibration("CALIBRATION_IMAGES", 11, "REPAIR", "fold")
    assert [len(batch) for batch in data.batches] == [1] * 11 and data.repair == "fold"


@pytest.mark.parametrize(
    ("height", "width", "count"), [(128, 128, 240), (480, 640, 163), (800, 1333, 47), (4000, 6000, 32)]
)
def test_fewer_images_are_taken_where_they_are_large(height, width, count):
    assert len(calibration(load=endless(height, width)).batches) == count
    assert len(calibration("CALIBRATION_IMAGES", 250, load=endless(height, width)).batches) == 250


@pytest.mark.parametrize("pairs", [("CALIBRATION_IMAGES", 0), ("CRITERION", "magnitude", "REPAIR", "")])
def test_none_are_read_where_nothing_asks_for_them(pairs):
    assert calibration(*pairs, load=missing) is None


def test_missing_images_are_said_and_refused_where_a_criterion_needs_them(caplog):
    assert calibration(load=missing) is None
    assert "no images to calibrate on, DATASETS.TRAIN can't be read" in caplog.text
    assert calibration(load=lambda cfg: []) is None
    with pytest.raises(PruneError, match="CRITERION 'fisher' needs images of DATASETS.TRAIN"):
        calibration("CRITERION", "fisher", load=missing)


def test_wrong_values_are_named():
    with pytest.raises(PruneError, match="CALIBRATION_IMAGES is -2; expected -1"):
        calibration("CALIBRATION_IMAGES", -2)
    with pytest.raises(PruneError, match="MODEL.PRUNING.REPAIR is 'weld'"):
        calibration("REPAIR", "weld")
