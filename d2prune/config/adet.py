"""AdelaiDet's configuration keys with AdelaiDet's defaults, so that its YAML files merge.

Only the keys are here; which of them change what d2prune's own FCOS and BlendMask do is said in
``d2prune.modeling``. The nodes of other architectures exist so that files naming them can be read;
their defaults are in ``adet_others.json``.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode

_GENERAL: dict[str, Any] = {
    "INPUT": {
        "HFLIP_TRAIN": True,
        "IS_ROTATE": False,
        "CROP": {"CROP_INSTANCE": True},
    },
    "MODEL": {
        "MOBILENET": False,
        "FCPOSE_ON": False,
        "BACKBONE": {"ANTI_ALIAS": False},
        "RESNETS": {"DEFORM_INTERVAL": 1},
        "TOP_MODULE": {"NAME": "conv", "DIM": 16},
    },
}

_FCOS: dict[str, Any] = {
    "NUM_CLASSES": 80,
    "IN_FEATURES": ["p3", "p4", "p5", "p6", "p7"],
    "FPN_STRIDES": [8, 16, 32, 64, 128],
    "PRIOR_PROB": 0.01,
    "INFERENCE_TH_TRAIN": 0.05,
    "INFERENCE_TH_TEST": 0.05,
    "NMS_TH": 0.6,  # <= 0: no NMS
    "PRE_NMS_TOPK_TRAIN": 1000,  # per image and level
    "PRE_NMS_TOPK_TEST": 1000,
    "POST_NMS_TOPK_TRAIN": 100,  # per image
    "POST_NMS_TOPK_TEST": 100,
    "TOP_LEVELS": 2,  # 2: p6 and p7, 1: p6, 0: none
    "NORM": "GN",  # GN, NaiveGN, BN, SyncBN, none
    "USE_SCALE": True,
    "BOX_QUALITY": "ctrness",  # ctrness, iou
    "THRESH_WITH_CTR": False,
    "LOSS_ALPHA": 0.25,
    "LOSS_GAMMA": 2.0,
    "LOSS_NORMALIZER_CLS": "fg",  # fg, moving_fg, all
    "LOSS_WEIGHT_CLS": 1.0,
    "SIZES_OF_INTEREST": [64, 128, 256, 512],  # pixels; one fewer than levels
    "USE_RELU": True,  # AdelaiDet never reads it: the regression always goes through a relu
    "USE_DEFORMABLE": False,
    "NUM_CLS_CONVS": 4,
    "NUM_BOX_CONVS": 4,
    "NUM_SHARE_CONVS": 0,
    "CENTER_SAMPLE": True,
    "POS_RADIUS": 1.5,  # in strides
    "LOC_LOSS_TYPE": "giou",  # iou, linear_iou, giou
    "YIELD_PROPOSAL": False,
    "YIELD_BOX_FEATURES": False,
}

_BLENDMASK: dict[str, Any] = {
    "BLENDMASK": {
        "ATTN_SIZE": 14,
        "TOP_INTERP": "bilinear",
        "BOTTOM_RESOLUTION": 56,
        "POOLER_TYPE": "ROIAlignV2",
        "POOLER_SAMPLING_RATIO": 1,
        "POOLER_SCALES": (0.25,),
        "INSTANCE_LOSS_WEIGHT": 1.0,
        "VISUALIZE": False,
    },
    "BASIS_MODULE": {
        "NAME": "ProtoNet",
        "NUM_BASES": 4,
        "LOSS_ON": False,
        "ANN_SET": "coco",
        "CONVS_DIM": 128,
        "IN_FEATURES": ["p3", "p4", "p5"],
        "NORM": "SyncBN",
        "NUM_CONVS": 3,
        "COMMON_STRIDE": 8,
        "NUM_CLASSES": 80,
        "LOSS_WEIGHT": 0.3,
    },
}

# MEInst repeats FCOS's keys in its own node, with a few of its own.
_MEINST_SHARED = (
    "NUM_CLASSES IN_FEATURES FPN_STRIDES PRIOR_PROB INFERENCE_TH_TRAIN INFERENCE_TH_TEST NMS_TH "
    "PRE_NMS_TOPK_TRAIN PRE_NMS_TOPK_TEST POST_NMS_TOPK_TRAIN POST_NMS_TOPK_TEST TOP_LEVELS NORM "
    "USE_SCALE THRESH_WITH_CTR LOSS_ALPHA LOSS_GAMMA SIZES_OF_INTEREST USE_RELU USE_DEFORMABLE "
    "NUM_CLS_CONVS NUM_BOX_CONVS NUM_SHARE_CONVS CENTER_SAMPLE POS_RADIUS LOC_LOSS_TYPE"
).split()


def add_adet_config(cfg: CfgNode) -> None:
    """Add every AdelaiDet key that ``cfg`` lacks; keys that are there keep their values."""
    _add_missing(cfg, _GENERAL)
    others = json.loads(Path(__file__).with_name("adet_others.json").read_text(encoding="utf-8"))
    others["MEInst"] = {key: _FCOS[key] for key in _MEINST_SHARED} | others["MEInst"]
    _add_missing(cfg.MODEL, {"FCOS": _FCOS, **_BLENDMASK, **others})


def _add_missing(node: CfgNode, defaults: dict[str, Any]) -> None:
    for key, value in defaults.items():
        if key not in node:
            node[key] = CfgNode(value) if isinstance(value, dict) else copy.deepcopy(value)
        elif isinstance(value, dict):
            _add_missing(node[key], value)
