"""The optimizers of tools/train_net.py."""

from __future__ import annotations

import torch
from detectron2.config import CfgNode
from detectron2.solver import build_optimizer as build_sgd
from detectron2.solver import get_default_optimizer_params
from detectron2.solver.build import maybe_add_gradient_clipping
from torch import nn

from d2prune.errors import PruneError


def build_optimizer(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    """Build Detectron2's SGD, or AdamW with the same per-parameter settings, by SOLVER.OPTIMIZER.

    Raises:
        PruneError: for any other name.
    """
    name = cfg.SOLVER.OPTIMIZER.upper()
    if name == "SGD":
        return build_sgd(cfg, model)
    if name != "ADAMW":
        raise PruneError(f"SOLVER.OPTIMIZER is {cfg.SOLVER.OPTIMIZER!r}; expected one of: SGD, ADAMW")
    groups = get_default_optimizer_params(
        model,
        base_lr=cfg.SOLVER.BASE_LR,
        weight_decay=cfg.SOLVER.WEIGHT_DECAY,
        weight_decay_norm=cfg.SOLVER.WEIGHT_DECAY_NORM,
        weight_decay_bias=cfg.SOLVER.WEIGHT_DECAY_BIAS,
        bias_lr_factor=cfg.SOLVER.BIAS_LR_FACTOR,
    )
    return maybe_add_gradient_clipping(cfg, torch.optim.AdamW)(groups, lr=cfg.SOLVER.BASE_LR, fused=True)
