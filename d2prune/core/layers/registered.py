"""The registration of users' layers in the table of layer kinds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from d2prune.core.layers import table
from d2prune.errors import PruneError


def register_layer(
    kind: type[nn.Module],
    *,
    out: Mapping[str, int],
    inp: Mapping[str, int] | None = None,
    after_cut: Callable[[Any], object] = lambda layer: None,
) -> None:
    """Teach d2prune to take channels out of layers of ``kind`` and its subclasses.

        d2prune.register_layer(MyLinear, out={"weight": 1, "bias": 0}, inp={"weight": 0},
                               after_cut=lambda layer: setattr(layer, "width", layer.weight.shape[1]))

    Which channels belong together is found by tracing the layer's own ``forward``. The latest
    registration of a class wins. Loading a pruned model of such layers needs the registration, too.

    Args:
        kind: a subclass of ``nn.Module`` with tensors of its own.
        out: by name, the parameters and buffers with output channels, and along which dimension.
        inp: the same for input channels; None if every channel is only scaled or shifted by itself.
        after_cut: called with each layer that was cut, to update attributes that repeat a width.

    Raises:
        PruneError: if ``kind`` is no class of modules, or ``out`` or ``inp`` is no such mapping.
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
    row = table.LayerKind(
        dict(out),
        dict(inp or {}),
        per="in" if inp else None,
        begins=bool(inp) or issubclass(kind, nn.Embedding),
        open=lambda layer: True,
        after_cut=after_cut,
    )
    table.ROWS[kind] = (row,)
