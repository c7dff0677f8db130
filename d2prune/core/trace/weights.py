"""The channels that layers have: labels on their weights, before a trace begins."""

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

from d2prune.core.layers.kinds import ConvNd, axis_width, has_inputs, is_depthwise, is_layer, parameter_dim
from d2prune.core.layers.registered import layout_of, tensors_on
from d2prune.core.trace.labels import Ids, LabelStore, spread
from d2prune.core.types import SINGLE, Axis, Site

_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict)
Held = list[tuple[Tensor, int]]  # tensors, and the dimension of each that is the axis


@dataclass(frozen=True)
class LayerAxis:
    """One axis of a layer: the label of each of its channels.

    The axis of a grouped convolution that its weight holds once for all groups has one label for the
    same channel of every group; ``ids`` repeats it.
    """

    layer: Any
    ids: Ids

    def makes(self, axis: Axis) -> bool:
        """Whether channels begin here: the output of a convolution or linear layer, or an embedding."""
        begins = has_inputs(self.layer) or isinstance(self.layer, nn.Embedding)
        return axis == "out" and begins and not is_depthwise(self.layer)


def whole_layers(model: nn.Module) -> dict[str, str]:
    """Modules that :func:`d2prune.core.layers.kinds.cut` can't handle, and why."""
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
    """Labels all weights and statistics: writes their maps into ``maps``, returns every axis."""
    axes: dict[Site, LayerAxis] = {}
    for name, module in model.named_modules():
        for path, axis, layer, held in _axes(name, module, name in whole):
            ids = _label(store, maps, held, whole.get(name, ""))
            width = layer.shape[held[0][1]] if isinstance(layer, Tensor) else axis_width(layer, axis)
            axes[path, axis] = LayerAxis(layer, np.resize(ids, width))
    return axes


def tensors_of(module: nn.Module) -> list[Tensor]:
    """A module's own parameters and float buffers."""
    rows = (*module._parameters.values(), *module._buffers.values())
    return [t for t in rows if t is not None and t.is_floating_point()]


def _axes(name: str, module: Any, whole: bool) -> Iterator[tuple[str, Axis, Any, Held]]:
    if not is_layer(module):
        for leaf, tensor in (*module._parameters.items(), *module._buffers.items()) if not whole else ():
            if tensor is not None and tensor.is_floating_point() and any(s > 1 for s in tensor.shape):
                path = f"{name}.{leaf}" if name else leaf
                yield path, "out", tensor, [(tensor, parameter_dim(tensor))]
    elif layout_of(module) is not None:
        sides: tuple[Axis, Axis] = ("out", "in")
        yield from ((name, side, module, tensors) for side in sides if (tensors := tensors_on(module, side)))
    elif not isinstance(module, (*ConvNd, nn.Linear)):
        width = axis_width(module, "out")
        held = [(t, t.dim() - 1) for t in tensors_of(module) if t.shape[-1:] == (width,)]
        if held:
            yield name, "out", module, held
    else:
        rows, columns = (1, 0) if getattr(module, "transposed", False) else (0, 1)
        if is_depthwise(module):
            rows = 0
        bias = [(module.bias, 0)] if module.bias is not None else []
        yield name, "out", module, [(module.weight, rows), *bias]
        if not is_depthwise(module):
            yield name, "in", module, [(module.weight, columns)]


def _label(store: LabelStore, maps: WeakTensorKeyDictionary, held: Held, why: str) -> Ids:
    """One axis' labels, on all the tensors that hold it."""
    first, dim = held[0]
    ids = store.new(first.shape[dim])
    if len(ids) == 1:
        store.keep_layer(torch.from_numpy(ids), SINGLE)
        return ids
    if why:
        store.keep_layer(torch.from_numpy(ids), why)
    for tensor, dim in held:
        values = np.resize(ids, tensor.shape[dim])
        maps[tensor] = (*maps.get(tensor, ()), spread(values, dim, tensor.dim(), tensor))
    return ids


def _built_in(module: nn.Module) -> str:
    """What a layer of torch is that has channels but no handler (LSTM, Bilinear, ...)."""
    has_channels = any(p.numel() > 1 for p in module.parameters())
    kind = type(module)
    if parametrize.is_parametrized(module) or "weight" in module.__dict__:
        return f"a {kind.__name__} whose weight is computed"
    foreign = not kind.__module__.startswith("torch.nn") or isinstance(module, _CONTAINERS)
    return "" if foreign or not has_channels else f"a {kind.__name__}"
