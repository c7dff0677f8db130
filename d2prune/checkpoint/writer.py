"""Writing a model to a checkpoint: its weights, and for a pruned model the spec and the whole module."""

from __future__ import annotations

import logging
import os
from typing import Any

import torch
from torch import nn

from d2prune.checkpoint.safe_tensors import is_safetensors, write_safetensors
from d2prune.checkpoint.struct import UNPICKLABLE, Struct
from d2prune.files import atomic_write
from d2prune.rebuild import spec_of_model

logger = logging.getLogger(__name__)

FROM_STRUCT = "from_struct"  # the attribute of a module that no config builds: only its file holds it


def checkpoint_data(model: nn.Module, with_struct: bool) -> dict[str, Any]:
    """Return ``model``, and for a pruned one ``prune_spec`` and ``struct``; each tensor is stored once."""
    return {"model": model.state_dict(), **additions(model, with_struct)}


def additions(model: nn.Module, with_struct: bool) -> dict[str, Any]:
    """Return the further entries of a pruned model's checkpoint: ``prune_spec`` and ``struct``."""
    spec = spec_of_model(model)
    data: dict[str, Any] = {} if spec is None else {"prune_spec": spec.to_dict()}
    if with_struct and (spec is not None or getattr(model, FROM_STRUCT, False)):
        try:
            data["struct"] = Struct(model)
        except UNPICKLABLE as error:  # a lock, say: hours of training must not be lost for it
            logger.warning(
                "the checkpoint has no 'struct', the whole module: it can't be pickled (%s); "
                "MODEL.PRUNING.SAVE_STRUCT False does without",
                error,
            )
    return data


def write_model(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Write a model: to a path that ends with .safetensors weights and spec, else ``struct``, too."""
    if not is_safetensors(path):
        write_checkpoint(checkpoint_data(model, with_struct=True), path)
        return
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    data = checkpoint_data(model, with_struct=False)
    write_safetensors(data["model"], data.get("prune_spec"), path)


def write_checkpoint(data: dict[str, Any], path: str | os.PathLike[str]) -> None:
    """Write ``data`` by ``torch.save``, whole or not at all."""
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    with atomic_write(path, "wb") as file:
        torch.save(data, file)
