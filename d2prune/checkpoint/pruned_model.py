"""Building the model that a config and its weights describe, pruned or not."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.modeling import build_model as detectron2_build
from detectron2.utils.file_io import PathManager
from torch import nn

from d2prune.checkpoint.checkpointer import PruningCheckpointer
from d2prune.checkpoint.reader import read_spec
from d2prune.checkpoint.refusals import check_base
from d2prune.checkpoint.writer import FROM_STRUCT
from d2prune.config import get_cfg
from d2prune.config.merging import merge_file
from d2prune.core.cut.spec import PruneSpec
from d2prune.errors import PruneError
from d2prune.rebuild import rebuild, spec_of_model

logger = logging.getLogger(__name__)
CONFIG_FILE = "pruned.yaml"


@META_ARCH_REGISTRY.register()
def PrunedModel(cfg: CfgNode) -> nn.Module:  # noqa: N802  (the registry takes the function's name)
    """Build MODEL.PRUNING.BASE and resize it by MODEL.PRUNING.SPEC: META_ARCHITECTURE "PrunedModel".

    With it, Detectron2's own build_model, DefaultPredictor and tools work on a pruned model; class
    and state-dict keys are the base model's. For a config that has only Detectron2's own keys
    (pruned_stock.yaml), the model's other keys are read from the pruned.yaml beside MODEL.WEIGHTS.

    Raises:
        PruneError: if BASE is unknown, no spec is found, or that pruned.yaml holds more than plain values.
    """
    keys = cfg.MODEL.get("PRUNING")
    if keys is None or not (keys.BASE or keys.SPEC):  # a patched fork's own config has the keys, empty
        cfg = _whole_config(cfg)
    base = cfg.MODEL.PRUNING.BASE
    if base not in META_ARCH_REGISTRY or base == "PrunedModel":
        raise PruneError(f"MODEL.PRUNING.BASE is {base!r}; expected the META_ARCHITECTURE that was pruned")
    spec = _spec_of_cfg(cfg)
    inner = cfg.clone()
    inner.defrost()
    inner.MODEL.META_ARCHITECTURE = base
    return rebuild(META_ARCH_REGISTRY.get(base)(inner), spec)


def _whole_config(stock: CfgNode) -> CfgNode:
    file = os.path.join(os.path.dirname(stock.MODEL.WEIGHTS), CONFIG_FILE)
    if not os.path.isfile(file):
        raise PruneError(
            f"META_ARCHITECTURE PrunedModel without the keys MODEL.PRUNING needs '{file}', beside "
            f"MODEL.WEIGHTS '{stock.MODEL.WEIGHTS}'; or start from d2prune.get_cfg()"
        )
    cfg = get_cfg()
    merge_file(cfg, file)  # files that come with weights are not trusted as one's own are
    cfg.MODEL.WEIGHTS, cfg.MODEL.DEVICE = stock.MODEL.WEIGHTS, stock.MODEL.DEVICE
    return cfg


def _spec_of_cfg(cfg: CfgNode) -> PruneSpec:
    path = cfg.MODEL.PRUNING.SPEC
    if not path:
        spec = spec_of_file(cfg.MODEL.WEIGHTS)
        if spec is None:
            raise PruneError(
                "META_ARCHITECTURE PrunedModel needs MODEL.PRUNING.SPEC, the path of "
                "pruning_spec.json, or MODEL.WEIGHTS, a pruned checkpoint"
            )
        return spec
    return read_spec_file(path, "MODEL.PRUNING.SPEC")


def read_spec_file(path: str, key: str) -> PruneSpec:
    """Read the spec in a pruning_spec.json.

    Raises:
        PruneError: naming ``key``, whose value ``path`` is, if there is no such file or it holds no spec.
    """
    if not os.path.isfile(path):
        raise PruneError(f"{key} '{path}' does not exist; expected pruning_spec.json")
    try:
        return PruneSpec.from_json(Path(path).read_text(encoding="utf-8"))
    except (PruneError, UnicodeDecodeError) as error:
        raise PruneError(f"{key} '{path}': {error}") from error


def spec_of_file(path: str) -> PruneSpec | None:
    """Read the spec in a checkpoint, downloaded first if remote; return None for no path or no spec.

    Raises:
        PruneError: if the file does not exist or is damaged.
    """
    if not path:
        return None
    local = path.partition("?")[0]
    if "://" in local and not local.startswith("file://"):
        local = PathManager.get_local_path(local)
    return read_spec(local)


def build_model(
    cfg: CfgNode,
    weights: str | None = None,
    build: Callable[[CfgNode], nn.Module] = detectron2_build,
) -> nn.Module:
    """Build the model of ``cfg``, resized if the weights are pruned ones. Weights are not loaded.

    Args:
        cfg: any config; no key needs to say that the weights are pruned: the file decides.
        weights: the file that decides; default MODEL.WEIGHTS.
        build: how the unpruned model is built (a trainer's own build_model).
    """
    weights = cfg.MODEL.WEIGHTS if weights is None else weights
    spec = spec_of_file(weights)
    if cfg.MODEL.PRUNING.TRUST_STRUCT and (struct := trusted_struct(weights)) is not None:
        return struct.to(torch.device(cfg.MODEL.DEVICE))
    model = build(cfg)
    if spec is not None and spec_of_model(model) is None:
        check_base(weights, spec, model)
        rebuild(model, spec)
    return model


def unpruned_cfg(cfg: CfgNode) -> CfgNode:
    """Return ``cfg`` with PrunedModel replaced by its base, for weights that SPEC does not fit."""
    if not cfg.MODEL.PRUNING.BASE:
        return cfg
    out = cfg.clone()
    out.defrost()
    out.MODEL.META_ARCHITECTURE, out.MODEL.PRUNING.BASE = cfg.MODEL.PRUNING.BASE, ""
    return out


def trusted_struct(path: str) -> nn.Module | None:
    """Unpickle and return the module under "struct" in a checkpoint: this RUNS CODE from the file.

    It is for MODEL.PRUNING.TRUST_STRUCT only, to open the files of forks that save nothing else. The
    result is None if the file holds no module.
    """
    if not path.endswith(".pth"):
        return None
    struct = torch.load(path, map_location="cpu", weights_only=False).get("struct")
    if not isinstance(struct, nn.Module):
        return None
    logger.warning("TRUST_STRUCT: unpickled the %s in '%s'", type(struct).__name__, path)
    setattr(struct, FROM_STRUCT, True)  # checkpoints of it must hold it again
    return struct


def build_from_cfg(cfg: CfgNode, build: Callable[[CfgNode], nn.Module] = detectron2_build) -> nn.Module:
    """Build the model of ``cfg``, pruned or not, with MODEL.WEIGHTS loaded, in eval mode."""
    model = build_model(cfg, build=build)
    PruningCheckpointer(model).load(cfg.MODEL.WEIGHTS)
    return model.eval()
