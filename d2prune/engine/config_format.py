"""What pruning and fine-tuning need of a configuration besides its settings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetMapper
from detectron2.modeling import build_model
from torch import nn

from d2prune.checkpoint import build_from_cfg, unpruned_cfg
from d2prune.engine import outputs
from d2prune.engine.held_out import with_held_out

Mapper = Callable[[dict[str, Any]], dict[str, Any]]


class ConfigFormat:
    """Detectron2's YAML configs; LazyConfigs are a subclass. Settings come as a CfgNode from both."""

    def write_pruned(self, cfg: CfgNode, folder: str, weights: str) -> str:
        """Write the pruned model's config to ``folder``, and return its path."""
        return outputs.write_pruned_config(cfg, folder, weights)

    def instantiate(self, cfg: CfgNode) -> nn.Module:
        """Return the model of ``cfg``, without weights, on its device."""
        return build_model(cfg)

    def build(self, cfg: CfgNode) -> nn.Module:
        """Return the model with the weights of ``cfg``, pruned or not as these are, in eval mode."""
        return build_from_cfg(unpruned_cfg(cfg), self.instantiate)

    def mapper(self, cfg: CfgNode) -> Mapper:
        """Turn records of DATASETS.TEST into the model's inputs."""
        return DatasetMapper(cfg, is_train=False)

    def held_out(self, cfg: CfgNode, data_set: str) -> CfgNode:
        """Return ``cfg`` with the images to test on that MODEL.PRUNING.BUDGET is measured by."""
        return with_held_out(cfg, data_set)

    def thawed(self, cfg: CfgNode) -> str:
        """Name the keys that fine-tuning ignores where it trains what was frozen, and the one to keep it."""
        norm, freeze_at = cfg.MODEL.RESNETS.NORM, cfg.MODEL.BACKBONE.FREEZE_AT
        return (
            f"RESNETS.NORM {norm}, BACKBONE.FREEZE_AT {freeze_at} are ignored; "
            "MODEL.PRUNING.KEEP_FROZEN True keeps them"
        )

    def next_command(self, weights: str) -> str:
        """Return the command that fine-tunes ``weights``."""
        return outputs.next_command(weights)

    def control_command(self, cfg: CfgNode, baseline: str) -> str:
        """Return the command that trains ``baseline`` for as long, for the report; empty if there is none."""
        return outputs.control_command(cfg, baseline)


YAML = ConfigFormat()
