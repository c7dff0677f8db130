"""Labels for the channels of every layer, put on its weights before a trace begins."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils.weak import WeakTensorKeyDictionary

from d2prune.core.layers.kinds import Place, axis_width, is_layer, places
from d2prune.core.layers.table import kind_of, own_tensors
from d2prune.core.trace.labels import Ids, LabelStore, spread
from d2prune.core.types import SINGLE, Axis, Site

_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict)
AXES: tuple[Axis, Axis] = ("out", "in")


@dataclass(frozen=True)
class LayerAxis:
    """One axis of a layer, with the label of each of its channels.

    If a grouped convolution's weight holds the axis once for all groups, the same channel of every group
    has one label, which ``ids`` repeats.
    """

    layer: Any
    ids: Ids

    def makes(self, axis: Axis) -> bool:
        """Return whether channels begin here: the output of a convolution, linear layer or embedding."""
        return axis == "out" and kind_of(self.layer).begins


def whole_layers(model: nn.Module) -> dict[str, str]:
    """Return the modules that :func:`d2prune.core.layers.kinds.cut` can't handle, with the reasons."""
    owners = Counter(id(p) for m in model.modules() for p in m._parameters.values())
    found = {}
    for name, module in model.named_modules():
        if any(owners[id(p)] > 1 for p in module._parameters.values() if p is not None):
            found[name] = f"{name} shares its weights with another layer"
        elif not is_layer(module) and (kind := _built_in(module)):
            found[name] = f"{name} is {kind}, which d2prune can't cut"
    return found


def label_layers(
    model: nn.Module, whole: dict[str, str], store: LabelStore, maps: WeakTensorKeyDictionary
) -> dict[Site, LayerAxis]:
    """Label all weights and statistics: write their maps into ``maps`` and return every axis."""
    axes: dict[Site, LayerAxis] = {}
    for name, module in model.named_modules():
        for path, axis, layer, held in _axes(name, module, name in whole):
            ids = _label(store, maps, held, whole.get(name, ""))
            axes[path, axis] = LayerAxis(layer, np.resize(ids, axis_width(layer, axis)))
    return axes


def tensors_of(module: nn.Module) -> list[Tensor]:
    """Return a module's own floating-point parameters and buffers."""
    return [t for t in own_tensors(module).values() if t.is_floating_point()]


def _axes(name: str, module: Any, whole: bool) -> Iterator[tuple[str, Axis, Any, list[Place]]]:
    rows: dict[str, Any] = {name: module}
    if not is_layer(module):
        bare = {} if whole else own_tensors(module)
        rows = {leaf: t for leaf, t in bare.items() if t.is_floating_point() and t.numel() > 1}
        rows = {f"{name}.{leaf}" if name else leaf: tensor for leaf, tensor in rows.items()}
    for path, layer in rows.items():
        for axis in AXES:
            if held := places(layer, axis):
                yield path, axis, layer, held


def _label(store: LabelStore, maps: WeakTensorKeyDictionary, held: list[Place], why: str) -> Ids:
    """Make the labels of one axis and put them on all the tensors that hold it."""
    ids = store.new(held[0].tensor.shape[held[0].dim])
    if len(ids) == 1:
        store.keep_layer(torch.from_numpy(ids), SINGLE)
        return ids
    if why:
        store.keep_layer(torch.from_numpy(ids), why)
    for place in held:
        tensor, dim = place.tensor, place.dim
        values = np.resize(ids, tensor.shape[dim])
        maps[tensor] = (*maps.get(tensor, ()), spread(values, dim, tensor.dim(), tensor))
    return ids


def _built_in(module: nn.Module) -> str:
    """Name a PyTorch layer that has channels but no row in the table (LSTM, ...); "" for others."""
    has_channels = any(p.numel() > 1 for p in module.parameters())
    kind = type(module)
    if parametrize.is_parametrized(module) or "weight" in module.__dict__:
        return f"a {kind.__name__} whose weight is computed"
    foreign = not kind.__module__.startswith("torch.nn") or isinstance(module, _CONTAINERS)
    return "" if foreign or not has_channels else f"a {kind.__name__}"
