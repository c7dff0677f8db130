"""AdelaiDet's configuration keys with AdelaiDet's defaults, so that its YAML files merge.

Only the keys are here; which of them change what d2prune's own FCOS and BlendMask do is said in
`d2prune.modeling`. The nodes of other architectures exist so that files naming them can be read.
"""

from __future__ import annotations

import copy
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

_OTHER_BACKBONES: dict[str, Any] = {
    "BiFPN": {
        "IN_FEATURES": ["res2", "res3", "res4", "res5"],
        "OUT_CHANNELS": 160,
        "NUM_REPEATS": 6,
        "NORM": "",
    },
    "VOVNET": {
        "CONV_BODY": "V-39-eSE",
        "OUT_FEATURES": ["stage2", "stage3", "stage4", "stage5"],
        "NORM": "FrozenBN",
        "OUT_CHANNELS": 256,
        "BACKBONE_OUT_CHANNELS": 256,
    },
    "DLA": {
        "CONV_BODY": "DLA34",
        "OUT_FEATURES": ["stage2", "stage3", "stage4", "stage5"],
        "NORM": "FrozenBN",
    },
}

_CONDINST: dict[str, Any] = {
    "CONDINST": {
        "BOTTOM_PIXELS_REMOVED": -1,
        "MASK_OUT_STRIDE": 4,
        "MAX_PROPOSALS": -1,
        "TOPK_PROPOSALS_PER_IM": -1,
        "MASK_HEAD": {
            "CHANNELS": 8,
            "NUM_LAYERS": 3,
            "USE_FP16": False,
            "DISABLE_REL_COORDS": False,
        },
        "MASK_BRANCH": {
            "OUT_CHANNELS": 8,
            "IN_FEATURES": ["p3", "p4", "p5"],
            "CHANNELS": 128,
            "NORM": "BN",
            "NUM_CONVS": 4,
            "SEMANTIC_LOSS_ON": False,
        },
    },
    "BOXINST": {
        "ENABLED": False,
        "BOTTOM_PIXELS_REMOVED": 10,
        "PAIRWISE": {"SIZE": 3, "DILATION": 2, "WARMUP_ITERS": 10000, "COLOR_THRESH": 0.3},
    },
}

_BATEXT: dict[str, Any] = {
    "VOC_SIZE": 96,
    "NUM_CHARS": 25,
    "POOLER_RESOLUTION": (8, 32),
    "IN_FEATURES": ["p2", "p3", "p4"],
    "POOLER_SCALES": (0.25, 0.125, 0.0625),
    "SAMPLING_RATIO": 1,
    "CONV_DIM": 256,
    "NUM_CONV": 2,
    "RECOGNITION_LOSS": "ctc",
    "RECOGNIZER": "attn",
    "CANONICAL_SIZE": 96,
    "USE_COORDCONV": False,
    "USE_AET": False,
    "EVAL_TYPE": 3,
    "CUSTOM_DICT": "",
}

# MEInst repeats FCOS's keys in its own node, with a few of its own.
_MEINST_SHARED = (
    "NUM_CLASSES IN_FEATURES FPN_STRIDES PRIOR_PROB INFERENCE_TH_TRAIN INFERENCE_TH_TEST NMS_TH "
    "PRE_NMS_TOPK_TRAIN PRE_NMS_TOPK_TEST POST_NMS_TOPK_TRAIN POST_NMS_TOPK_TEST TOP_LEVELS NORM "
    "USE_SCALE THRESH_WITH_CTR LOSS_ALPHA LOSS_GAMMA SIZES_OF_INTEREST USE_RELU USE_DEFORMABLE "
    "NUM_CLS_CONVS NUM_BOX_CONVS NUM_SHARE_CONVS CENTER_SAMPLE POS_RADIUS LOC_LOSS_TYPE"
).split()
_MEINST: dict[str, Any] = {key: _FCOS[key] for key in _MEINST_SHARED} | {
    "MASK_ON": True,
    "MASK_SIZE": 28,
    "DIM_MASK": 60,
    "NUM_MASK_CONVS": 4,
    "AGNOSTIC": True,
    "WHITEN": True,
    "SIGMOID": True,
    "FLAG_PARAMETERS": False,
    "PATH_COMPONENTS": "datasets/coco/components/"
    "coco_2017_train_class_agnosticTrue_whitenTrue_sigmoidTrue_60.npz",
    "LOSS_ON_MASK": False,
    "MASK_LOSS_TYPE": "mse",
    "USE_GCN_IN_MASK": False,
    "GCN_KERNEL_SIZE": 9,
    "LAST_DEFORMABLE": False,
    "TYPE_DEFORMABLE": "DCNv1",
    "IOU_THRESHOLDS": [0.5],
    "IOU_LABELS": [0, 1],
}

