"""Detectron2's checkpointer for pruned models, which stores spec and module and refuses partial loads."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

from detectron2.checkpoint import DetectionCheckpointer
from fvcore.common.checkpoint import Checkpointer
from torch import nn

from d2prune.checkpoint.fitting import fit, unfilled
from d2prune.checkpoint.reader import read_checkpoint, read_pickle
from d2prune.checkpoint.refusals import missing
from d2prune.checkpoint.values import check_kinds, first_not_finite
from d2prune.checkpoint.writer import additions, write_checkpoint
from d2prune.errors import PruneError
from d2prune.files import atomic_write

logger = logging.getLogger(__name__)


class _InertFiles(Checkpointer):
    """The base class behind DetectionCheckpointer that reads and writes files by d2prune's own functions."""

    _path = ""  # of the file that is being loaded

    def _load_file(self, f: str) -> dict[str, Any]:
        return read_checkpoint(f)

    def _load_model(self, checkpoint: Any) -> Any:
        """Load weights that have the model's names by now; of a pruned file they are checked already."""
        weights = checkpoint["model"]
        self._convert_ndarray_to_tensor(weights)
        if "prune_spec" not in checkpoint:
            check_kinds(self._path, self.model.state_dict(), weights)
            name = first_not_finite(self.model, weights)
            if name is not None:
                logger.warning("'%s' holds NaN or infinity in '%s'", self._path, name)
        return super()._load_model(checkpoint)

    def save(self, name: str, **kwargs: Any) -> None:
        if not self.save_dir or not self.save_to_disk:
            return
        _refuse_diverged(self.model, f"{name}.pth")
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
    Files are written whole or not at all. Loading runs no pickled code; a pruned checkpoint loads
    strictly, and only into a model with its spec.

    Attributes:
        save_struct: whether a pruned model's file gets ``struct``.
        unfilled: after :meth:`load`, the names in the model's state dict that the file did not fill: it
            lacks them, or has them in another shape. What only training needs or counts is left out.
    """

    save_struct = True
    unfilled: tuple[str, ...] = ()

    def load(self, path: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Load as DetectionCheckpointer does.

        Raises:
            PruneError: if the file is missing or damaged, if only one of file and model is pruned, if they
                are pruned differently, or if weights are of another kind of number. The model is not
                changed then. Also if the optimizer's state is of another one, which is found last.
        """
        self._path, self.unfilled = path, ()
        if path and "://" not in path and not os.path.isfile(path.partition("?")[0]):
            raise missing(path)
        try:
            return super().load(path, *args, **kwargs)
        except ValueError as error:
            if isinstance(error, PruneError) or "parameter group" not in str(error):
                raise
            raise PruneError(
                f"'{path}' can't be resumed, it holds the state of another optimizer ({error}); keep the "
                "SOLVER keys that it was trained with, or start anew in another OUTPUT_DIR",
                keys=("OUTPUT_DIR",),
            ) from error
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
        self.unfilled = unfilled(self.model, incompatible)
        return incompatible

    def save(self, name: str, **kwargs: Any) -> None:
        """Write ``name``.pth to ``save_dir``, and its name to ``last_checkpoint``.

        Raises:
            PruneError: if a weight is NaN or infinite, or the file can't be written. The last checkpoint is
                left as it is.
        """
        with_struct = self.save_struct and self.save_to_disk
        super().save(name, **additions(self.model, with_struct), **kwargs)


def _refuse_diverged(model: nn.Module, file: str) -> None:
    name = first_not_finite(model, model.state_dict())
    if name is not None:
        raise PruneError(
            f"'{name}' is NaN or infinite, the training has diverged: {file} is not written, and the "
            "checkpoint before stays the last. Lower SOLVER.BASE_LR, or set "
            "SOLVER.CLIP_GRADIENTS.ENABLED True",
            keys=("SOLVER.BASE_LR", "SOLVER.CLIP_GRADIENTS.ENABLED True"),
        )


def _of_pycls(path: str) -> dict[str, Any]:
    """Read a backbone's checkpoint of pycls, with which RegNets were trained."""
    weights = read_checkpoint(path)["model"].get("model_state")
    if not isinstance(weights, dict):
        raise PruneError(f"'{path}' holds no 'model_state'; expected a checkpoint of pycls")
    weights = {k: v for k, v in weights.items() if not str(k).endswith("num_batches_tracked")}
    return {"model": weights, "__author__": "pycls", "matching_heuristics": True}
