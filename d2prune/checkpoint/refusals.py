"""Errors for checkpoints that can't be loaded, each worded in one place."""

from __future__ import annotations

import os

from torch import nn

from d2prune.core.cut.spec import PruneSpec
from d2prune.errors import PruneError

Path = str | os.PathLike[str]


def missing(path: Path) -> PruneError:
    """Return the error for a file that does not exist."""
    return PruneError(
        f"checkpoint '{path}' does not exist; set MODEL.WEIGHTS to a file", keys=("MODEL.WEIGHTS",)
    )


def no_spec(path: Path) -> PruneError:
    """Return the error for an unpruned checkpoint where a pruned one is needed."""
    return PruneError(
        f"'{path}' holds no pruning spec: prune it first with MODEL.PRUNE True, or train it with "
        "MODEL.FINETUNE False",
        keys=("MODEL.PRUNE True", "MODEL.FINETUNE False"),
    )


def check_base(path: Path, spec: PruneSpec, model: nn.Module) -> None:
    """Raise :func:`other_model` unless ``model`` is of the class that was pruned."""
    if spec.base != type(model).__name__:
        raise other_model(path, spec, model)


def other_model(path: Path, spec: PruneSpec, model: nn.Module, how: str = "an unpruned {}") -> PruneError:
    """Return the error for a pruned checkpoint whose spec is not the model's; ``how`` describes the model."""
    return PruneError(
        f"'{path}' is a pruned checkpoint (spec version {spec.version}, base {spec.base}); "
        f"the model to load is {how.format(type(model).__name__)}"
    )
