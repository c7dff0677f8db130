"""Functions that the lines of patches/ call from inside a fork of Detectron2 or AdelaiDet."""

from __future__ import annotations

import os
from collections.abc import Mapping

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode
from torch import Tensor, nn

from d2prune.adapters import find_adapter
from d2prune.checkpoint import spec_of_file
from d2prune.checkpoint.refusals import check_base, no_spec
from d2prune.engine.finetuning import deciding_checkpoint
from d2prune.engine.settings import check_modes
from d2prune.engine.trainer import as_pruning
from d2prune.errors import PruneError
from d2prune.rebuild import rebuild, spec_of_model


def fit_to_weights(model: nn.Module, cfg: CfgNode) -> None:
    """Resize a freshly built model, in place, to the widths of MODEL.WEIGHTS, if these are pruned.

    The file decides whether the model is pruned; MODEL.FINETUNE only requires that it is. Weights are not
    loaded, no pickled code is run, and nothing is done for files that are not on this machine.

    Raises:
        PruneError: with MODEL.FINETUNE if MODEL.WEIGHTS holds no spec; if its spec is of another model.
    """
    keys = cfg.MODEL.get("PRUNING", CfgNode())
    if spec_of_model(model) is not None or keys.get("BASE") or keys.get("TRUST_STRUCT"):
        return  # done already, or done by META_ARCHITECTURE PrunedModel or by d2prune's trainer
    finetune = cfg.MODEL.get("FINETUNE", False) and not cfg.MODEL.get("PRUNE", False)
    if finetune:
        check_modes(cfg)
    weights = deciding_checkpoint(cfg) if finetune else cfg.MODEL.WEIGHTS
    remote = "://" in weights
    spec = spec_of_file(weights) if finetune and not remote or os.path.isfile(weights) else None
    if spec is not None:
        check_base(weights, spec, model)
        rebuild(model, spec)
    elif finetune and not remote:
        raise no_spec(weights)


def know_pruned_models(checkpointer: DetectionCheckpointer) -> None:
    """Make a checkpointer of any class also a PruningCheckpointer, in place.

    It then writes ``prune_spec`` and ``struct`` of pruned models, and runs no code from files.
    """
    as_pruning(checkpointer, save_struct=True)


def dense_outputs(model: nn.Module, images: Tensor) -> Mapping[str, Tensor]:
    """Return the model's dense outputs by name, before any selection, those of training branches included.

    Args:
        model: of a class that has an adapter.
        images: raw pixels (N, 3, H, W), 0..255; H and W multiples of the backbone's ``size_divisibility``.

    Raises:
        PruneError: if the model's class has no adapter.
    """
    adapter = find_adapter(model)
    if adapter is None:
        raise PruneError(f"no adapter for {type(model).__name__}; expected a model registered with d2prune")
    return adapter.dense(model, images, training_branches=True)
