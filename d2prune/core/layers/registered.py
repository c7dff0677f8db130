"""Kinds of layers that users register: which of their tensors hold channels, and along which dimension."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from d2prune.core.types import Axis
from d2prune.errors import PruneError


@dataclass(frozen=True)
class Layout:
    """Where a kind of layer keeps its channels.

    Attributes:
        out: tensors that hold output channels, by attribute name, each with its dimension that does.
        inp: the same of input channels; empty for a layer that keeps channels apart, as norms do.
        after_cut: brings attributes that repeat a width up to date.
    """

    out: Mapping[str, int]
    inp: Mapping[str, int]
    after_cut: Callable[[Any], object]


_LAYOUTS: dict[type, Layout] = {}


def register_layer(
    kind: type[nn.Module],
    *,
    out: Mapping[str, int],
    inp: Mapping[str, int] | None = None,
    after_cut: Callable[[Any], object] = lambda layer: None,
) -> None:
    """Teaches d2prune to take channels out of layers of ``kind`` and its subclasses.

        d2prune.register_layer(MyLinear, out={"weight": 1, "bias": 0}, inp={"weight": 0},
                               after_cut=lambda layer: setattr(layer, "width", layer.weight.shape[1]))

    How channels are read and written is followed through the layer's own forward, as everywhere. The
    latest registration of a class wins; without it a pruned model of such layers can't be loaded either.

    Args:
        kind: a subclass of nn.Module with tensors of its own.
        out: by name, the parameters and buffers with output channels, and along which dimension.
        inp: the same for input channels; None where every channel is only scaled or shifted by itself.
        after_cut: called with each layer that was cut, to bring attributes that repeat a width up to date.

    Raises:
        PruneError: if ``kind`` is no class of modules, or ``out`` or ``inp`` no such mapping.
    """
    if not (isinstance(kind, type) and issubclass(kind, nn.Module)):
        raise PruneError(f"register_layer got {kind!r}; expected a subclass of nn.Module")
    for name, places in (("out", out), ("inp", inp)):
        given = [*places.values()] if isinstance(places, Mapping) else [None]
        if places is not None and not all(type(dim) is int for dim in given):
            raise PruneError(
                f"register_layer({kind.__name__}) got {name}={places!r}; expected dimensions by tensor "
                'name, such as {"weight": 0, "bias": 0}'
            )
    if not out:
        raise PruneError(f"register_layer({kind.__name__}) got no out; expected at least one tensor")
    _LAYOUTS[kind] = Layout(dict(out), dict(inp or {}), after_cut)


def layout_of(layer: object) -> Layout | None:
    """The layout registered for the nearest class of ``layer``, if any."""
    return next((_LAYOUTS[cls] for cls in type(layer).__mro__ if cls in _LAYOUTS), None)


def tensors_on(layer: nn.Module, axis: Axis) -> list[tuple[Tensor, int]]:
    """The tensors of a registered layer that hold an axis, and the dimension of each; none without such.

    Raises:
        PruneError: if the layer lacks such a tensor or dimension, or their widths differ.
    """
    layout = layout_of(layer)
    places = {} if layout is None else layout.out if axis == "out" else layout.inp
    found = {name: _place(layer, name, dim) for name, dim in places.items()}
    widths = {name: place[0].shape[place[1]] for name, place in found.items() if place is not None}
    if len(set(widths.values())) > 1:
        raise PruneError(
            f"register_layer({type(layer).__name__}): its {axis} channels differ in number: {widths}"
        )
    return [place for place in found.values() if place is not None]


def _place(layer: nn.Module, name: str, dim: int) -> tuple[Tensor, int] | None:
    """None where this layer does without: a bias that is off."""
    if hasattr(layer, name) and getattr(layer, name) is None:
        return None
    own = {**layer._parameters, **layer._buffers}
    tensor = own.get(name)
    if tensor is None or not -tensor.dim() <= dim < tensor.dim():
        shapes = ", ".join(f"{n} {tuple(t.shape)}" for n, t in own.items() if t is not None)
        raise PruneError(
            f"register_layer({type(layer).__name__}) names dimension {dim} of '{name}'; its parameters and "
            f"buffers are: {shapes or 'none'}"
        )
    return tensor, dim % tensor.dim()
