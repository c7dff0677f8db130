"""The configuration: Detectron2's keys, AdelaiDet's, and the pruning keys."""

from __future__ import annotations

import torch
from detectron2.config import CfgNode
from detectron2.config import get_cfg as _detectron2_cfg

from .adet import add_adet_config
from .lsknet import add_lsknet_config
from .prune import add_prune_config
from .reading import read_config

__all__ = ["add_adet_config", "add_lsknet_config", "add_prune_config", "get_cfg", "read_config"]


def get_cfg() -> CfgNode:
    """Return a fresh CfgNode with Detectron2's keys, AdelaiDet's, LSKNet's, and the pruning keys.

    MODEL.DEVICE is Detectron2's default where this machine has such a device, else torch's default;
    set, it is honoured as it is.
    """
    cfg = _detectron2_cfg()
    if not torch.accelerator.is_available():
        cfg.MODEL.DEVICE = str(torch.get_default_device())
    add_adet_config(cfg)
    add_lsknet_config(cfg)
    add_prune_config(cfg)
    # "SGD", or "ADAMW" as in MaskFormer and other Detectron2 projects; read by tools/train_net.py.
    cfg.SOLVER.OPTIMIZER = "SGD"
    return cfg
