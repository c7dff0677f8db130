"""``d2prune.save`` and ``d2prune.load``, which save and load pruned models without a trainer."""

from __future__ import annotations

import os
from typing import Protocol, TypeVar

from torch import nn

from d2prune.checkpoint.fitting import fit
from d2prune.checkpoint.reader import read_checkpoint, read_spec
from d2prune.checkpoint.refusals import check_base, no_spec
from d2prune.checkpoint.writer import checkpoint_data, write_checkpoint
from d2prune.rebuild import rebuild, spec_of_model

Model = TypeVar("Model", bound=nn.Module)


class _Result(Protocol):
    @property
    def model(self) -> nn.Module: ...


def save(result: _Result, path: str | os.PathLike[str]) -> None:
    """Write a prune's result in the trainer's checkpoint format: ``model``, ``prune_spec``, ``struct``."""
    write_checkpoint(checkpoint_data(result.model, with_struct=True), path)


def load(path: str | os.PathLike[str], model: Model) -> Model:
    """Resize a freshly built ``model`` to the checkpoint's spec and load its weights, strictly.

    Args:
        path: a checkpoint written by :func:`save` or by PruningCheckpointer.
        model: an unpruned model of the class that was pruned, or one that has the spec's widths already
            (a patched fork builds it so); changed in place and returned.

    Raises:
        PruneError: if the file is missing, damaged, holds no spec, or is of another model.
    """
    spec = read_spec(path)
    if spec is None:
        raise no_spec(path)
    check_base(path, spec, model)
    if spec_of_model(model) != spec:
        rebuild(model, spec)
    checkpoint = read_checkpoint(path)
    fit(os.fspath(path), model, checkpoint)
    model.load_state_dict(checkpoint["model"], strict=False)  # fit() has checked what may be missing
    return model
