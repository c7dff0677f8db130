"""RetinaNet and Detectron2's FCOS: pruned, proved, saved, loaded, trained, run."""

from __future__ import annotations

import pytest
from detectron2 import model_zoo
from detectron2.config import instantiate
from detectron2.layers import ShapeSpec

from d2prune.adapters import find_adapter
from d2prune.adapters.fcos import FCOSAdapter
from d2prune.adapters.retinanet import DenseDetectorAdapter
from d2prune.modeling import OneStageDetector
from tests.adapters.families import build, comes_back, lively, small_regnet, small_zoo_cfg, stands

YAML = "COCO-Detection/retinanet_R_50_FPN_1x.yaml"
LAZY = "COCO-Detection/retinanet_R_50_FPN_1x.py"
FCOS = "COCO-Detection/fcos_R_50_FPN_1x.py"


def lazy_config(name, norm):
    """A Python config's model, on a small RegNet."""
    cfg = model_zoo.get_config(name).model
    cfg.backbone.bottom_up = small_regnet(out_features=["s2", "s3", "s4"])
    cfg.backbone.in_features = ["s2", "s3", "s4"]
    cfg.backbone.out_channels, cfg.num_classes = 32, 5
    top = cfg.backbone.top_block
    top.in_feature = top.get("in_feature", "s4")
    top.in_channels = 32 if top.in_feature == "p5" else 64
    cfg.head.input_shape = [ShapeSpec(channels=32)] * 5
    cfg.head.conv_dims, cfg.head.norm = [32, 32], norm
    cfg.test_score_thresh = 0.0
    return cfg


def lazy(name, norm):
    return lively(instantiate(lazy_config(name, norm)))


@pytest.mark.parametrize("norm", ["", "GN", "BN", "SyncBN"])
def test_retinanet_stands(norm, tmp_path):
    change = {"MODEL.RETINANET.NORM": norm, "MODEL.RETINANET.SCORE_THRESH_TEST": 0.0}
    stands(lambda: build(small_zoo_cfg(YAML, change)), tmp_path)


@pytest.mark.parametrize("name, norm", [(LAZY, ""), (FCOS, "GN"), (FCOS, "BN")])
def test_python_configs_stand(name, norm, tmp_path):
    result = stands(lambda: lazy(name, norm), tmp_path)
    comes_back(lazy_config(name, norm), result, tmp_path)
    heads = {output.split("/")[1] for output in result.proof.compared}
    assert heads == {"logits", "deltas"} | ({"centerness"} if name == FCOS else set())


def test_each_fcos_has_its_own_adapter():
    assert type(find_adapter(lazy(FCOS, "GN"))) is DenseDetectorAdapter
    assert issubclass(type(find_adapter(OneStageDetector.__new__(OneStageDetector))), FCOSAdapter)
