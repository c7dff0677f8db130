"""Calls that name numbers of channels: what they name, and how to make them with other numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from d2prune.core.types import Repeat

Numbers = tuple[int, ...]


@dataclass(frozen=True)
class Call:
    """A call that names numbers of channels.

    Attributes:
        tensor: whose dimensions they are; None for the result's.
        asked: one for each dimension on which it names any.
        fits: whether the tensor can be had with these numbers, in the order of ``asked``.
        redo: makes the call with other numbers, in the order of ``asked``.
        rest: what -1, with these numbers, comes to: a wrong number may pass unnoticed; None without -1.
        shape: what a view asks for, all its dimensions; () for calls of other kinds.
    """

    tensor: Tensor | None
    asked: tuple[Repeat, ...]
    fits: Callable[[Sequence[Numbers]], bool]
    redo: Callable[[Sequence[Numbers]], Any]
    rest: Callable[[Sequence[Numbers]], int] | None = None
    shape: Numbers = ()

    def resolved(self, numbers: Sequence[Numbers]) -> Numbers:
        """The shape, with what -1 comes to."""
        rest = -1 if self.rest is None else self.rest(numbers)
        return tuple(rest if size == -1 else size for size in self.shape)

    @property
    def certain(self) -> bool:
        """Whether a call that fits is right as it is."""
        return self.tensor is None and self.rest is None


def read(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Call | None:
    """What ``func(*args, **kwargs)`` names; None if it is no such call."""
    reader = _READERS.get(func)
    return reader(func, args, kwargs) if reader is not None and args else None


def positions(repeat: Repeat) -> Numbers:
    """The places on its dimension that the numbers mean, in rising order."""
    if repeat.kind == "split":
        lengths = repeat.asked if len(repeat.asked) > 1 else _equal(repeat.size, repeat.asked[0])
        return tuple(accumulate(lengths))
    return repeat.asked


def corrected(repeat: Repeat, places: Sequence[int]) -> Numbers:
    """The numbers that mean other places."""
    if repeat.kind == "split":
        return tuple(b - a for a, b in zip([0, *places[:-1]], places, strict=True))
    return tuple(places)


def _equal(size: int, length: int) -> list[int]:
    return [min(length, size - start) for start in range(0, size, length)]


def _ints(values: Sequence[Any]) -> list[int] | None:
    """A shape given as one argument or as many; None where it is no shape."""
    if len(values) == 1 and isinstance(values[0], (tuple, list, torch.Size)):
        values = values[0]
    return list(values) if values and all(isinstance(v, (int, torch.SymInt)) for v in values) else None


def _given(args: Sequence[Any], kwargs: Mapping[str, Any], place: int, name: str, default: Any = None) -> Any:
    return args[place] if len(args) > place else kwargs.get(name, default)


def _sizes(kind: str, shape: Sequence[int], first: int, dims: int) -> tuple[tuple[Repeat, ...], list[int]]:
    """One Repeat for each number of a shape that is not -1, and the places where these stand."""
    where = [i for i, size in enumerate(shape) if isinstance(size, int) and size != -1]
    hole = first + shape.index(-1) if -1 in shape else -1
    return tuple(Repeat(kind, dims, first + i, shape[i], (shape[i],), hole) for i in where), where


def _replaced(shape: Sequence[int], where: Sequence[int], numbers: Sequence[Numbers]) -> tuple[int, ...]:
    result = list(shape)
    for i, (number,) in zip(where, numbers, strict=True):
        result[i] = number
    return tuple(result)


def _fills(count: int, shape: Sequence[int]) -> bool:
    known = math.prod(size for size in shape if size != -1)
    return count == known if -1 not in shape else known > 0 and count % known == 0


def _shaped(
    x_count: int, shape: Sequence[int], redo: Callable[[Any], Any], head: Numbers = (), tail: Numbers = ()
) -> Call:
    """A call that gives ``x_count`` elements a shape, between dimensions that stay as they are."""
    asked, where = _sizes("view", shape, len(head), len(head) + len(shape) + len(tail))

    def rest(numbers: Sequence[Numbers]) -> int:
        return -x_count // math.prod(_replaced(shape, where, numbers))

    return Call(
        None, asked,
        lambda numbers: _fills(x_count, _replaced(shape, where, numbers)),
        lambda numbers: redo(_replaced(shape, where, numbers)),
        rest if -1 in shape else None,
        (*head, *shape, *tail),
    )  # fmt: skip


def _view(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Call | None:
    x, shape = args[0], _ints(args[1:] or tuple(kwargs.values()))
    return None if shape is None else _shaped(x.numel(), shape, x.reshape)


def _unflatten(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Call | None:
    x, shape = args[0], _ints([_given(args, kwargs, 2, "sizes")])
    if shape is None:
        return None
    dim = _given(args, kwargs, 1, "dim") % x.dim()
    head, tail = tuple(x.shape[:dim]), tuple(x.shape[dim + 1 :])
    return _shaped(x.shape[dim], shape, lambda sizes: func(x, dim, sizes), head, tail)


def _expand(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Call | None:
    x, shape = args[0], _ints(args[1:] or tuple(kwargs.values()))
    if shape is None:
        return None
    asked, where = _sizes("view", shape, 0, len(shape))
    old = (1,) * (len(shape) - x.dim()) + tuple(x.shape)

    def fits(numbers: Sequence[Numbers]) -> bool:
        new = _replaced(shape, where, numbers)
        return all(b in (-1, a) or a == 1 for a, b in zip(old, new, strict=True))

    return Call(
        None, asked, fits, lambda numbers: x.expand(_replaced(shape, where, numbers)), shape=tuple(shape)
    )


def _parts(x: Tensor, repeat: Repeat, redo: Callable[[Numbers], Any]) -> Call:
    """Parts of one dimension; what is asked for is looked up by the dimension's size."""
    return Call(x, (repeat,), lambda numbers: True, lambda numbers: redo(numbers[0]))


