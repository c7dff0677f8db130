"""Detectron2's checkpointer, for pruned models: writes the spec and the struct, refuses half loads."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.checkpoint import DetectionCheckpointer
from fvcore.common.checkpoint import Checkpointer
from torch import nn

from d2prune.adapters import find_adapter
from d2prune.checkpoint.reader import kind_of, read_checkpoint, read_pickle
from d2prune.checkpoint.refusals import missing, no_spec, other_model
from d2prune.checkpoint.struct import UNPICKLABLE, Struct
from d2prune.core.cut.spec import PruneSpec
from d2prune.errors import PruneError
from d2prune.files import atomic_write
from d2prune.modeling.basic_block import rename_separate_norms
from d2prune.rebuild import spec_of_model

logger = logging.getLogger(__name__)


class _InertFiles(Checkpointer):
    """Sits behind DetectionCheckpointer and its subclasses, whose own rules stay in force."""

    def _load_file(self, f: str) -> dict[str, Any]:
        return read_checkpoint(f)

    def save(self, name: str, **kwargs: Any) -> None:
        if not self.save_dir or not self.save_to_disk:
            return
        data = {"model": self.model.state_dict()}
        data.update({key: item.state_dict() for key, item in self.checkpointables.items()})
        file = Path(self.save_dir) / f"{name}.pth"
        logger.info("Saving checkpoint to %s", file)
        write_checkpoint({**data, **kwargs}, file)
        self.tag_last_checkpoint(file.name)

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Names the latest checkpoint; an interrupted write leaves the name before."""
        with atomic_write(Path(self.save_dir) / "last_checkpoint") as file:
            file.write(last_filename_basename)


