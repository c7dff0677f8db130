"""The trace: one forward pass in which labels follow every tensor's channels.

Labels are followed below autograd, operator by operator (:mod:`d2prune.core.trace.operators`), so fused
layers, attention and code that reshapes channels need no rules of their own, and the time is that of one
forward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

from d2prune.core.layers.attention import unfused_attention
from d2prune.core.literals.calls import Call, NumberedCalls, counted_by, following_path, positions
from d2prune.core.literals.sites import frames_of_call
from d2prune.core.literals.tracked import tracked
from d2prune.core.trace.groups import groups_of
from d2prune.core.trace.labels import Ids, LabelMaps, LabelStore, along
from d2prune.core.trace.operators import follow, tensors_in
from d2prune.core.trace.weights import label_layers, tensors_of, whole_layers
from d2prune.core.types import CallKey, Group, SizeLiteral
from d2prune.errors import PruneError

Outputs = Mapping[str, Tensor]


def trace_groups(model: nn.Module, forward: Callable[[nn.Module], Outputs]) -> tuple[Group, ...]:
    """Run ``forward``, once in most models, and group the channels that must be removed together.

    Args:
        model: in eval mode; not changed.
        forward: ``forward(model)`` returns the dense outputs by name. A channel that reaches an
            output is part of the model's interface and is never cut.

    Returns:
        The groups in the order of the model's layers.

    Raises:
        PruneError: if an output does not depend on any parameter.
    """
    trace = _traced(model, forward, None)
    stuck = trace.stuck()
    if stuck.size:
        by_rows = _traced(model, forward, stuck)
        free = np.setdiff1d(stuck, by_rows.stuck())
        if free.size:
            trace = by_rows if len(free) == len(stuck) else _traced(model, forward, free)
    return groups_of(trace)


def _traced(model: nn.Module, forward: Callable[[nn.Module], Outputs], whole_rows: Ids | None) -> _Trace:
    trace = _Trace(model, whole_rows)
    with torch.no_grad(), torch.autocast(_device_type(model), enabled=False), trace.running():
        outputs = forward(model)
    trace.keep_outputs(outputs)
    return trace


def _device_type(model: nn.Module) -> str:
    parameter = next(model.parameters(), None)
    device = parameter.device if parameter is not None else torch.get_default_device()
    return device.type if torch.amp.is_autocast_available(device.type) else "cpu"


class _Trace(TorchDispatchMode):
    """The labels of every tensor that is alive, and the path of the module that runs.

    It implements :class:`d2prune.core.trace.operators.Labels`.
    """

    def __init__(self, model: nn.Module, whole_rows: Ids | None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.model = model
        self.store = LabelStore(self._where, whole_rows)
        self.touched: set[str] = set()
        self.literals: list[tuple[CallKey, SizeLiteral, Ids]] = []
        self._counted: dict[Hashable, Ids] = {}
        self.path: list[str] = [""]
        self._maps = WeakTensorKeyDictionary()
        self._whole = whole_layers(model)
        self.axes = label_layers(model, self._whole, self.store, self._maps)
        self._owners = WeakTensorKeyDictionary()
        for path, module in model.named_modules():
            self._owners.update({tensor: path for tensor in tensors_of(module)})
        for (path, _), axis in self.axes.items():
            if isinstance(axis.layer, Tensor):
                self._owners[axis.layer] = path
        self._from_weights = WeakTensorKeyDictionary(dict.fromkeys(model.parameters(), True))

    def of(self, tensor: Tensor | None) -> LabelMaps:
        """Return the tensor's maps."""
        found: LabelMaps = self._maps.get(tensor, ()) if tensor is not None else ()
        return found

    def set(self, tensor: Tensor, maps: LabelMaps) -> None:
        """Set the tensor's maps."""
        self._maps[tensor] = maps

    @contextmanager
    def running(self) -> Iterator[None]:
        """Follow every operator while the context lasts; attention as its single products."""
        with (
            following_path(self.model, self.path), tracked(self.model),
            unfused_attention(), sdpa_kernel(SDPBackend.MATH), _Calls(self), self,
        ):  # fmt: skip
            yield

    def _where(self) -> str:
        """Return the path of the module that runs, with the reason if it can't be cut."""
        path = self.path[-1] or type(self.model).__name__
        why = next((self._whole[p] for p in reversed(self.path) if p in self._whole), "")
        return f"{path} ({why})" if why else path

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        used = tensors_in((args, kwargs))
        self.touched.update(self._owners[t] for t in used if t in self._owners)
        if any(t in self._from_weights for t in used):
            self._from_weights.update(dict.fromkeys(tensors_in(out), True))
        follow(self, func, args, kwargs, out)
        return out

    def note(self, call: CallKey, literal: SizeLiteral, tensor: Tensor, site: Hashable) -> None:
        """Record a literal with the labels of its dimension of ``tensor``, and tie what it counts."""
        ids = along(self.of(tensor), literal.dim)
        if ids is None or ids.numel() != literal.size or max(positions(literal), default=0) > literal.size:
            return
        values = ids.cpu().numpy()
        self.literals.append((call, literal, values))
        self._tie_to_first((site, literal.dim, literal.size), values)
        for expression, counted in counted_by(literal, values):
            self._tie_to_first((expression, len(counted)), counted)

    def _tie_to_first(self, number: Hashable, ids: Ids) -> None:
        """Tie channels that the same number counts elsewhere: one expression, or one place in the code."""
        self.store.tie(*map(torch.from_numpy, (self._counted.setdefault(number, ids), ids)))

    def keep_outputs(self, outputs: Outputs) -> None:
        """Keep all labels that reach an output."""
        for name, tensor in outputs.items():
            if tensor not in self._from_weights:
                raise PruneError(f"output '{name}' does not depend on any parameter: can't trace it")
            for label_map in self.of(tensor):
                self.store.keep_output(label_map, name)

    def stuck(self) -> Ids:
        """Return the labels that varied along several dimensions and, as they were tied, must stay."""
        roots = self.store.roots()
        noted = [ids for ids, _ in (*self.store.outputs, *self.store.kept, *self.store.inexact)]
        stay = np.unique(roots[np.concatenate([np.zeros(1, dtype=np.int64), *noted])])
        jointly = np.unique(np.concatenate([np.zeros(1, dtype=np.int64), *self.store.jointly]))
        found: Ids = jointly[(jointly > 0) & np.isin(roots[jointly], stay)]
        return found


class _Calls(NumberedCalls):
    """A function mode that records in the trace every call with size literals."""

    def __init__(self, trace: _Trace) -> None:
        super().__init__(trace.path)
        self._trace = trace

    def make(self, key: CallKey, call: Call, redo: Callable[[], Any]) -> Any:
        """Make the call, then record its literals."""
        out, frames = redo(), frames_of_call()
        site = (key[0], frames[-1].f_code, frames[-1].f_lasti) if frames else (*key, None)
        for literal in call.literals:
            self._trace.note(key, literal, call.tensor if call.tensor is not None else out, site)
        return out
