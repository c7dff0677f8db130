"""Which channels belong together: torch-pruning's dependency graph, read as groups of units.

The only module that imports torch_pruning. It takes the *edges* of its graph (with their index
mappings through concat, split, flatten) and propagates channel identities over them, instead of
taking its groups, whose merge forgets that two channels of one layer were tied.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch_pruning
from torch import Tensor, nn
from torch.nn.utils import parametrize

from d2prune.core.layers import ConvNd, axis_width, is_depthwise, is_layer, parameter_dim
from d2prune.core.types import Axis, Group, Member, Site
from d2prune.core.units import Ties, blocks, combs
from d2prune.errors import PruneError

Outputs = Mapping[str, Tensor]
_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict)
Node = Any  # torch_pruning.dependency.Node: untyped upstream


class _Index(NamedTuple):
    """The pair that torch-pruning's index mappings read and write."""

    idx: int
    root_idx: int


def trace_groups(
    model: nn.Module,
    forward: Callable[[nn.Module], Outputs],
    names: Mapping[nn.Module, str],
) -> tuple[Group, ...]:
    """Runs ``forward`` once with autograd and groups the channels that must go together.

    Args:
        model: a throw-away copy in which convolution, norm and activation are separate modules;
            it is put in eval mode and all its float parameters get ``requires_grad``.
        forward: ``forward(model)`` returns the dense outputs by name. A channel that reaches an
            output is part of the model's interface and is never cut.
        names: path to report for each layer; layers that are missing here are not grouped.

    Returns:
        Groups in the order of ``names``.

    Raises:
        PruneError: if an output does not depend on any parameter.
    """
    for parameter in model.parameters():
        if parameter.is_floating_point():
            parameter.requires_grad_(True)
    outputs: dict[Any, str] = {}

    def traced(module: nn.Module, _: object) -> list[Tensor]:
        # The factor gives every output a node of its own, even where a layer's result is returned.
        results = {name: tensor * 1 for name, tensor in forward(module).items()}
        for name, tensor in results.items():
            if tensor.grad_fn is None:
                raise PruneError(f"output '{name}' does not depend on any parameter: can't trace it")
            outputs[tensor.grad_fn] = name
        return list(results.values())

    with torch.enable_grad(), torch.autocast(_device_type(model), enabled=False):
        graph = torch_pruning.DependencyGraph().build_dependency(
            model, example_inputs=None, forward_fn=traced, verbose=False
        )
    flow = _Flow(graph, names)
    flow.spread_all()
    flow.fix_outputs(outputs)
    flow.tie_constraints()
    return flow.groups()


def _device_type(model: nn.Module) -> str:
    parameter = next(model.parameters(), None)
    device = parameter.device if parameter is not None else torch.get_default_device()
    return device.type if torch.amp.is_autocast_available(device.type) else "cpu"


