"""torch-pruning's importances as criteria: its own code scores d2prune's groups, converted to its groups.

Fang et al., "DepGraph: Towards Any Structural Pruning" (arXiv 2301.12900). ``import d2prune`` does not
import the package; using one of these criteria does.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from d2prune.core.layers.kinds import module_at
from d2prune.core.types import Group, Indices, Member
from d2prune.errors import PruneError

PREFIX = "torch_pruning."
Importance = Callable[[Any], Tensor | None]
"""``importance(group) -> (C,)`` scores of the channels of a ``tp.Group``'s root."""

_PREPARED = {"ActivationImportance", "OBDCImportance"}
"""Importances that score by data an instance was shown, so they can't be named, only passed."""


class TorchPruningCriterion:
    """A criterion that scores by an importance of torch-pruning, or one of the user's own.

    Args:
        importance: an instance, or the name of a class: "torch_pruning.LAMPImportance".

    Raises:
        PruneError: if there is no such name, or the instance can't be called.
    """

    def __init__(self, importance: str | Importance) -> None:
        if not isinstance(importance, str) and (isinstance(importance, type) or not callable(importance)):
            raise PruneError(
                f"criterion is {importance!r}; expected a name, or an instance of torch-pruning's Importance"
            )
        self._importance = _named(importance) if isinstance(importance, str) else importance
        self.name = name_of(importance)

    def __call__(self, model: nn.Module, group: Group) -> NDArray[np.float64]:
        """Return the (U,) mean scores over each unit's channels of the group's first producer.

        torch-pruning itself takes the mean of channels that are removed together: with a sum, units of
        more channels would score higher, and groups could not be compared.

        Raises:
            PruneError: if the importance can't score the group.
        """
        roots, items = _ranks(group.members[0].indices), _group(model, group)
        try:
            found = self._importance(items) if len(items) else None
            scores = torch.as_tensor(() if found is None else found).detach()
        except Exception as error:  # a user's own may raise anything
            raise self._refusal(model, group, f"{type(error).__name__}: {error}") from error
        if found is None:
            raise self._refusal(model, group)
        if scores.dim() != 1 or len(scores) < roots.size or not scores.isfinite().all():
            got = f"{int(scores.isfinite().sum())} finite scores in a tensor of shape {tuple(scores.shape)}"
            raise self._refusal(model, group, f"it gave {got}, for {roots.size} channels")
        means: NDArray[np.float64] = scores.double().cpu().numpy()[roots].mean(1)
        return means

    def _refusal(self, model: nn.Module, group: Group, reason: str = "") -> PruneError:
        layers = {member.layer: module_at(model, member.layer) for member in group.members}
        weights = [(path, getattr(layer, "weight", None)) for path, layer in layers.items()]
        without = [(path, w) for path, w in weights if isinstance(w, Tensor) and w.grad is None]
        if without and isinstance(self._importance, _of_gradients()):
            path, weight = without[0]
            hint = "" if weight.requires_grad else "; this layer is frozen"
            reason = f"{path} has no gradient: call loss.backward() on the model first{hint}"
        kinds = ", ".join(dict.fromkeys(type(layer).__name__ for layer in layers.values()))
        return PruneError(
            f"MODEL.PRUNING.CRITERION '{self.name}' can't score the channels of {group.name}: "
            f"{reason or f'it scores none of their layers ({kinds})'}",
            keys=("MODEL.PRUNING.CRITERION",),
        )


def name_of(criterion: str | Importance) -> str:
    """Return a criterion's name for reports: a name itself, or an instance's package and class."""
    kind = type(criterion)
    return criterion if isinstance(criterion, str) else f"{kind.__module__.partition('.')[0]}.{kind.__name__}"


def _named(name: str) -> Importance:
    classes = _classes()
    if name not in classes:
        message = f"MODEL.PRUNING.CRITERION is {name!r}; expected one of: {', '.join(classes)}"
        raise PruneError(message, keys=("MODEL.PRUNING.CRITERION",))
    importance: Importance = classes[name]()
    return importance


def _classes() -> dict[str, Any]:
    """Return the importances that can be used by name."""
    from torch_pruning import importance

    found = inspect.getmembers(importance, inspect.isclass)
    kinds = {n: c for n, c in found if issubclass(c, importance.Importance) and not inspect.isabstract(c)}
    return {f"{PREFIX}{name}": kind for name, kind in kinds.items() if name not in {"Importance", *_PREPARED}}


def _of_gradients() -> tuple[type, ...]:
    from torch_pruning import importance

    return importance.GroupTaylorImportance, importance.GroupHessianImportance


def _ranks(positions: Indices) -> Indices:
    """Return the (U, K) ranks of a member's positions among all of them."""
    ranks = np.empty(positions.size, np.int64)
    ranks[np.argsort(positions, axis=None)] = np.arange(positions.size)
    return ranks.reshape(positions.shape)


def _group(model: nn.Module, group: Group) -> Any:
    """Return the group as a ``tp.Group``, without layers that torch-pruning has no pruner for."""
    import torch_pruning
    from torch_pruning import ops
    from torch_pruning.dependency import Node

    items, roots, source = torch_pruning.Group(), _ranks(group.members[0].indices), None
    for member in group.members:
        layer = module_at(model, member.layer)
        pruner = torch_pruning.PrunerBox.get(ops.module2type(layer))
        if pruner is None:
            continue
        handler = pruner.prune_out_channels if member.axis == "out" else pruner.prune_in_channels
        node = Node(layer, None, member.layer)
        source = source or node
        indices, sources = _paired(member, roots)
        items.add_dep(torch_pruning.Dependency(handler, handler, source, node), indices)
        items[-1].root_idxs = sources
    return items


def _paired(member: Member, roots: Indices) -> tuple[list[int], list[int]]:
    """Return a member's positions in ascending order, and the root's channel that each belongs to.

    If a unit has more positions here than channels there (a linear layer after a flatten), they are
    divided among these in order.
    """
    positions = member.indices
    columns = np.arange(positions.shape[1]) * roots.shape[1] // positions.shape[1]
    order = np.argsort(positions, axis=None)
    return positions.ravel()[order].tolist(), roots[:, columns].ravel()[order].tolist()
