"""Detectron2's checkpointer, for pruned models: writes the spec and the struct, refuses half loads."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from detectron2.checkpoint import DetectionCheckpointer
from fvcore.common.checkpoint import Checkpointer
from torch import nn

from d2prune.adapters import find_adapter
from d2prune.checkpoint.reader import read_checkpoint, read_pickle
from d2prune.checkpoint.struct import Struct
from d2prune.core.spec import PruneSpec
from d2prune.errors import PruneError
from d2prune.files import whole_file
from d2prune.modeling.basic_block import rename_separate_norms
from d2prune.rebuild import spec_of_model

logger = logging.getLogger(__name__)


class _InertReader(Checkpointer):
    """Sits behind DetectionCheckpointer, whose own rules on file names and queries stay in force."""

    def _load_file(self, f: str) -> dict[str, Any]:
        return read_checkpoint(f)


class PruningCheckpointer(DetectionCheckpointer, _InertReader):
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
            raise PruneError(f"checkpoint '{path}' does not exist; set MODEL.WEIGHTS to a file")
        try:
            return super().load(path, *args, **kwargs)
        finally:
            self._parsed_url_during_load = None  # a failed load must not block the next one

    def _load_file(self, filename: str) -> dict[str, Any]:
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
        _strip_module(weights)
        rename_separate_norms(weights, set(self.model.state_dict()))
        if held is not None:
            _check_same_spec(self._path, PruneSpec.from_dict(held), spec, self.model)
        if held is not None or spec is not None:
            self._convert_ndarray_to_tensor(weights)
            _check_strict(self._path, self.model, weights, has_spec=held is not None)
        return super()._load_model(checkpoint)

    def save(self, name: str, **kwargs: Any) -> None:
        """Writes ``name``.pth to save_dir and names it in ``last_checkpoint``."""
        if not self.save_dir or not self.save_to_disk:
            return
        data = checkpoint_data(self.model, self.save_struct)
        data.update({key: item.state_dict() for key, item in self.checkpointables.items()})
        data.update(kwargs)
        file = Path(self.save_dir) / f"{name}.pth"
        logger.info("Saving checkpoint to %s", file)
        write_checkpoint(data, file)
        self.tag_last_checkpoint(file.name)

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Names the latest checkpoint; an interrupted write leaves the name before."""
        with whole_file(Path(self.save_dir) / "last_checkpoint") as file:
            file.write(last_filename_basename)


def checkpoint_data(model: nn.Module, with_struct: bool) -> dict[str, Any]:
    """``model``, and for a pruned one ``prune_spec`` and ``struct``; each tensor is stored once."""
    data: dict[str, Any] = {"model": model.state_dict()}
    spec = spec_of_model(model)
    if spec is not None:
        data["prune_spec"] = spec.to_dict()
        if with_struct:
            data["struct"] = Struct(model)
    return data


def write_checkpoint(data: dict[str, Any], path: str | os.PathLike[str]) -> None:
    """torch.save, whole or not at all."""
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    with whole_file(path, "wb") as file:
        torch.save(data, file)


def _strip_module(weights: dict[str, Any]) -> None:
    """Names of a model that was saved inside DistributedDataParallel."""
    if weights and all(name.startswith("module.") for name in weights):
        for name in list(weights):
            weights[name.removeprefix("module.")] = weights.pop(name)


def _check_same_spec(path: str, held: PruneSpec, spec: PruneSpec | None, model: nn.Module) -> None:
    name = type(model).__name__
    if spec is None:
        raise PruneError(
            f"'{path}' is a pruned checkpoint (spec version {held.version}, base {held.base}); "
            f"the model to load is an unpruned {name}"
        )
    if held != spec:
        raise PruneError(
            f"'{path}' is a pruned checkpoint (spec version {held.version}, base {held.base}); "
            f"the model to load is a {name} pruned differently"
        )


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
        raise PruneError(
            f"'{path}' holds no pruning spec: prune it first with MODEL.PRUNE True, or train it with "
            "MODEL.FINETUNE False"
        )
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
    return key.startswith(branches) if branches and key.startswith(branches) else key.endswith(
        ".num_batches_tracked"
    )


def _shorten(keys: Iterable[str], most: int = 6) -> str:
    keys = list(keys)
    return ", ".join(keys[:most]) + (f" and {len(keys) - most} more" if len(keys) > most else "")
