"""Detectron2's checkpointer for pruned models, which stores spec and module and refuses partial loads."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

from detectron2.checkpoint import DetectionCheckpointer
from fvcore.common.checkpoint import Checkpointer

from d2prune.checkpoint.fitting import fit, may_differ, training_branches
from d2prune.checkpoint.reader import read_checkpoint, read_pickle
from d2prune.checkpoint.refusals import missing
from d2prune.checkpoint.writer import additions, write_checkpoint
from d2prune.errors import PruneError
from d2prune.files import atomic_write

logger = logging.getLogger(__name__)


class _InertFiles(Checkpointer):
    """The base class behind DetectionCheckpointer that reads and writes files by d2prune's own functions."""

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
        """Write the latest checkpoint's name; an interrupted write leaves the earlier name."""
        with atomic_write(Path(self.save_dir) / "last_checkpoint") as file:
            file.write(last_filename_basename)


class PruningCheckpointer(DetectionCheckpointer, _InertFiles):
    """A DetectionCheckpointer for pruned models.

    Saving a pruned model adds ``prune_spec`` and (unless :attr:`save_struct` is False) ``struct``.
    After a load :attr:`unfilled` names the model's weights that the file lacks, or has in another shape.
    Files are written whole or not at all. Loading runs no pickled code; a pruned checkpoint loads
    strictly, and only into a model with its spec.
    """

    save_struct = True
    unfilled: tuple[str, ...] = ()

    def load(self, path: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Load as DetectionCheckpointer does.

        Raises:
            PruneError: if the file is missing or damaged, if only one of file and model is pruned, or if
                they are pruned differently. The model is not changed then.
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
        fit(self._path, self.model, checkpoint)
        incompatible = super()._load_model(checkpoint)
        branches = training_branches(self.model)
        lacking = dict.fromkeys(
            [*incompatible.missing_keys, *(row[0] for row in incompatible.incorrect_shapes)]
        )
        self.unfilled = tuple(name for name in lacking if not may_differ(name, branches))
        return incompatible

    def save(self, name: str, **kwargs: Any) -> None:
        """Write ``name``.pth to ``save_dir``, and its name to ``last_checkpoint``."""
        with_struct = self.save_struct and self.save_to_disk
        super().save(name, **additions(self.model, with_struct), **kwargs)


def _of_pycls(path: str) -> dict[str, Any]:
    """Read a backbone's checkpoint of pycls, with which RegNets were trained."""
    weights = read_checkpoint(path)["model"].get("model_state")
    if not isinstance(weights, dict):
        raise PruneError(f"'{path}' holds no 'model_state'; expected a checkpoint of pycls")
    weights = {k: v for k, v in weights.items() if not str(k).endswith("num_batches_tracked")}
    return {"model": weights, "__author__": "pycls", "matching_heuristics": True}
