"""Semantic and panoptic segmentation without regions: FPN heads, DeepLab V3 and V3+, Panoptic-DeepLab."""

from __future__ import annotations

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import MetadataCatalog
from detectron2.layers import ASPP
from torch import nn

import d2prune
from d2prune.adapters.segmentation import pooled_whole
from tests.adapters.families import (
    R18,
    SIZE,
    batch,
    build,
    import_project,
    runs,
    shrunk,
    small_zoo_cfg,
    stands,
    trains,
)

SEMANTIC = "Misc/semantic_R_50_FPN_1x.yaml"
DEEPLAB = {
    "MODEL.META_ARCHITECTURE": "SemanticSegmentor",
    "MODEL.BACKBONE.NAME": "build_resnet_deeplab_backbone",
    "MODEL.BACKBONE.FREEZE_AT": 0,
    "MODEL.RESNETS.DEPTH": 50,
    "MODEL.RESNETS.NORM": "BN",
    "MODEL.RESNETS.STEM_TYPE": "deeplab",
    "MODEL.RESNETS.STEM_OUT_CHANNELS": 16,
    "MODEL.RESNETS.RES5_DILATION": 2,
    "MODEL.RESNETS.OUT_FEATURES": ["res2", "res3", "res5"],
    "MODEL.SEM_SEG_HEAD.NAME": "DeepLabV3PlusHead",
    "MODEL.SEM_SEG_HEAD.IN_FEATURES": ["res2", "res5"],
    "MODEL.SEM_SEG_HEAD.ASPP_CHANNELS": 16,
    "MODEL.SEM_SEG_HEAD.PROJECT_CHANNELS": [8],
    "MODEL.SEM_SEG_HEAD.CONVS_DIM": 16,
    "MODEL.SEM_SEG_HEAD.NORM": "BN",
}
V3 = {
    **DEEPLAB,
    "MODEL.SEM_SEG_HEAD.NAME": "DeepLabV3Head",
    "MODEL.SEM_SEG_HEAD.IN_FEATURES": ["res5"],
    "MODEL.SEM_SEG_HEAD.COMMON_STRIDE": 16,
}
CROP = {"INPUT.CROP.ENABLED": True, "INPUT.CROP.TYPE": "absolute", "INPUT.CROP.SIZE": (64, 128)}
DEPTHWISE = {"MODEL.SEM_SEG_HEAD.USE_DEPTHWISE_SEPARABLE_CONV": True}
PANOPTIC = {
    **DEEPLAB,
    "MODEL.META_ARCHITECTURE": "PanopticDeepLab",
    "MODEL.SEM_SEG_HEAD.NAME": "PanopticDeepLabSemSegHead",
    "MODEL.SEM_SEG_HEAD.IN_FEATURES": ["res2", "res3", "res5"],
    "MODEL.SEM_SEG_HEAD.PROJECT_CHANNELS": [8, 8],
    "MODEL.SEM_SEG_HEAD.HEAD_CHANNELS": 16,
    "MODEL.SEM_SEG_HEAD.LOSS_TYPE": "hard_pixel_mining",
    "MODEL.INS_EMBED_HEAD.PROJECT_CHANNELS": [8, 8],
    "MODEL.INS_EMBED_HEAD.ASPP_CHANNELS": 16,
    "MODEL.INS_EMBED_HEAD.HEAD_CHANNELS": 8,
    "MODEL.INS_EMBED_HEAD.CONVS_DIM": 16,
    "MODEL.INS_EMBED_HEAD.NORM": "BN",
    "MODEL.PANOPTIC_DEEPLAB.SIZE_DIVISIBILITY": 128,
    "DATASETS.TRAIN": ("panoptic_of_test_segmentation",),
}


@pytest.fixture
def make(monkeypatch):
    project = import_project(monkeypatch, "panoptic_deeplab")

    def build_model(*changes):
        cfg = get_cfg()
        project.add_panoptic_deeplab_config(cfg)
        return build(shrunk(cfg, DEEPLAB, *changes))

    return build_model


def test_semantic_fpn_stands(tmp_path):
    result = stands(lambda: build(small_zoo_cfg(SEMANTIC, R18)), tmp_path)
    assert result.proof.compared == ("sem_seg",)


@pytest.mark.parametrize("change", [{}, CROP, DEPTHWISE, V3], ids=["v3+", "crop", "depthwise", "v3"])
def test_deeplab_stands(make, change):
    result = d2prune.prune(make(change), 0.45, allocation="uniform", input_size=SIZE)
    assert result.proof.exact and abs(result.reached - 0.45) <= 0.01
    assert [row for row in result.coverage if row.status == "skipped"] == []
    trains(result.model, wide_batch())
    if change is not CROP:  # Detectron2 itself refuses an image that is no multiple of the crop
        runs(result.model)


def wide_batch():
    """Images of one crop each."""
    items = batch()
    for item in items:
        item["image"] = torch.randint(0, 256, (3, 64, 128), dtype=torch.uint8)
        item["sem_seg"] = torch.randint(0, 6, (64, 128))
        item["sem_seg_weights"] = torch.ones(64, 128)
        item["center"], item["center_weights"] = torch.rand(64, 128), torch.ones(64, 128)
        item["offset"], item["offset_weights"] = torch.rand(2, 64, 128), torch.ones(64, 128)
    return items


@pytest.mark.parametrize(
    "change", [{}, {**DEPTHWISE, "MODEL.PANOPTIC_DEEPLAB.USE_DEPTHWISE_SEPARABLE_CONV": True}]
)
def test_panoptic_deeplab_stands(make, change, tmp_path):
    meta = MetadataCatalog.get(PANOPTIC["DATASETS.TRAIN"][0])
    meta.set(thing_dataset_id_to_contiguous_id={1: 1, 2: 2}, label_divisor=1000)
    result = stands(lambda: make(PANOPTIC, change), tmp_path, wide_batch())
    assert result.proof.compared == ("sem_seg", "center", "offset")


def test_pooling_windows_come_back(make):
    model = make(CROP)
    aspp = next(m for m in model.modules() if isinstance(m, ASPP))
    window = aspp.convs[-1][0]
    with pytest.raises(ValueError, match="divisible"), pooled_whole(model):
        assert aspp.pool_kernel_size is None and isinstance(aspp.convs[-1][0], nn.AdaptiveAvgPool2d)
        raise ValueError("divisible")
    assert aspp.convs[-1][0] is window and tuple(aspp.pool_kernel_size) == (4, 8)
