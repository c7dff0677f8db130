"""``d2prune.save`` and ``d2prune.load``, which save and load pruned models without a trainer."""

from __future__ import annotations

import os
from typing import Protocol, TypeVar

from torch import nn

from d2prune.checkpoint.fitting import fit
from d2prune.checkpoint.reader import read_checkpoint, spec_in
from d2prune.checkpoint.refusals import check_base, no_spec
from d2prune.checkpoint.writer import write_model
from d2prune.core.copies import on_meta
from d2prune.core.cut.spec import PruneSpec
from d2prune.errors import MISFITS, PruneError
from d2prune.rebuild import rebuild, spec_of_model

Model = TypeVar("Model", bound=nn.Module)


class _Result(Protocol):
    @property
    def model(self) -> nn.Module: ...


def save(result: _Result | nn.Module, path: str | os.PathLike[str]) -> None:
    """Write a pruned model, fine-tuned or not, for :func:`load`.

    Args:
        result: of a prune, or the pruned model itself.
        path: ending with .safetensors: weights and spec, nothing else; the format to share. Else the
            trainer's checkpoint format, with ``model``, ``prune_spec`` and ``struct``, the whole module.

    Raises:
        PruneError: if the model was not pruned, or the file can't be written.
    """
    model = result if isinstance(result, nn.Module) else result.model
    if spec_of_model(model) is None:
        raise PruneError(
            f"this {type(model).__name__} was not pruned, so there is no spec to save; expected the result "
            "of d2prune.prune, or its model (torch.save(model.state_dict(), path) saves another)"
        )
    write_model(model, path)


def load(path: str | os.PathLike[str], model: Model) -> Model:
    """Resize a freshly built ``model`` to the checkpoint's spec and load its weights, strictly.

    Args:
        path: a checkpoint written by :func:`save` or by PruningCheckpointer.
        model: an unpruned model of the class that was pruned, or one that has the spec's widths already
            (a patched fork builds it so); changed in place and returned.

    Raises:
        PruneError: if the file is missing, damaged, holds no spec, or is of another model. The model is
            not changed then.
    """
    checkpoint = read_checkpoint(path)
    spec = spec_in(path, checkpoint)
    if spec is None:
        raise no_spec(path)
    check_base(path, spec, model)
    if spec_of_model(model) == spec:
        fit(os.fspath(path), model, checkpoint)
    else:
        fit(os.fspath(path), _resized_sizes(path, model, spec), checkpoint)
        rebuild(model, spec)
    model.load_state_dict(checkpoint["model"], strict=False)  # fit() has checked what may be missing
    return model


def _resized_sizes(path: str | os.PathLike[str], model: Model, spec: PruneSpec) -> Model:
    """Return a copy of ``model`` on meta, resized: whatever a spec breaks, it breaks there."""
    try:
        return rebuild(on_meta(model), spec)
    except PruneError as error:
        raise PruneError(f"'{path}': {error}") from error
    except (*MISFITS, SyntaxError, MemoryError) as error:
        reason = (str(error).splitlines() or [""])[0]
        raise PruneError(
            f"'{path}': its pruning spec does not fit this {type(model).__name__} "
            f"({type(error).__name__}: {reason}); expected a spec that was made for it"
        ) from error
