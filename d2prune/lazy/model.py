"""A pruned model as a LazyConfig describes it: the class that was pruned, its arguments, and the spec."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from detectron2.utils.registry import locate
from omegaconf import DictConfig
from torch import nn

from d2prune.checkpoint.pruned_model import read_spec_file
from d2prune.rebuild import rebuild


def pruned_model(prune_base: str | Callable[..., nn.Module], prune_spec: str, **arguments: Any) -> nn.Module:
    """Build what was pruned, at its spec's widths: the ``_target_`` of ``model`` in a pruned LazyConfig.

    The other keys of ``model`` stay where they were, so that overrides and interpolations still hold.

    Args:
        prune_base: what was the target before, or its dotted path.
        prune_spec: path of pruning_spec.json.
        arguments: the base's.
    """
    base = locate(prune_base) if isinstance(prune_base, str) else prune_base
    return rebuild(base(**arguments), read_spec_file(prune_spec, "model.prune_spec"))


TARGET = f"{__name__}.{pruned_model.__name__}"


def as_pruned(config: DictConfig, spec: str, weights: str) -> DictConfig:
    """Return a copy of ``config`` that describes the pruned model, and neither prunes nor fine-tunes.

    Args:
        config: of the unpruned model, or of one pruned before.
        spec: path of pruning_spec.json.
        weights: path of the pruned checkpoint.
    """
    out = copy.deepcopy(config)
    if "prune_base" not in out.model:
        out.model.prune_base, out.model._target_ = out.model._target_, TARGET
    out.model.prune_spec, out.train.init_checkpoint = spec, weights
    if "prune" in out:
        out.prune.enabled = out.prune.finetune = False
    return out


def as_unpruned(config: DictConfig) -> DictConfig:
    """Return a copy of ``config.model`` that builds the unpruned model."""
    out = copy.deepcopy(config).model
    if "prune_base" in out:
        out._target_ = out.pop("prune_base")
        del out.prune_spec
    return out