class _Flow:
    """Channel identities carried along the edges of torch-pruning's graph."""

    def __init__(self, graph: Any, names: Mapping[nn.Module, str]) -> None:
        self.graph = graph
        self.ties = Ties()
        self.owner: dict[tuple[Node, Axis], dict[int, int]] = defaultdict(dict)
        self.fixed: dict[int, str] = {}
        self.paths: dict[Node, str] = {}
        self.whole: dict[Node, str] = {}
        whole = dict(_left_whole(names))
        for module, node in graph.module2node.items():
            path = graph._param_to_name.get(module) if _is_parameter(module) else names.get(module)
            if module in whole:
                self.whole[node] = whole[module]
            if path is not None and is_layer(module):
                self.paths[node] = path
        self.rank = {path: i for i, path in enumerate(names.values())}

    def _function(self, node: Node, axis: Axis) -> Any:
        pruner = self.graph.get_pruner_of_module(node.module)
        return pruner.prune_out_channels if axis == "out" else pruner.prune_in_channels

    def spread_all(self) -> None:
        """Starts from the output channels of every convolution and linear layer."""
        for node in sorted(self.paths, key=lambda n: self.rank.get(self.paths[n], len(self.rank))):
            if isinstance(node.module, (*ConvNd, nn.Linear)):
                width = axis_width(node.module, "out")
                seen = self.owner[(node, "out")]
                fresh = [i for i in range(width) if i not in seen]
                self._spread(node, "out", fresh, [self.ties.new() for _ in fresh])

    def _spread(self, node: Node, axis: Axis, idxs: Sequence[int], ids: Sequence[int]) -> None:
        stack = [(node, axis, idxs, ids)]
        while stack:
            node, axis, idxs, ids = stack.pop()
            fresh = self._claim(node, axis, idxs, ids)
            if not fresh:
                continue
            function = self._function(node, axis)
            for edge in node.dependencies:
                if edge.trigger != function:
                    continue
                mapped = _map(edge, fresh)
                if mapped:
                    into: Axis = "out" if edge.handler == self._function(edge.target, "out") else "in"
                    stack.append((edge.target, into, *zip(*mapped, strict=True)))

    def _claim(self, node: Node, axis: Axis, idxs: Sequence[int], ids: Sequence[int]) -> list[_Index]:
        """Ties what is already known at this place; returns what is new here."""
        if node in self.paths and idxs and max(idxs) >= self._width(node, axis):
            # A broadcast: C channels meet a layer of fewer. Cutting either is left to an adapter.
            reason = f"broadcast against {self.paths[node]}"
            for item in (*ids, *self.owner[(node, axis)].values()):
                self.fixed[item] = reason
            return []
        owned = self.owner[(node, axis)]
        fresh = []
        for idx, item in zip(idxs, ids, strict=True):
            if idx in owned:
                self.ties.tie(owned[idx], item)
            else:
                owned[idx] = item
                fresh.append(_Index(idx, item))
        return fresh

    def _width(self, node: Node, axis: Axis) -> int:
        if _is_parameter(node.module):
            return int(node.module.shape[parameter_dim(node.module)])
        return axis_width(node.module, axis)

    def fix_outputs(self, outputs: Mapping[Any, str]) -> None:
        """What reaches an output stays, and what meets a layer that can't be cut."""
        for (node, _), owned in self.owner.items():
            if node in self.whole:
                self.fixed.update(dict.fromkeys(owned.values(), self.whole[node]))
            name = outputs.get(node.grad_fn) if node not in self.paths else None
            if name is not None:
                self.fixed.update((item, f"is the model's output '{name}'") for item in owned.values())

    def tie_constraints(self) -> None:
        """GroupNorm by whole normalisation groups; grouped convolutions alike in every group."""
        for (node, axis), owned in self.owner.items():
            module = node.module
            sets: Iterable[Sequence[int]] = ()
            if isinstance(module, nn.GroupNorm):
                sets = blocks(module.num_channels, module.num_groups)
            elif isinstance(module, ConvNd) and module.groups > 1 and not is_depthwise(module):
                sets = combs(axis_width(module, axis), module.groups)
            for together in sets:
                self.ties.tie_all(owned[i] for i in together if i in owned)

    def groups(self) -> tuple[Group, ...]:
        """Units that cut the same axes by the same amounts form one group."""
        units: dict[int, dict[Site, list[int]]] = defaultdict(lambda: defaultdict(list))
        modules: dict[Site, Any] = {}
        for (node, axis), owned in self.owner.items():
            if node in self.paths:
                site: Site = (self.paths[node], axis)
                modules[site] = node.module
                for idx, item in owned.items():
                    units[self.ties.find(item)][site].append(idx)
        fixed = {self.ties.find(item): reason for item, reason in self.fixed.items()}
        alike: dict[tuple[Any, ...], list[int]] = defaultdict(list)
        for unit in sorted(units):
            cuts = tuple(sorted((site, len(idxs)) for site, idxs in units[unit].items()))
            alike[cuts + (fixed.get(unit, ""),)].append(unit)
        made = [self._group([units[u] for u in us], modules, key[-1]) for key, us in alike.items()]
        return tuple(sorted(made, key=lambda g: self.rank.get(g.name, len(self.rank))))

    def _group(self, units: list[dict[Site, list[int]]], modules: Mapping[Site, Any], fixed: str) -> Group:
        def order(site: Site) -> tuple[bool, int, str]:
            makes = site[1] == "out" and isinstance(modules[site], (*ConvNd, nn.Linear))
            return (not makes, self.rank.get(site[0], len(self.rank)), site[1])

        sites = sorted(units[0], key=order)
        members = tuple(
            Member(*site, np.array([sorted(unit[site]) for unit in units], dtype=np.int64)) for site in sites
        )
        producers = tuple(site[0] for site in sites if not order(site)[0])
        inexact = next(
            (f"{s[0]} is a LayerNorm over these channels" for s in sites if _is_layernorm(modules[s])),
            "",
        )
        return Group(producers[0], members, producers, fixed, inexact)


def _left_whole(names: Mapping[nn.Module, str]) -> Iterator[tuple[object, str]]:
    """Modules and bare parameters that :func:`d2prune.core.layers.cut` can't handle, and why."""
    owners = Counter(id(p) for module in names for p in module._parameters.values())
    for module, name in names.items():
        own = [p for p in module._parameters.values() if p is not None]
        why = ""
        if any(owners[id(p)] > 1 for p in own):
            why = f"{name} shares its weights with another layer"
        elif not is_layer(module) and (why_not := _built_in(module)):
            why = f"{name} is {why_not}, which d2prune can't cut"
        if why:
            yield from ((thing, why) for thing in (module, *own))


def _built_in(module: nn.Module) -> str:
    """What a layer of torch is that has channels but no handler (attention, LSTM, RMSNorm, ...)."""
    has_channels = any(p.numel() > 1 for p in module.parameters())
    kind = type(module)
    if parametrize.is_parametrized(module) or "weight" in module.__dict__:
        return f"a {kind.__name__} whose weight is computed"
    foreign = not kind.__module__.startswith("torch.nn") or isinstance(module, _CONTAINERS)
    return "" if foreign or not has_channels else f"a {kind.__name__}"


def _map(edge: Any, items: list[_Index]) -> list[_Index]:
    for mapping in edge.index_mapping:
        if mapping is not None:
            items = mapping(items)
    return items


def _is_parameter(module: object) -> bool:
    return isinstance(module, nn.Parameter)


def _is_layernorm(module: object) -> bool:
    return isinstance(module, nn.LayerNorm)
