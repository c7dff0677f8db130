"""The one place that reads MODEL.PRUNING.*: config in, plain values out."""

from __future__ import annotations

import os
import re
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger
from torch import nn

from d2prune.adapters import TraceInput, padded_size
from d2prune.checkpoint.safe_tensors import SUFFIX
from d2prune.core.types import Request
from d2prune.errors import PruneError
from d2prune.pruning.budget import NUMBER, Left, left_of

PRUNED_FILE = "model_pruned.pth"
FINAL_FILE = "model_final.pth"


def to_share(file: str) -> str:
    """Return the path of the safetensors file beside a checkpoint's .pth file."""
    return os.path.splitext(file)[0] + SUFFIX


def request_from_cfg(cfg: CfgNode) -> Request:
    """Read MODEL.PRUNING as a Request.

    Raises:
        PruneError: if RATIOS is not a list of [pattern, fraction].
    """
    keys = cfg.MODEL.PRUNING
    return Request(
        amount=float(keys.AMOUNT),
        target=keys.TARGET,
        criterion=keys.CRITERION,
        allocation=keys.ALLOCATION,
        ratios=tuple(_ratio(row) for row in keys.RATIOS),
        protect=tuple(keys.PROTECT),
        include=tuple(keys.INCLUDE),
        max_ratio=float(keys.MAX_RATIO),
        round_to=keys.ROUND_TO,
        allow_inexact=keys.ALLOW_INEXACT,
    )


def _ratio(row: Any) -> tuple[str, float]:
    try:
        pattern, fraction = row
        return str(pattern), float(fraction)
    except (TypeError, ValueError) as error:
        raise PruneError(
            f"MODEL.PRUNING.RATIOS has the row {row!r}; expected [pattern, fraction of channels]",
            keys=("MODEL.PRUNING.RATIOS",),
        ) from error


def budget_from_cfg(cfg: CfgNode) -> tuple[float, str] | Left | None:
    """Read BUDGET: points of AP and the data set to measure on, which may be empty, or what may be left.

    Returns None without a budget.

    Raises:
        PruneError: if it is not like "0.5 AP", "0.5 AP on NAME", "25 ms", "60 GMACs" or "12 M params".
    """
    text = cfg.MODEL.PRUNING.BUDGET
    if not text:
        return None
    found = re.fullmatch(rf"{NUMBER}AP(?:\s+on\s+(\S+))?\s*", text)
    return left_of(text) if found is None else (float(found[1]), found[2] or "")


def input_size(cfg: CfgNode, model: nn.Module) -> tuple[int, int]:
    """Return (height, width) that MACs are counted on: INPUT_SIZE, or the test size padded as the model does.

    Raises:
        PruneError: if INPUT_SIZE is neither empty nor two positive integers.
    """
    size = tuple(cfg.MODEL.PRUNING.INPUT_SIZE)
    if not size:
        size = (cfg.INPUT.MIN_SIZE_TEST, max(cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST))
    if len(size) != 2 or not all(isinstance(side, int) and side > 0 for side in size):
        raise PruneError(
            f"MODEL.PRUNING.INPUT_SIZE is {size!r}; expected () or (height, width) in pixels",
            keys=("MODEL.PRUNING.INPUT_SIZE",),
        )
    return padded_size(model, (size[0], size[1]))


def trace_input_from_cfg(cfg: CfgNode, model: nn.Module) -> TraceInput:
    """Return what to trace, count and prove on; needs an adapter for the model's class."""
    return TraceInput(model, count_size=input_size(cfg, model))


def check_modes(cfg: CfgNode) -> None:
    """Raise PruneError where PRUNE or FINETUNE lacks what it needs, before anything is built."""
    if cfg.MODEL.PRUNE or cfg.MODEL.FINETUNE:
        _check_data_sets(cfg)
        _check_folder(cfg.OUTPUT_DIR)
    if cfg.MODEL.FINETUNE and cfg.SOLVER.MAX_ITER < 1:
        raise PruneError(
            f"SOLVER.MAX_ITER is {cfg.SOLVER.MAX_ITER}; expected at least 1 iteration of fine-tuning",
            keys=("SOLVER.MAX_ITER",),
        )
    if cfg.MODEL.FINETUNE and cfg.SOLVER.AMP.ENABLED and not torch.cuda.is_available():
        raise PruneError(
            f"SOLVER.AMP.ENABLED is True and MODEL.DEVICE '{cfg.MODEL.DEVICE}'; Detectron2 trains in mixed "
            "precision on CUDA only: set SOLVER.AMP.ENABLED False",
            keys=("SOLVER.AMP.ENABLED", "MODEL.DEVICE"),
        )
    if cfg.MODEL.PRUNE and not cfg.MODEL.WEIGHTS:
        raise PruneError(
            "MODEL.PRUNE needs MODEL.WEIGHTS: the path of the trained checkpoint to prune",
            keys=("MODEL.PRUNE", "MODEL.WEIGHTS"),
        )
    if cfg.MODEL.FINETUNE and not cfg.MODEL.WEIGHTS:
        raise PruneError(
            "MODEL.FINETUNE needs MODEL.WEIGHTS: the path of a pruned checkpoint "
            "(OUTPUT_DIR/model_pruned.pth after MODEL.PRUNE True)",
            keys=("MODEL.FINETUNE", "MODEL.WEIGHTS", "OUTPUT_DIR", "MODEL.PRUNE True"),
        )
    pruned = os.path.abspath(os.path.join(cfg.OUTPUT_DIR, PRUNED_FILE))
    if cfg.MODEL.PRUNE and os.path.abspath(cfg.MODEL.WEIGHTS) in (pruned, to_share(pruned)):
        raise PruneError(
            f"MODEL.WEIGHTS is '{cfg.MODEL.WEIGHTS}', which MODEL.PRUNE would overwrite; "
            "set OUTPUT_DIR to another folder",
            keys=("MODEL.WEIGHTS", "MODEL.PRUNE", "OUTPUT_DIR"),
        )


def _check_data_sets(cfg: CfgNode) -> None:
    known = DatasetCatalog.list()
    for key in ("TRAIN", "TEST"):
        for name in cfg.DATASETS[key]:
            if name not in known:
                raise PruneError(
                    f"DATASETS.{key} names '{name}', which is not registered: --import the module that "
                    "registers it, or correct the name",
                    keys=(f"DATASETS.{key}",),
                )


def _check_folder(folder: str) -> None:
    if "?" in folder:  # Detectron2's checkpointer cuts a path there, as if it were an address
        raise PruneError(
            f"OUTPUT_DIR is '{folder}'; expected a folder without '?' in its name", keys=("OUTPUT_DIR",)
        )


def log_to(cfg: CfgNode) -> None:
    """Send d2prune's log where Detectron2's goes; harmless when called again."""
    setup_logger(cfg.OUTPUT_DIR, comm.get_rank(), name="d2prune", abbrev_name="d2prune")
