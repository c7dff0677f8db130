"""MODEL.PRUNING.BUDGET: what it says."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from detectron2.config import CfgNode
from detectron2.utils import comm
from torch import nn

from d2prune.engine.config_format import YAML, ConfigFormat
from d2prune.errors import PruneError
from d2prune.pruning.budget import Budget
from d2prune.report.record import average_precision

Test = Callable[[CfgNode, nn.Module], Mapping[str, Any]]


def budget_of(cfg: CfgNode, test: Test, config_format: ConfigFormat = YAML) -> Budget | None:
    """Return the budget that BUDGET names, measured by ``test``; None for an empty one.

    Raises:
        PruneError: for a BUDGET that is not like "0.5 AP" or "0.5 AP on NAME", and with several processes.
    """
    text = cfg.MODEL.PRUNING.BUDGET
    if not text:
        return None
    found = re.fullmatch(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*AP(?:\s+on\s+(\S+))?\s*", text)
    if found is None:
        raise PruneError(
            f"MODEL.PRUNING.BUDGET is {text!r}; expected points of AP that may be lost, as '0.5 AP' or "
            "'0.5 AP on NAME', or ''",
            keys=("MODEL.PRUNING.BUDGET",),
        )
    if comm.get_world_size() > 1:
        raise PruneError(
            f"MODEL.PRUNING.BUDGET is {text!r}, which takes one process, not {comm.get_world_size()}: prune "
            "with one, then fine-tune with all",
            keys=("MODEL.PRUNING.BUDGET",),
        )
    judged = config_format.held_out(cfg, found[2] or "")
    return Budget(float(found[1]), lambda model: average_precision(test(judged, model)))
