"""Reading and cutting of single layers, as their row of the table of layer kinds says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from d2prune.core.layers.table import UNKNOWN, LayerKind, kind_of, own_tensors
from d2prune.core.types import Axis
from d2prune.errors import PruneError


@dataclass(frozen=True)
class Place:
    """A tensor that holds an axis of a layer, and the dimension that does.

    Attributes:
        name: name of the tensor.
        tensor: a parameter or buffer, of any shape.
        dim: its dimension that is the axis, from 0 on.
        groups: number of groups if the tensor holds the axis once for all groups of a convolution; else 1.
    """

    name: str
    tensor: Tensor
    dim: int
    groups: int = 1

    def by_position(self) -> Tensor:
        """Return the tensor as a view (groups, positions of a group, ...), with one row per position."""
        data = self.tensor.detach()
        if self.groups == 1:
            return data.movedim(self.dim, 0).unsqueeze(0)
        rows: Tensor = data.unflatten(0, (self.groups, -1))  # one group's rows read one group's columns
        return rows.movedim(self.dim + 1, 1)


def places(layer: nn.Module | Tensor, axis: Axis) -> list[Place]:
    """Return the tensors of a layer, or the bare parameter, that hold an axis; empty if none does.

    Raises:
        PruneError: if a registered layer lacks such a tensor or dimension, or their widths differ.
    """
    named = kind_of(layer).named(layer, axis).items()
    found = [place for name, dim in named if (place := _place(layer, name, dim)) is not None]
    widths = {place.name: place.tensor.shape[place.dim] for place in found}
    stated = _stated_width(layer, axis)
    if stated is not None:
        return [replace(p, groups=max(1, stated // max(1, widths[p.name]))) for p in found]
    if len(set(widths.values())) > 1:
        raise PruneError(
            f"register_layer({type(layer).__name__}): its {axis} channels differ in number: {widths}"
        )
    return found


def _place(layer: nn.Module | Tensor, name: str, dim: int) -> Place | None:
    """Return the place of tensor ``name``; None if the layer has it switched off, such as a bias."""
    if isinstance(layer, Tensor):
        return Place(name, layer, dim)
    if hasattr(layer, name) and getattr(layer, name) is None:
        return None
    own = own_tensors(layer)
    tensor = own.get(name)
    if tensor is None or not -tensor.dim() <= dim < tensor.dim():
        shapes = ", ".join(f"{n} {tuple(t.shape)}" for n, t in own.items())
        raise PruneError(
            f"register_layer({type(layer).__name__}) names dimension {dim} of '{name}'; its parameters and "
            f"buffers are: {shapes or 'none'}"
        )
    return Place(name, tensor, dim % tensor.dim())


def weight_on(layer: nn.Module | Tensor, axis: Axis) -> Place | None:
    """Return the tensor that criteria score the channels of ``axis`` by; None if there is none."""
    scored = kind_of(layer).scored
    return next((place for place in places(layer, axis) if scored in ("", place.name)), None)


def is_layer(layer: Any) -> bool:
    """Return whether channels can be cut from ``layer``: a module of a known kind, or a bare parameter."""
    return kind_of(layer).open(layer) and bool(places(layer, "out"))


def has_inputs(layer: object) -> bool:
    """Return whether a layer's input channels differ from its output channels (not so for norms)."""
    return bool(kind_of(layer).inp)


def axis_width(layer: nn.Module | Tensor, axis: Axis) -> int:
    """Return the number of channels on an axis; without inputs of its own, a layer's "in" is its "out"."""
    side: Axis = axis if has_inputs(layer) else "out"
    stated = _stated_width(layer, side)
    if stated is not None:
        return stated
    first = places(layer, side)[0]
    return first.tensor.shape[first.dim]


def _stated_width(layer: nn.Module | Tensor, axis: Axis) -> int | None:
    """Return the width in the layer's own attribute; None without one (torchvision's frozen norm)."""
    names = kind_of(layer).sizes.get(axis, ())
    return next((int(getattr(layer, name)) for name in names if hasattr(layer, name)), None)


