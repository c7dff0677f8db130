"""Which channels belong together: one forward pass in which every tensor's channels are labelled.

Labels are followed below autograd, operator by operator (:mod:`d2prune.core.operators`), so neither
fused layers nor attention nor code that reshapes channels needs to be known, and the time is that of
one forward pass.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils import parametrize
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

from d2prune.core.labels import Book, Ids, Sheets, spread
from d2prune.core.layers import ConvNd, axis_width, is_depthwise, is_layer, parameter_dim
from d2prune.core.operators import follow
from d2prune.core.types import Axis, Group, Member, Site
from d2prune.errors import PruneError

Outputs = Mapping[str, Tensor]
_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict)


def trace_groups(model: nn.Module, forward: Callable[[nn.Module], Outputs]) -> tuple[Group, ...]:
    """Runs ``forward`` once and groups the channels that must go together.

    Args:
        model: in eval mode; not changed.
        forward: ``forward(model)`` returns the dense outputs by name. A channel that reaches an
            output is part of the model's interface and is never cut.

    Returns:
        Groups in the order of the model's layers.

    Raises:
        PruneError: if an output does not depend on any parameter.
    """
    trace = _Trace(model)
    with torch.no_grad(), torch.autocast(_device_type(model), enabled=False), trace.running():
        outputs = forward(model)
    trace.keep_outputs(outputs)
    return _groups(trace)


def _device_type(model: nn.Module) -> str:
    parameter = next(model.parameters(), None)
    device = parameter.device if parameter is not None else torch.get_default_device()
    return device.type if torch.amp.is_autocast_available(device.type) else "cpu"


class _Trace(TorchDispatchMode):
    """Labels of every tensor that is alive, and where the trace is."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.book = Book(self._where)
        self.path = [""]
        self.sites: dict[Site, tuple[Ids, Any]] = {}
        self.whole: dict[str, str] = {}
        self.touched: set[str] = set()
        self._sheets = WeakTensorKeyDictionary()
        self._leaves = WeakTensorKeyDictionary()
        self._from_weights = WeakTensorKeyDictionary()
        self._label_all()

    # ---- what operators.Labels asks for

    def of(self, tensor: Tensor | None) -> Sheets:
        """See :class:`d2prune.core.operators.Labels`."""
        return self._sheets.get(tensor, ()) if tensor is not None else ()

    def set(self, tensor: Tensor, sheets: Sheets) -> None:
        """See :class:`d2prune.core.operators.Labels`."""
        self._sheets[tensor] = sheets

    def _where(self) -> str:
        """The module that runs, and why it can't be cut where that is so."""
        path = self.path[-1] or type(self.model).__name__
        why = next((self.whole[p] for p in reversed(self.path) if p in self.whole), "")
        return f"{path} ({why})" if why else path

    # ---- the run

    @contextmanager
    def running(self) -> Iterator[None]:
        """Follows every operator; attention as the products it consists of."""
        hooks: list[Any] = []
        for name, module in self.model.named_modules():
            hooks.append(module.register_forward_pre_hook(lambda *_, name=name: self.path.append(name)))
            hooks.append(module.register_forward_hook(lambda *_: self._leave()))
        fast = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            with sdpa_kernel(SDPBackend.MATH), self:
                yield
        finally:
            torch.backends.mha.set_fastpath_enabled(fast)
            for hook in hooks:
                hook.remove()

    def _leave(self) -> None:
        self.path.pop()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        used = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        self.touched.update(self._leaves[t] for t in used if t in self._leaves)
        if any(t in self._from_weights for t in used):
            for result in tree_leaves(out):
                if isinstance(result, Tensor):
                    self._from_weights[result] = True
        follow(self, func, args, kwargs, out)
        return out

    def keep_outputs(self, outputs: Outputs) -> None:
        """What reaches an output stays."""
        for name, tensor in outputs.items():
            if tensor not in self._from_weights:
                raise PruneError(f"output '{name}' does not depend on any parameter: can't trace it")
            for sheet in self.of(tensor):
                self.book.keep_output(sheet, name)

    # ---- labels of the layers

    def _label_all(self) -> None:
        for parameter in self.model.parameters():
            self._from_weights[parameter] = True
        owners = Counter(id(p) for m in self.model.modules() for p in m._parameters.values())
        for name, module in self.model.named_modules():
            own = {n: p for n, p in module._parameters.items() if p is not None}
            self._leaves.update({t: name for t in (*own.values(), *_buffers(module))})
            why = _whole(name, module, any(owners[id(p)] > 1 for p in own.values()))
            if why:
                self.whole[name] = why
            if is_layer(module):
                self._label_layer(name, module, why)
            elif not why:
                for leaf, parameter in own.items():
                    self._label_parameter(f"{name}.{leaf}" if name else leaf, parameter)

    def _label_layer(self, name: str, module: Any, why: str) -> None:
        if isinstance(module, ConvNd):
            out_dim, in_dim = (1, 0) if module.transposed else (0, 1)
            if is_depthwise(module):
                self._axis(name, "out", module, [(module.weight, 0), (module.bias, 0)], why)
                return
            self._axis(name, "out", module, [(module.weight, out_dim), (module.bias, 0)], why)
            self._axis(name, "in", module, [(module.weight, in_dim)], why)
        elif isinstance(module, nn.Linear):
            self._axis(name, "out", module, [(module.weight, 0), (module.bias, 0)], why)
            self._axis(name, "in", module, [(module.weight, 1)], why)
        else:
            width = axis_width(module, "out")
            rows = [t for t in (*module._parameters.values(), *_buffers(module)) if t is not None]
            self._axis(name, "out", module, [(t, -1) for t in rows if t.shape[-1:] == (width,)], why)

    def _label_parameter(self, path: str, parameter: Tensor) -> None:
        if parameter.is_floating_point() and any(size > 1 for size in parameter.shape):
            dim = parameter_dim(parameter)
            self._leaves[parameter] = path
            self._axis(path, "out", parameter, [(parameter, dim)], "")

    def _axis(self, path: str, axis: Axis, layer: Any, tensors: list[tuple[Any, int]], why: str) -> None:
        """One axis' labels, on all the tensors that hold it.

        The axis of a grouped convolution that its weight holds once for all groups has one label for
        the same channel of every group.
        """
        tensors = [(t, dim % t.dim()) for t, dim in tensors if t is not None]
        if not tensors or tensors[0][0].shape[tensors[0][1]] == 1:
            return
        tensor, dim = tensors[0]
        ids = self.book.new(tensor.shape[dim])
        self.sites[path, axis] = (ids, layer)
        for tensor, dim in tensors:
            values = np.tile(ids, -(-tensor.shape[dim] // len(ids)))  # a bias has all groups' channels
            sheet = spread(values, dim, tensor.dim(), tensor)
            self._sheets[tensor] = (*self.of(tensor), sheet)
            if why:
                self.book.keep_layer(sheet, why)


def _buffers(module: nn.Module) -> list[Tensor]:
    return [b for b in module._buffers.values() if b is not None and b.is_floating_point()]


def _groups(trace: _Trace) -> tuple[Group, ...]:
    """Units that cut the same axes by the same amounts form one group."""
    roots = trace.book.roots()
    units: dict[int, dict[Site, list[int]]] = defaultdict(lambda: defaultdict(list))
    modules: dict[Site, Any] = {}
    for site, (ids, layer) in trace.sites.items():
        if site[0] in trace.touched:
            modules[site] = layer
            width = layer.shape[parameter_dim(layer)] if isinstance(layer, Tensor) else axis_width(layer, site[1])
            for position in range(width):
                units[int(roots[ids[position % len(ids)]])][site].append(position)
    kept, inexact = (_by_root(notes, roots) for notes in (trace.book.kept, trace.book.inexact))
    inner = _inner(trace, roots)
    rank = {path: i for i, path in enumerate(dict.fromkeys(path for path, _ in modules))}
    alike: dict[tuple[Any, ...], list[int]] = defaultdict(list)
    for unit, sites in units.items():
        if not any(_makes(site, modules[site]) for site in sites):
            continue
        why = kept.get(unit) or ("" if unit in inner or _is_read(sites, modules) else "nothing that was traced reads them")
        cuts = tuple(sorted((site, len(positions)) for site, positions in sites.items()))
        alike[(*cuts, why, inexact.get(unit, ""), unit in inner)].append(unit)
    made = [_group([units[u] for u in us], modules, rank, *key[-3:]) for key, us in alike.items()]
    return tuple(sorted(made, key=lambda group: rank[group.name]))


def _by_root(notes: Iterable[tuple[Ids, str]], roots: Ids) -> dict[int, str]:
    """The first reason noted for any label of a unit."""
    found: dict[int, str] = {}
    for ids, why in notes:
        for root in np.unique(roots[ids]):
            found.setdefault(int(root), why)
    return found


def _inner(trace: _Trace, roots: Ids) -> set[int]:
    """Units summed over in a product of two activations: neither side is a layer's weight."""
    columns = np.zeros(trace.book.count, dtype=bool)
    for (_, axis), (ids, _) in trace.sites.items():
        columns[ids] = axis == "in"
    pairs = trace.book.products
    found = [one[~columns[one] & ~columns[two]] for one, two in pairs if one.shape == two.shape]
    return {int(root) for ids in found for root in np.unique(roots[ids[ids > 0]])}


def _makes(site: Site, layer: Any) -> bool:
    return site[1] == "out" and isinstance(layer, (*ConvNd, nn.Linear)) and not is_depthwise(layer)


def _is_read(sites: Iterable[Site], modules: Mapping[Site, Any]) -> bool:
    return any(axis == "in" or isinstance(modules[path, axis], Tensor) for path, axis in sites)


def _group(
    units: list[dict[Site, list[int]]],
    modules: Mapping[Site, Any],
    rank: Mapping[str, int],
    fixed: str,
    inexact: str,
    inner: bool,
) -> Group:
    def order(site: Site) -> tuple[bool, int, str]:
        return (not _makes(site, modules[site]), rank[site[0]], site[1])

    sites = sorted(units[0], key=order)
    members = tuple(Member(*site, np.array([unit[site] for unit in units], dtype=np.int64)) for site in sites)
    producers = tuple(site[0] for site in sites if not order(site)[0])
    return Group(producers[0], members, producers, fixed, inexact, inner)


def _whole(name: str, module: nn.Module, shared: bool) -> str:
    """Why :func:`d2prune.core.layers.cut` can't handle a module; empty where it can."""
    if shared:
        return f"{name} shares its weights with another layer"
    if not is_layer(module) and (why_not := _built_in(module)):
        return f"{name} is {why_not}, which d2prune can't cut"
    return ""


def _built_in(module: nn.Module) -> str:
    """What a layer of torch is that has channels but no handler (attention, LSTM, RMSNorm, ...)."""
    has_channels = any(p.numel() > 1 for p in module.parameters())
    kind = type(module)
    if parametrize.is_parametrized(module) or "weight" in module.__dict__:
        return f"a {kind.__name__} whose weight is computed"
    foreign = not kind.__module__.startswith("torch.nn") or isinstance(module, _CONTAINERS)
    return "" if foreign or not has_channels else f"a {kind.__name__}"
