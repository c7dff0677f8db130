"""PointRend's heads, for instances and for semantics: pruned, proved, saved, loaded, trained, run."""

from __future__ import annotations

import pytest
from detectron2 import model_zoo

from d2prune.adapters import TraceInput
from d2prune.pruning import find_groups, measure_model
from tests.adapters.families import R18, SIZE, build, import_project, shrunk, stands

INSTANCES = {
    "MODEL.ROI_MASK_HEAD.NAME": "PointRendMaskHead",
    "MODEL.ROI_MASK_HEAD.POOLER_TYPE": "",
    "MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION": 14,
    "MODEL.ROI_MASK_HEAD.FC_DIM": 32,
    "MODEL.ROI_MASK_HEAD.POINT_HEAD_ON": True,
    "MODEL.POINT_HEAD.NUM_CLASSES": 5,
    "MODEL.POINT_HEAD.FC_DIM": 16,
}
IMPLICIT = {
    **INSTANCES,
    "MODEL.ROI_MASK_HEAD.NAME": "ImplicitPointRendMaskHead",
    "MODEL.POINT_HEAD.NAME": "ImplicitPointHead",
    "MODEL.POINT_HEAD.NUM_FC": 2,
    "MODEL.IMPLICIT_POINTREND.POS_ENC_ENABLED": False,
}
SEMANTIC = {
    "MODEL.SEM_SEG_HEAD.NAME": "PointRendSemSegHead",
    "MODEL.POINT_HEAD.NUM_CLASSES": 6,
    "MODEL.POINT_HEAD.FC_DIM": 16,
    "MODEL.POINT_HEAD.SUBDIVISION_STEPS": 2,
    "MODEL.POINT_HEAD.SUBDIVISION_NUM_POINTS": 64,
    "MODEL.POINT_HEAD.TRAIN_NUM_POINTS": 32,
}


@pytest.fixture
def make(monkeypatch):
    point_rend = import_project(monkeypatch, "point_rend")

    def build_model(name, *changes):
        cfg = model_zoo.get_config(name)
        point_rend.add_pointrend_config(cfg)
        return build(shrunk(cfg, R18, *changes))

    return build_model


MASK = "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml"


@pytest.mark.parametrize(
    "change, outputs",
    [
        (INSTANCES, {"mask", "points"}),
        ({**INSTANCES, "MODEL.POINT_HEAD.COARSE_PRED_EACH_LAYER": False}, {"mask", "points"}),
        (IMPLICIT, {"parameters", "fine/p2"}),
    ],
    ids=["points", "coarse once", "implicit"],
)
def test_instances_stand(make, change, outputs, tmp_path):
    left = ["coarse_head.prediction"]  # an output, which the tracer only sees to meet a broadcast
    result = stands(lambda: make(MASK, change), tmp_path, left=left)
    assert outputs <= set(result.proof.compared)


def test_semantics_stand(make, tmp_path):
    result = stands(lambda: make("Misc/semantic_R_50_FPN_1x.yaml", SEMANTIC), tmp_path)
    assert result.proof.compared == ("sem_seg", "points")


def test_points_are_counted_as_inference_refines_them(make):
    model = make(MASK, INSTANCES)
    head = model.roi_heads.mask_head
    assert (head.mask_point_subdivision_init_resolution, head.mask_point_subdivision_steps) == (28, 3)
    layer = measure_model(model, TraceInput(model, count_size=SIZE)).layers[
        "roi_heads.mask_head.point_head.fc1"
    ]
    assert layer.macs_pair == 10 * (28 * 28 + 3 * 28 * 28)


def test_channels_that_generated_weights_read_stay(make):
    model = make(MASK, IMPLICIT)
    fixed = {group.name: group.fixed for group in find_groups(model, TraceInput(model))}
    assert "fine/p2" in fixed["backbone.fpn_output2"]