def module_at(model: nn.Module, name: str) -> Any:
    """Return the module, parameter or buffer at path ``name`` ("" is the model); else AttributeError."""
    parent, _, leaf = name.rpartition(".")
    return getattr(model.get_submodule(parent), leaf) if leaf else model


def widths_of(model: nn.Module, name: str) -> tuple[int | None, int | None]:
    """Return the (out, in) widths of the layer called ``name``; None for an axis that it does not have."""
    target = module_at(model, name)
    if not is_layer(target):
        raise AttributeError(f"{name} is no layer that holds channels")
    return axis_width(target, "out"), axis_width(target, "in") if has_inputs(target) else None


@dataclass(frozen=True)
class Keep:
    """The sorted channel positions kept on each axis of one layer; None leaves the axis whole.

    ``groups`` is the new ``num_groups`` of a GroupNorm, or ``groups`` of a depthwise convolution.
    """

    out: tuple[int, ...] | None = None
    inp: tuple[int, ...] | None = None
    groups: int | None = None


def groups_of(layer: nn.Module) -> int | None:
    """Return the groups of a GroupNorm or depthwise convolution, which shrink with it; else None."""
    name = kind_of(layer).groups
    return int(getattr(layer, name)) if name else None


def groups_after(layer: nn.Module, kept: int) -> int | None:
    """Return what :func:`groups_of` becomes once the layer has ``kept`` channels.

    This is exact because whole groups are removed: each remaining group normalises the same channels.
    """
    groups = groups_of(layer)
    return kept * groups // axis_width(layer, "out") if groups is not None else None


def cut(layer: nn.Module, keep: Keep) -> None:
    """Shrink ``layer`` in place to the channels of ``keep``.

    Raises:
        PruneError: if the layer's kind is unknown.
    """
    kind = kind_of(layer)
    if kind is UNKNOWN:
        raise PruneError(f"can't take channels out of a {type(layer).__name__}")
    if keep.out is not None:
        _cut_axis(layer, kind, "out", keep.out)
    if keep.inp is not None:
        _cut_axis(layer, kind, "in", keep.inp)
    if kind.groups and keep.out is not None:
        setattr(layer, kind.groups, keep.groups)
    kind.after_cut(layer)


def _cut_axis(layer: nn.Module, kind: LayerKind, axis: Axis, kept: Sequence[int]) -> None:
    for place in places(layer, axis):
        size = place.tensor.shape[place.dim]  # of one group, where all are cut alike
        select(layer, place.name, place.dim, [i for i in kept if i < size])
    for name in kind.sizes.get(axis, ()):
        if hasattr(layer, name):
            setattr(layer, name, len(kept))


def select(layer: nn.Module, name: str, dim: int, kept: Sequence[int]) -> None:
    """Replace the parameter or buffer ``name`` by its slices ``kept`` along ``dim``."""
    tensor = getattr(layer, name)
    index = torch.as_tensor(kept, dtype=torch.long, device=tensor.device)
    sliced = tensor.detach().index_select(dim, index)
    if isinstance(tensor, nn.Parameter):
        sliced = nn.Parameter(sliced, requires_grad=tensor.requires_grad)
    setattr(layer, name, sliced)


def zero_inputs(layer: nn.Module, positions: Sequence[int]) -> None:
    """Zero the input columns ``positions`` of a layer, in place.

    A layer that works on each channel alone, such as a norm, has no input columns and stays as it is.
    """
    _zero(places(layer, "in"), positions)


def zero_outputs(layer: nn.Module | Tensor, positions: Sequence[int]) -> None:
    """Zero all weights of a layer, or of a bare parameter, for output ``positions``, in place."""
    _zero(places(layer, "out"), positions)


def _zero(found: Sequence[Place], positions: Sequence[int]) -> None:
    for place in found:
        rows = place.by_position()
        where = torch.tensor(positions, dtype=torch.long, device=rows.device)
        rows[where // rows.shape[1], where % rows.shape[1]] = 0
