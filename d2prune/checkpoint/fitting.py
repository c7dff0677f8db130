"""Renaming a checkpoint's weights to a model's names, and checking that they fit it."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import nn

from d2prune.adapters import find_adapter
from d2prune.checkpoint.reader import kind_of, spec_in
from d2prune.checkpoint.refusals import no_spec, other_model
from d2prune.checkpoint.values import check_kinds, first_not_finite
from d2prune.core.cut.spec import PruneSpec
from d2prune.errors import PruneError
from d2prune.modeling.norm_names import rename_separate_norms
from d2prune.rebuild import spec_of_model

logger = logging.getLogger(__name__)


def fit(path: str, model: nn.Module, checkpoint: dict[str, Any]) -> None:
    """Rename the weights of ``checkpoint``, in place, and check them if it or ``model`` is pruned.

    Args:
        path: the file, for messages.
        model: the model that the weights are for, which may be on the meta device.
        checkpoint: the file's entries.

    Raises:
        PruneError: if it holds no weights, if only one of file and model is pruned, if they are pruned
            differently, or if weights of a pruned one are of another kind of number or not finite.
    """
    weights, held, spec = checkpoint["model"], spec_in(path, checkpoint), spec_of_model(model)
    _check_tensors(path, weights)
    _strip_module(weights)
    wanted = set(model.state_dict())
    rename_separate_norms(weights, wanted)
    _rename_old(weights, wanted, model)
    if held is not None:
        _check_same_spec(path, held, spec, model)
    if held is not None or spec is not None:
        weights.update({name: torch.as_tensor(value) for name, value in weights.items()})
        _check_strict(path, model, weights, has_spec=held is not None)
        check_kinds(path, model.state_dict(), weights)
        _check_finite(path, model, weights)


def _check_finite(path: str, model: nn.Module, weights: dict[str, Any]) -> None:
    name = first_not_finite(model, weights)
    if name is not None:
        raise PruneError(f"'{path}' holds NaN or infinity in '{name}'; expected finite weights")


def _check_tensors(path: str, weights: Any) -> None:
    whole = isinstance(weights, dict)
    for key, value in weights.items() if whole else [("model", weights)]:
        if not whole or not isinstance(key, str) or not isinstance(value, (torch.Tensor, np.ndarray)):
            raise PruneError(
                f"'{path}' holds no weights under 'model': expected a tensor by each name; the first "
                f"other entry: {key!r} ({kind_of(value)})"
            )


def _strip_module(weights: dict[str, Any]) -> None:
    """Strip "module." from the names of a model that was saved inside DistributedDataParallel."""
    if weights and all(name.startswith("module.") for name in weights):
        for name in list(weights):
            weights[name.removeprefix("module.")] = weights.pop(name)


def _rename_old(weights: dict[str, Any], wanted: set[str], model: nn.Module) -> None:
    """Rename what published checkpoints of an architecture still have under old names."""
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
    """Raise PruneError for keys that do not fit; log those that a training setting added or dropped."""
    own = model.state_dict()
    branches = training_branches(model)
    added = [k for k in own if k not in weights]
    dropped = [k for k in weights if k not in own]
    wrong = [k for k in own if k in weights and own[k].shape != weights[k].shape]
    wrong += [k for k in (*added, *dropped) if not may_differ(k, branches)]
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


def training_branches(model: nn.Module) -> tuple[str, ...]:
    """Return the prefixes of the branches that only training runs."""
    adapter = find_adapter(model)
    return tuple(f"{branch}." for branch in adapter.training_only(model)) if adapter is not None else ()


def unfilled(model: nn.Module, incompatible: Any) -> tuple[str, ...]:
    """Return the names in the state dict of ``model`` that a file did not fill, in its order.

    Left out are keys that may differ, and tensors that are filled under another name.

    Args:
        model: the model after the weights were loaded.
        incompatible: what ``_load_model`` of Detectron2's checkpointer returned.
    """
    own, branches = model.state_dict(keep_vars=True), training_branches(model)
    gaps = {*incompatible.missing_keys, *(name for name, *_ in incompatible.incorrect_shapes)}
    filled = {id(tensor) for name, tensor in own.items() if name not in gaps}
    lacking = [name for name, tensor in own.items() if name in gaps and id(tensor) not in filled]
    return tuple(name for name in lacking if not may_differ(name, branches))


def may_differ(key: str, branches: tuple[str, ...]) -> bool:
    """Return whether a key may differ: a training-only branch, or BatchNorm's ``num_batches_tracked``."""
    return key.startswith(branches) or key.endswith(".num_batches_tracked")


def _shorten(keys: Iterable[str], most: int = 6) -> str:
    keys = list(keys)
    return ", ".join(keys[:most]) + (f" and {len(keys) - most} more" if len(keys) > most else "")
