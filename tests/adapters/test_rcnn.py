"""R-CNNs of Detectron2's zoo, every head and backbone: pruned, proved, saved, loaded, trained, run."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from detectron2 import model_zoo
from detectron2.config import instantiate

import d2prune
from d2prune import PruneError
from d2prune.adapters import TraceInput, find_adapter
from d2prune.adapters.rcnn import PRECOMPUTED
from d2prune.pruning import measure_model
from tests.adapters.families import (
    R18,
    SIZE,
    build,
    dense,
    lively,
    narrow_rcnn,
    small_regnet,
    small_resnet,
    small_zoo_cfg,
    stands,
)
from tests.each import each

MASK = "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml"
GN = {
    "MODEL.RESNETS.NORM": "GN",
    "MODEL.RESNETS.STEM_OUT_CHANNELS": 32,
    "MODEL.RESNETS.RES2_OUT_CHANNELS": 32,
    "MODEL.FPN.OUT_CHANNELS": 64,
    "MODEL.FPN.NORM": "GN",
    "MODEL.ROI_BOX_HEAD.NAME": "FastRCNNConvFCHead",
    "MODEL.ROI_BOX_HEAD.NUM_CONV": 2,
    "MODEL.ROI_BOX_HEAD.NUM_FC": 1,
    "MODEL.ROI_BOX_HEAD.CONV_DIM": 64,
    "MODEL.ROI_BOX_HEAD.NORM": "GN",
    "MODEL.ROI_MASK_HEAD.NORM": "GN",
    "MODEL.ROI_MASK_HEAD.CONV_DIM": 64,
}
CONVS_ONLY = {
    "MODEL.ROI_BOX_HEAD.NUM_CONV": 2,
    "MODEL.ROI_BOX_HEAD.NUM_FC": 0,
    "MODEL.ROI_BOX_HEAD.CONV_DIM": 32,
}
RESNEXT = {"MODEL.RESNETS.NUM_GROUPS": 4, "MODEL.RESNETS.STRIDE_IN_1X1": False}
FAMILIES = {
    "mask r18": (MASK, R18),
    "resnext": (MASK, RESNEXT),
    "syncbn": (MASK, {**R18, "MODEL.RESNETS.NORM": "SyncBN", "MODEL.FPN.NORM": "naiveSyncBN"}),
    "gn": (MASK, {**R18, **GN}),
    "convs only": ("Misc/mask_rcnn_R_50_FPN_1x_cls_agnostic.yaml", {**R18, **CONVS_ONLY}),
    "c4": ("COCO-InstanceSegmentation/mask_rcnn_R_50_C4_1x.yaml", {}),
    "dc5": ("COCO-InstanceSegmentation/mask_rcnn_R_50_DC5_1x.yaml", {}),
    "keypoints": ("COCO-Keypoints/keypoint_rcnn_R_50_FPN_1x.yaml", R18),
    "cascade": ("Misc/cascade_mask_rcnn_R_50_FPN_1x.yaml", R18),
    "panoptic": ("COCO-PanopticSegmentation/panoptic_fpn_R_50_1x.yaml", R18),
    "rpn": ("COCO-Detection/rpn_R_50_FPN_1x.yaml", R18),
    "rpn c4": ("COCO-Detection/rpn_R_50_C4_1x.yaml", {}),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_stands(family, tmp_path):
    stands(lambda: build(small_zoo_cfg(*FAMILIES[family])), tmp_path)


def test_the_box_heads_linear_layer_loses_whole_blocks_of_columns():
    model = build(small_zoo_cfg(MASK, R18))
    result = d2prune.prune(model, 0.45, allocation="uniform", input_size=SIZE, verify=False)
    width, layer = result.model.backbone.fpn_output2.out_channels, result.model.roi_heads.box_head.fc1
    assert layer.in_features == 49 * width < 49 * 32
    kept = torch.tensor(result.spec.layers["roi_heads.box_head.fc1"].inp).view(-1, 49)
    assert torch.equal(kept // 49, kept[:, :1].expand(-1, 49) // 49)


@pytest.mark.parametrize("change", [{}, CONVS_ONLY])
def test_widths_told_are_those_computed(change):
    model = build(small_zoo_cfg(MASK, R18, change))
    pruned = d2prune.prune(model, 0.45, allocation="uniform", input_size=SIZE, verify=False).model
    heads = pruned.roi_heads
    told = heads.box_head.output_shape
    assert told.channels < 32 if change else told.channels < 64
    assert told.channels * (told.height or 1) * (told.width or 1) == heads.box_predictor.cls_score.in_features


def test_costs_count_as_many_boxes_as_inference_has():
    def macs(*pairs):
        model = build(small_zoo_cfg(MASK, R18, dict(pairs)))
        costs = measure_model(model, TraceInput(model, count_size=SIZE))
        return costs.totals.macs, costs.layers

    (few, layers), (proposals, _), (detections, _) = (
        macs(*pairs)
        for pairs in ((), [("MODEL.RPN.POST_NMS_TOPK_TEST", 51)], [("TEST.DETECTIONS_PER_IMAGE", 11)])
    )
    box = [f"roi_heads.{n}" for n in ("box_head.fc1", "box_head.fc2", "box_predictor.cls_score")]
    fc1, fc2, scores = (layers[n].out * layers[n].inp for n in box)
    deltas = layers["roi_heads.box_predictor.bbox_pred"]
    assert proposals - few == fc1 + fc2 + scores + deltas.out * deltas.inp
    convs = 4 * 14 * 14 * 9 * 32 * 32 + 28 * 28 * 32 * 32 + 28 * 28 * 32 * 5
    assert detections - few == convs


def test_unlimited_detections_cost_as_many_as_there_are_proposals():
    costs = []
    for kept in (-1, 50):
        model = build(small_zoo_cfg(MASK, R18, {"TEST.DETECTIONS_PER_IMAGE": kept}))
        costs.append(measure_model(model, TraceInput(model, count_size=SIZE)).totals.macs)
    assert costs[0] == costs[1]


def test_without_a_proposal_network_the_heads_are_still_pruned():
    cfg = small_zoo_cfg("COCO-Detection/fast_rcnn_R_50_FPN_1x.yaml", R18)
    model = build(cfg)
    assert model.proposal_generator is None or not hasattr(model.proposal_generator, "rpn_head")
    result = d2prune.prune(model, 0.45, input_size=SIZE)
    assert result.proof.exact and result.proof.compared == ("box/scores", "box/deltas")
    assert PRECOMPUTED == cfg.DATASETS.PRECOMPUTED_PROPOSAL_TOPK_TEST


def test_every_level_reaches_the_heads():
    model = build(small_zoo_cfg(MASK, R18))
    adapter = find_adapter(model)
    images = torch.rand(2, 3, 64, 96, requires_grad=True)
    outputs = adapter.dense(model.eval(), images, True)
    for level in (2, 3, 4, 5):
        weight = model.backbone.get_submodule(f"fpn_output{level}").weight
        (gradient,) = torch.autograd.grad(outputs["mask"].sum(), weight, retain_graph=True)
        assert gradient.abs().sum() > 0


def test_images_of_any_size_are_padded_as_the_model_does():
    model = build(small_zoo_cfg(MASK, R18)).eval()
    image = torch.rand(1, 3, 50, 70) * 255
    outputs = TraceInput(model, image).outputs(model)
    assert outputs["p2/objectness"].shape[-2:] == (16, 24)
    assert outputs["p2/objectness"].dtype == torch.float32
    assert all(t.is_floating_point() for t in each(dense(model.double()).values()))


def test_heads_that_nobody_knows_are_refused_by_name():
    class Odd(torch.nn.Module):
        pass

    for part in ("roi_heads", "proposal_generator", "roi_heads.mask_head"):
        model = build(small_zoo_cfg(MASK, R18))
        owner, _, name = part.rpartition(".")
        setattr(model.get_submodule(owner), name, Odd())
        with pytest.raises(PruneError, match="no adapter knows the .* Odd; expected"):
            d2prune.prune(model, 0.4, input_size=SIZE)


NEW_BASELINES = {
    "R_50": partial(small_resnet, freeze_at=0),
    "regnetx_4gf_dds": partial(small_regnet, se_ratio=0.0),
    "regnety_4gf_dds": partial(small_regnet, se_ratio=0.25),
}


@pytest.mark.parametrize("name", NEW_BASELINES)
def test_python_configs_stand(name, tmp_path):
    cfg = narrow_rcnn(model_zoo.get_config(f"new_baselines/mask_rcnn_{name}_FPN_100ep_LSJ.py").model)
    outputs = cfg.backbone.bottom_up.out_features
    cfg.backbone.bottom_up = NEW_BASELINES[name](norm="SyncBN")
    cfg.backbone.bottom_up.out_features = outputs
    stands(lambda: lively(instantiate(cfg)), tmp_path)