_SOLOV2: dict[str, Any] = {
    "NUM_CLASSES": 80,
    "PRIOR_PROB": 0.01,
    "SIGMA": 0.2,
    "NORM": "GN",
    "FPN_INSTANCE_STRIDES": [8, 8, 16, 32, 32],
    "FPN_SCALE_RANGES": ((1, 96), (48, 192), (96, 384), (192, 768), (384, 2048)),
    "NUM_GRIDS": [40, 36, 24, 16, 12],
    "INSTANCE_IN_FEATURES": ["p2", "p3", "p4", "p5", "p6"],
    "INSTANCE_IN_CHANNELS": 256,
    "INSTANCE_CHANNELS": 512,
    "NUM_INSTANCE_CONVS": 4,
    "USE_DCN_IN_INSTANCE": False,
    "TYPE_DCN": "DCN",
    "NUM_KERNELS": 256,
    "USE_COORD_CONV": True,
    "MASK_IN_FEATURES": ["p2", "p3", "p4", "p5"],
    "MASK_IN_CHANNELS": 256,
    "MASK_CHANNELS": 128,
    "NUM_MASKS": 256,
    "NMS_PRE": 500,
    "SCORE_THR": 0.1,
    "UPDATE_THR": 0.05,
    "MASK_THR": 0.5,
    "MAX_PER_IMG": 100,
    "NMS_TYPE": "matrix",
    "NMS_KERNEL": "gaussian",
    "NMS_SIGMA": 2,
    "LOSS": {
        "FOCAL_USE_SIGMOID": True,
        "FOCAL_ALPHA": 0.25,
        "FOCAL_GAMMA": 2.0,
        "FOCAL_WEIGHT": 1.0,
        "DICE_WEIGHT": 3.0,
    },
}

_FCPOSE: dict[str, Any] = {
    "ATTN_LEN": 2737,
    "DYNAMIC_CHANNELS": 32,
    "MAX_PROPOSALS": 70,
    "PROPOSALS_PER_INST": 70,
    "LOSS_WEIGHT_KEYPOINT": 2.5,
    "LOSS_WEIGHT_DIRECTION": 9.0,
    "FOCAL_LOSS_ALPHA": 0.25,
    "FOCAL_LOSS_GAMMA": 2.0,
    "GT_HEATMAP_STRIDE": 2,
    "SIGMA": 1,
    "HEATMAP_SIGMA": 1.8,
    "HEAD_HEATMAP_SIGMA": 0.01,
    "DISTANCE_NORM": 12.0,
    "BASIS_MODULE": {
        "NUM_BASES": 32,
        "CONVS_DIM": 128,
        "COMMON_STRIDE": 8,
        "NUM_CLASSES": 17,
        "LOSS_WEIGHT": 0.2,
        "BN_TYPE": "SyncBN",
    },
}


def add_adet_config(cfg: CfgNode) -> None:
    """Add every AdelaiDet key that `cfg` lacks; keys that are there keep their values."""
    _add_missing(cfg, _GENERAL)
    architectures = {
        "FCOS": _FCOS,
        **_BLENDMASK,
        **_OTHER_BACKBONES,
        **_CONDINST,
        "BATEXT": _BATEXT,
        "MEInst": _MEINST,
        "SOLOV2": _SOLOV2,
        "FCPOSE": _FCPOSE,
    }
    _add_missing(cfg.MODEL, architectures)


def _add_missing(node: CfgNode, defaults: dict[str, Any]) -> None:
    for key, value in defaults.items():
        if key not in node:
            node[key] = CfgNode(value) if isinstance(value, dict) else copy.deepcopy(value)
        elif isinstance(value, dict):
            _add_missing(node[key], value)
