"""MODEL.PRUNING.BUDGET, measured by a trainer's evaluation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from detectron2.config import CfgNode
from detectron2.utils import comm
from torch import nn

from d2prune.engine.config_format import YAML, ConfigFormat
from d2prune.engine.settings import budget_from_cfg
from d2prune.errors import PruneError
from d2prune.pruning.budget import Budget, Left
from d2prune.report.record import average_precision

Test = Callable[[CfgNode, nn.Module], Mapping[str, Any]]


def budget_of(cfg: CfgNode, test: Test, config_format: ConfigFormat = YAML) -> Budget | Left | None:
    """Return the budget that BUDGET names, one in AP measured by ``test``; None for an empty one.

    Raises:
        PruneError: for a BUDGET that is none, and for one in AP with several processes.
    """
    asked = budget_from_cfg(cfg)
    if asked is None or isinstance(asked, Left):
        return asked
    if comm.get_world_size() > 1:
        raise PruneError(
            f"MODEL.PRUNING.BUDGET is {cfg.MODEL.PRUNING.BUDGET!r}, which takes one process, not "
            f"{comm.get_world_size()}: prune with one, then fine-tune with all",
            keys=("MODEL.PRUNING.BUDGET",),
        )
    points, data_set = asked
    judged = config_format.held_out(cfg, data_set)
    return Budget(points, lambda model: average_precision(test(judged, model)))
