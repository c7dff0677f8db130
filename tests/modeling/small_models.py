"""Small models and batches for the tests of the architectures."""

from __future__ import annotations

import torch
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Boxes, Instances

import d2prune.modeling  # noqa: F401  registers the architectures
from d2prune.config import get_cfg


def small_cfg(*pairs, arch="BlendMask"):
    """BlendMask on a ResNet-18 of width 8 with everything small, then `pairs`."""
    cfg = get_cfg()
    cfg.MODEL.META_ARCHITECTURE = arch
    cfg.MODEL.DEVICE = str(torch.get_default_device())
    small = {
        "MODEL.BACKBONE.NAME": "build_fcos_narrow_resnet_fpn_backbone",
        "MODEL.RESNETS.DEPTH": 18,
        "MODEL.RESNETS.STEM_OUT_CHANNELS": 8,
        "MODEL.RESNETS.RES2_OUT_CHANNELS": 8,
        "MODEL.RESNETS.NORM": "BN",
        "MODEL.RESNETS.OUT_FEATURES": ["res3", "res4", "res5"],
        "MODEL.FPN.IN_FEATURES": ["res3", "res4", "res5"],
        "MODEL.FPN.OUT_CHANNELS": 32,
        "MODEL.MASK_ON": True,
        "MODEL.PROPOSAL_GENERATOR.NAME": "FCOS",
        "MODEL.PANOPTIC_FPN.COMBINE.ENABLED": False,
        "MODEL.FCOS.NUM_CLASSES": 5,
        "MODEL.FCOS.NUM_CLS_CONVS": 1,
        "MODEL.FCOS.NUM_BOX_CONVS": 1,
        "MODEL.FCOS.THRESH_WITH_CTR": True,
        "MODEL.FCOS.USE_SCALE": False,
        "MODEL.BASIS_MODULE.LOSS_ON": True,
        "MODEL.BASIS_MODULE.NORM": "BN",
        "MODEL.BASIS_MODULE.NUM_CLASSES": 5,
        "MODEL.BASIS_MODULE.CONVS_DIM": 16,
        "MODEL.BASIS_MODULE.NUM_CONVS": 1,
    }
    cfg.merge_from_list([x for pair in small.items() for x in pair])
    cfg.merge_from_list(list(pairs))
    return cfg


PANOPTIC = (
    "MODEL.PANOPTIC_FPN.COMBINE.ENABLED", True,
    "MODEL.RESNETS.OUT_FEATURES", ["res2", "res3", "res4", "res5"],
    "MODEL.FPN.IN_FEATURES", ["res2", "res3", "res4", "res5"],
    "MODEL.SEM_SEG_HEAD.NUM_CLASSES", 3,
    "MODEL.SEM_SEG_HEAD.CONVS_DIM", 32,
)  # fmt: skip
RT = (
    "MODEL.FCOS.TOP_LEVELS", 0,
    "MODEL.FCOS.IN_FEATURES", ["p3", "p4", "p5"],
    "MODEL.FCOS.FPN_STRIDES", [8, 16, 32],
    "MODEL.FCOS.SIZES_OF_INTEREST", [64, 128],
    "MODEL.FCOS.NUM_SHARE_CONVS", 2,
    "MODEL.FCOS.NUM_CLS_CONVS", 0,
    "MODEL.FCOS.NUM_BOX_CONVS", 0,
)  # fmt: skip
LEVELS_550 = (
    "MODEL.FCOS.TOP_LEVELS", 1,
    "MODEL.FCOS.IN_FEATURES", ["p3", "p4", "p5", "p6"],
    "MODEL.FCOS.FPN_STRIDES", [8, 16, 32, 64],
    "MODEL.FCOS.SIZES_OF_INTEREST", [64, 128, 256],
    "MODEL.FCOS.NUM_SHARE_CONVS", 2,
    "MODEL.FCOS.NUM_CLS_CONVS", 0,
    "MODEL.FCOS.NUM_BOX_CONVS", 0,
)  # fmt: skip


def instances(boxes, classes, size=(96, 128)):
    """Rectangular instances; bit masks fill the boxes."""
    gt = Instances(size)
    gt.gt_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
    gt.gt_classes = torch.tensor(classes, dtype=torch.long)
    masks = torch.zeros(len(classes), *size, dtype=torch.bool)
    for mask, (x0, y0, x1, y1) in zip(masks, gt.gt_boxes.tensor.int().tolist(), strict=True):
        mask[y0:y1, x0:x1] = True
    gt.gt_masks = BitMasks(masks)
    return gt


def training_batch(empty=()):
    """Two images, with two and one instances; those in `empty` have none, not even masks."""
    found = [
        instances([[10, 12, 60, 70], [50, 20, 120, 90]], [1, 4]),
        instances([[20, 8, 52, 64]], [0], size=(80, 112)),
    ]
    for index in empty:
        gt = Instances(found[index].image_size)
        gt.gt_boxes, gt.gt_classes = Boxes(torch.zeros(0, 4)), torch.zeros(0, dtype=torch.long)
        found[index] = gt
    return [
        {"image": torch.randint(0, 256, (3, *gt.image_size), dtype=torch.uint8), "instances": gt}
        for gt in found
    ]


def eager(model):
    """Give the predictors of a fresh model something to find, whatever the image."""
    head = model.proposal_generator.fcos_head
    with torch.no_grad():
        head.cls_logits.bias.fill_(0.0)
        head.cls_logits.weight.normal_(std=0.3)
        head.bbox_pred.bias.fill_(2.0)
    return model


def build(*pairs, arch="BlendMask"):
    return build_model(small_cfg(*pairs, arch=arch))


def backward(model, batch):
    losses = model.train()(batch)
    model.zero_grad(set_to_none=True)
    sum(losses.values()).backward()
    return losses