def _split(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Call | None:
    x, dim = args[0], _given(args, kwargs, 2, "dim", 0) % args[0].dim()
    sizes = args[1] if len(args) > 1 else next(v for k, v in kwargs.items() if k.startswith("split_size"))
    asked = (sizes,) if isinstance(sizes, int) else tuple(sizes)
    repeat = Repeat("split", x.dim(), dim, x.shape[dim], asked)
    return _parts(x, repeat, lambda given: torch.split(x, list(given), dim))


def _narrow(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Call | None:
    x = args[0]
    dim, start, length = (_given(args, kwargs, i, n) for i, n in ((1, "dim"), (2, "start"), (3, "length")))
    if isinstance(start, Tensor):
        return None
    repeat = Repeat("slice", x.dim(), dim % x.dim(), x.shape[dim], (start, start + length))
    return _parts(x, repeat, lambda given: func(x, dim, given[0], given[1] - given[0]))


def _item(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Call | None:
    """``x[..., a:b]``: one slice that is not the whole, with plain numbers."""
    x, index = args[0], args[1] if isinstance(args[1], tuple) else (args[1],)
    if any(isinstance(i, (Tensor, list)) for i in index) or sum(i is Ellipsis for i in index) > 1:
        return None
    takes = sum(i is not None and i is not Ellipsis for i in index)
    cut, dim = [], 0
    for place, i in enumerate(index):
        if i is Ellipsis:
            dim += x.dim() - takes
            continue
        if isinstance(i, slice) and i != slice(None) and i.step in (None, 1):
            cut.append((place, dim, i))
        dim += i is not None
    if len(cut) != 1:
        return None
    ((place, dim, bounds),) = cut
    size = x.shape[dim]
    start, stop = bounds.start or 0, size if bounds.stop is None else bounds.stop
    if not 0 <= start <= stop:
        return None

    def redo(given: Numbers) -> Any:
        new = slice(given[0], None) if len(given) == 1 else slice(*given)
        return func(x, (*index[:place], new, *index[place + 1 :]))

    asked = (start,) if bounds.stop is None else (start, stop)
    return _parts(x, Repeat("slice", x.dim(), dim, size, asked), redo)


def _attention(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Call | None:
    """Without a scale of its own, attention divides by the root of the width: queries make up for it."""
    query, width = args[0], args[0].shape[-1]
    if _given(args, kwargs, 6, "scale") is not None:
        return None
    repeat = Repeat("scale", query.dim(), query.dim() - 1, width, ())

    def redo(numbers: Sequence[Numbers]) -> Any:
        return func(query * math.sqrt(width / numbers[0][0]), *args[1:], **kwargs)

    return Call(query, (repeat,), lambda numbers: True, redo)


_READERS: dict[Any, Callable[[Any, Sequence[Any], Mapping[str, Any]], Call | None]] = {
    torch.Tensor.view: _view,
    torch.Tensor.reshape: _view,
    torch.reshape: _view,
    torch.Tensor.unflatten: _unflatten,
    torch.unflatten: _unflatten,
    torch.Tensor.expand: _expand,
    torch.Tensor.split: _split,
    torch.split: _split,
    torch.Tensor.split_with_sizes: _split,
    torch.split_with_sizes: _split,
    torch.Tensor.narrow: _narrow,
    torch.narrow: _narrow,
    torch.Tensor.__getitem__: _item,
    F.scaled_dot_product_attention: _attention,
}