class PruningCheckpointer(DetectionCheckpointer, _InertFiles):
    """A DetectionCheckpointer that knows pruned models.

    Saving a pruned model adds ``prune_spec`` and (unless :attr:`save_struct` is False) ``struct``.
    Files are written whole or not at all. Loading runs no pickled code; a pruned checkpoint loads
    strictly, and only into a model of its spec.
    """

    save_struct = True

    def load(self, path: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Loads as DetectionCheckpointer does.

        Raises:
            PruneError: if the file is missing or damaged, if one of file and model is pruned and the
                other is not, or if they are pruned differently. The model is then unchanged.
        """
        self._path = path
        if path and "://" not in path and not os.path.isfile(path.partition("?")[0]):
            raise missing(path)
        try:
            return super().load(path, *args, **kwargs)
        finally:
            self._parsed_url_during_load = None  # a failed load must not block the next one

    def _load_file(self, filename: str) -> dict[str, Any]:
        if filename.endswith(".pyth"):
            return _of_pycls(filename)
        if not filename.endswith(".pkl"):
            return super()._load_file(filename)
        data = read_pickle(filename)
        if "model" in data and "__author__" in data:
            return data
        blobs = data.get("blobs", data)
        weights = {k: v for k, v in blobs.items() if not k.endswith("_momentum")}
        return {"model": weights, "__author__": "Caffe2", "matching_heuristics": True}

    def _load_model(self, checkpoint: Any) -> Any:
        weights, spec = checkpoint["model"], spec_of_model(self.model)
        held = checkpoint.get("prune_spec")
        _check_tensors(self._path, weights)
        _strip_module(weights)
        wanted = set(self.model.state_dict())
        rename_separate_norms(weights, wanted)
        _rename_old(weights, wanted, self.model)
        if held is not None:
            _check_same_spec(self._path, PruneSpec.from_dict(held), spec, self.model)
        if held is not None or spec is not None:
            self._convert_ndarray_to_tensor(weights)
            _check_strict(self._path, self.model, weights, has_spec=held is not None)
        return super()._load_model(checkpoint)

    def save(self, name: str, **kwargs: Any) -> None:
        """Writes ``name``.pth to save_dir and names it in ``last_checkpoint``."""
        with_struct = self.save_struct and self.save_to_disk
        super().save(name, **_additions(self.model, with_struct), **kwargs)


def _of_pycls(path: str) -> dict[str, Any]:
    """A backbone's checkpoint of pycls, which RegNets were trained with."""
    weights = read_checkpoint(path)["model"].get("model_state")
    if not isinstance(weights, dict):
        raise PruneError(f"'{path}' holds no 'model_state'; expected a checkpoint of pycls")
    weights = {k: v for k, v in weights.items() if not str(k).endswith("num_batches_tracked")}
    return {"model": weights, "__author__": "pycls", "matching_heuristics": True}


def checkpoint_data(model: nn.Module, with_struct: bool) -> dict[str, Any]:
    """``model``, and for a pruned one ``prune_spec`` and ``struct``; each tensor is stored once."""
    return {"model": model.state_dict(), **_additions(model, with_struct)}


def _additions(model: nn.Module, with_struct: bool) -> dict[str, Any]:
    spec = spec_of_model(model)
    data: dict[str, Any] = {} if spec is None else {"prune_spec": spec.to_dict()}
    if with_struct and (spec is not None or getattr(model, "from_struct", False)):
        try:
            data["struct"] = Struct(model)
        except UNPICKLABLE as error:  # a lock, say: hours of training must not be lost for it
            logger.warning(
                "the checkpoint has no 'struct', the whole module: it can't be pickled (%s); "
                "MODEL.PRUNING.SAVE_STRUCT False does without",
                error,
            )
    return data


def write_checkpoint(data: dict[str, Any], path: str | os.PathLike[str]) -> None:
    """torch.save, whole or not at all."""
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    with atomic_write(path, "wb") as file:
        torch.save(data, file)


def _check_tensors(path: str, weights: Any) -> None:
    entries = weights.items() if isinstance(weights, dict) else [("model", weights)]
    for key, value in entries:
        if not isinstance(key, str) or not isinstance(value, (torch.Tensor, np.ndarray)):
            raise PruneError(
                f"'{path}' holds no weights under 'model': expected a tensor by each name; the first "
                f"other entry: {key!r} ({kind_of(value)})"
            )


def _strip_module(weights: dict[str, Any]) -> None:
    """Names of a model that was saved inside DistributedDataParallel."""
    if weights and all(name.startswith("module.") for name in weights):
        for name in list(weights):
            weights[name.removeprefix("module.")] = weights.pop(name)


def _rename_old(weights: dict[str, Any], wanted: set[str], model: nn.Module) -> None:
    """Names that published checkpoints of an architecture still have."""
    adapter = find_adapter(model)
    for old, new in adapter.old_names.items() if adapter is not None else ():
        for name in [n for n in weights if old in n and n not in wanted]:
            if name.replace(old, new) in wanted:
                weights[name.replace(old, new)] = weights.pop(name)


def _check_same_spec(path: str, held: PruneSpec, spec: PruneSpec | None, model: nn.Module) -> None:
    if held != spec:
        how = "an unpruned {}" if spec is None else "a {} pruned differently"
        raise other_model(path, held, model, how)


def _check_strict(path: str, model: nn.Module, weights: dict[str, Any], has_spec: bool) -> None:
    """Refuses before anything is loaded; says which keys a training switch added or dropped."""
    own = model.state_dict()
    adapter = find_adapter(model)
    branches = tuple(f"{b}." for b in adapter.training_only(model)) if adapter is not None else ()
    added = [k for k in own if k not in weights]
    dropped = [k for k in weights if k not in own]
    wrong = [k for k in own if k in weights and own[k].shape != weights[k].shape]
    wrong += [k for k in (*added, *dropped) if not _tolerated(k, branches)]
    if wrong and not has_spec:
        raise no_spec(path)
    if wrong:
        raise PruneError(
            f"'{path}' does not fit the pruned {type(model).__name__}: {len(wrong)} keys are missing, "
            f"unknown or of another shape; the first: {wrong[0]}"
        )
    for keys, what in ((added, "added, with fresh values"), (dropped, "dropped")):
        if keys:
            logger.info("'%s': %d keys %s: %s", path, len(keys), what, _shorten(keys))
        for key in keys if what == "dropped" else ():
            del weights[key]


def _tolerated(key: str, branches: tuple[str, ...]) -> bool:
    """Training-only branches, and the counter that a BatchNorm has and a FrozenBatchNorm2d has not."""
    return key.startswith(branches) or key.endswith(".num_batches_tracked")


def _shorten(keys: Iterable[str], most: int = 6) -> str:
    keys = list(keys)
    return ", ".join(keys[:most]) + (f" and {len(keys) - most} more" if len(keys) > most else "")
