"""Detectors on an LSKNet so small that a test can trace, prune and train one in no time."""

from __future__ import annotations

from pathlib import Path

import torch
from detectron2.modeling import build_model

import d2prune

CONFIGS = Path(__file__).resolve().parents[1] / "configs" / "LSKNet"
SIDE = 64
TINY = {
    "MODEL.LSKNET.EMBED_DIMS": [8, 16, 24, 32],
    "MODEL.LSKNET.DEPTHS": [1, 1, 1, 1],
    "MODEL.LSKNET.MLP_RATIOS": [4, 4, 4, 4],
    "MODEL.LSKNET.NORM": "BN",
    "MODEL.FPN.OUT_CHANNELS": 32,
    "MODEL.ROI_BOX_HEAD.FC_DIM": 32,
    "MODEL.ROI_HEADS.NUM_CLASSES": 3,
    "MODEL.RPN.POST_NMS_TOPK_TEST": 20,
    "INPUT.MIN_SIZE_TRAIN": (SIDE,),
    "INPUT.MAX_SIZE_TRAIN": SIDE,
    "INPUT.MIN_SIZE_TEST": SIDE,
    "INPUT.MAX_SIZE_TEST": SIDE,
    "DATALOADER.NUM_WORKERS": 0,
}


def pairs_of(mapping):
    return [x for pair in mapping.items() for x in pair]


def tiny_lsk_cfg(name="digits_faster_rcnn_lsk", **changes):
    """``changes``: keys under MODEL, with __ for a point."""
    cfg = d2prune.get_cfg()
    cfg.merge_from_file(str(CONFIGS / f"{name}.yaml"))
    cfg.MODEL.DEVICE = str(torch.get_default_device())
    cfg.merge_from_list(pairs_of(TINY))
    cfg.merge_from_list(pairs_of({f"MODEL.{key.replace('__', '.')}": v for key, v in changes.items()}))
    return cfg


def tiny_lsk(cfg=None):
    """A random model in eval mode whose norms and layer scales do something."""
    torch.manual_seed(0)
    model = build_model(cfg or tiny_lsk_cfg())
    with torch.no_grad():
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            if tensor.dim() == 1 and tensor.is_floating_point() and ("norm" in name or "scale" in name):
                tensor.uniform_(0.5, 1.5)
    return model.eval()
