"""Calls with size literals: which literals they have, and how to make them with other numbers."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from d2prune.core.literals.tracked import Expression, attributes_in, expression_of
from d2prune.core.types import CallKey, SizeLiteral

Numbers = tuple[int, ...]


@dataclass(frozen=True)
class Call:
    """A call with size literals.

    Attributes:
        tensor: the tensor whose dimensions the literals refer to; None for the result.
        literals: one for each dimension that the call gives numbers for.
        redo: makes the call with other numbers, in the order of ``literals``.
        fits: returns whether the call is possible with these numbers, in the same order.
        inferred: returns the size that -1 stands for with these numbers; None without -1.
        shape: the whole shape that a view asks for; () for other kinds of calls.
        places: for a view, the index of each literal among the sizes in its arguments.
        key: for attention, its key tensor.
    """

    tensor: Tensor | None
    literals: tuple[SizeLiteral, ...]
    redo: Callable[[Sequence[Numbers]], Any]
    fits: Callable[[Sequence[Numbers]], bool] = lambda numbers: True
    inferred: Callable[[Sequence[Numbers]], int] | None = None
    shape: Numbers = ()
    places: Numbers = ()
    key: Tensor | None = None


class NumberedCalls(TorchFunctionMode):
    """A function mode that reads size literals, and counts the calls of each module that can have any.

    Args:
        path: names of the modules whose ``forward`` runs, the innermost last (:func:`following_path`).
    """

    def __init__(self, path: list[str]) -> None:
        super().__init__()
        self._path = path
        self._made: Counter[str] = Counter()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func not in _READERS or not args:
            return func(*args, **kwargs)
        module = self._path[-1]
        key = (module, self._made[module])
        self._made[module] += 1
        call = read(func, args, kwargs)
        return func(*args, **kwargs) if call is None else self.make(key, call, lambda: func(*args, **kwargs))

    def make(self, key: CallKey, call: Call, redo: Callable[[], Any]) -> Any:
        """Make the call and return its result; ``redo()`` makes it as it is in the code."""
        raise NotImplementedError


@contextmanager
def following_path(model: nn.Module, path: list[str]) -> Iterator[None]:
    """Keep in ``path`` the names of the modules of ``model`` whose ``forward`` runs, innermost last."""

    def leave(*_: Any) -> None:
        path.pop()

    hooks: list[Any] = []
    for name, module in model.named_modules():
        hooks.append(module.register_forward_pre_hook(lambda *_, name=name: path.append(name)))
        hooks.append(module.register_forward_hook(leave))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def read(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Call | None:
    """Read the size literals of ``func(*args, **kwargs)``; return None if it has none."""
    reader = _READERS.get(func)
    return reader(func, args, kwargs) if reader is not None and args else None


def positions(literal: SizeLiteral) -> Numbers:
    """Return the positions on its dimension that the numbers stand for, in ascending order."""
    if literal.kind == "split":
        lengths = literal.numbers if len(literal.numbers) > 1 else _equal(literal.size, literal.numbers[0])
        return tuple(accumulate(lengths))
    return literal.numbers


def numbers_for(literal: SizeLiteral, places: Sequence[int]) -> Numbers:
    """Return the numbers that stand for other positions; a split by one length keeps one if it can."""
    if literal.kind != "split":
        return tuple(places)
    lengths = tuple(b - a for a, b in zip([0, *places[:-1]], places, strict=True))
    one = len(literal.numbers) == 1 and len(set(lengths[:-1])) <= 1 and lengths[-1] <= lengths[0]
    return lengths[:1] if one else lengths


def counted_by(
    literal: SizeLiteral, ids: NDArray[np.int64]
) -> Iterator[tuple[Expression, NDArray[np.int64]]]:
    """Yield, for each number worked out from attributes, its expression and the labels that it counts."""
    ends = positions(literal)
    starts = (0, *ends[:-1]) if literal.kind == "split" else (0,) * len(ends)
    numbers = literal.numbers if len(literal.numbers) == len(ends) else literal.numbers * len(ends)
    for number, start, end in zip(numbers, starts, ends, strict=True):
        expression = expression_of(number)
        if attributes_in(expression):
            yield expression, ids[start:end]


def _equal(size: int, length: int) -> list[int]:
    return [min(length, size - start) for start in range(0, size, length)]


def _ints(values: Sequence[Any]) -> list[int] | None:
    """Return a shape that was given as one argument or as several; None if it is no shape."""
    if len(values) == 1 and isinstance(values[0], (tuple, list, torch.Size)):
        values = values[0]
    return list(values) if values and all(isinstance(v, (int, torch.SymInt)) for v in values) else None


def _given(args: Sequence[Any], kwargs: Mapping[str, Any], place: int, name: str, default: Any = None) -> Any:
    return args[place] if len(args) > place else kwargs.get(name, default)


def _sizes(
    kind: str, shape: Sequence[int], first: int, dims: int
) -> tuple[tuple[SizeLiteral, ...], list[int]]:
    """Return a ``SizeLiteral`` for each number of a shape that is not -1, and their indices in it."""
    where = [i for i, size in enumerate(shape) if isinstance(size, int) and size != -1]
    inferred = first + shape.index(-1) if -1 in shape else -1
    return tuple(SizeLiteral(kind, dims, first + i, shape[i], (shape[i],), inferred) for i in where), where


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
    """Return a call that gives ``x_count`` elements a shape, between dimensions that do not change."""
    literals, where = _sizes("view", shape, len(head), len(head) + len(shape) + len(tail))

    def inferred(numbers: Sequence[Numbers]) -> int:
        return -x_count // math.prod(_replaced(shape, where, numbers))

    return Call(
        None, literals,
        lambda numbers: redo(_replaced(shape, where, numbers)),
        lambda numbers: _fills(x_count, _replaced(shape, where, numbers)),
        inferred if -1 in shape else None,
        (*head, *shape, *tail), tuple(where),
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
    literals, where = _sizes("view", shape, 0, len(shape))
    old = (1,) * (len(shape) - x.dim()) + tuple(x.shape)

    def fits(numbers: Sequence[Numbers]) -> bool:
        new = _replaced(shape, where, numbers)
        return all(b in (-1, a) or a == 1 for a, b in zip(old, new, strict=True))

    return Call(
        None, literals, lambda numbers: x.expand(_replaced(shape, where, numbers)), fits,
        shape=tuple(shape), places=tuple(where),
    )  # fmt: skip


def _parts(x: Tensor, literal: SizeLiteral, redo: Callable[[Numbers], Any]) -> Call:
    """Return a call that takes parts of one dimension of ``x``."""
    return Call(x, (literal,), lambda numbers: redo(numbers[0]))


def _split(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Call | None:
    x, dim = args[0], _given(args, kwargs, 2, "dim", 0) % args[0].dim()
    sizes = args[1] if len(args) > 1 else next(v for k, v in kwargs.items() if k.startswith("split_size"))
    numbers = (sizes,) if isinstance(sizes, int) else tuple(sizes)
    literal = SizeLiteral("split", x.dim(), dim, x.shape[dim], numbers)
    return _parts(x, literal, lambda new: torch.split(x, new[0] if len(new) == 1 else list(new), dim))


def _narrow(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Call | None:
    x = args[0]
    dim, start, length = (_given(args, kwargs, i, n) for i, n in ((1, "dim"), (2, "start"), (3, "length")))
    if isinstance(start, Tensor):
        return None
    literal = SizeLiteral("slice", x.dim(), dim % x.dim(), x.shape[dim], (start, start + length))
    return _parts(x, literal, lambda new: func(x, dim, new[0], new[1] - new[0]))


def _item(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Call | None:
    """Read ``x[..., a:b]`` with exactly one slice that is not the whole dimension, and step 1."""
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
    start, stop = (n if n is None or n >= 0 else n + size for n in (bounds.start or 0, bounds.stop))
    if start < 0 or stop is not None and start > stop:
        return None

    def redo(numbers: Numbers) -> Any:
        new = slice(numbers[0], None) if len(numbers) == 1 else slice(*numbers)
        return func(x, (*index[:place], new, *index[place + 1 :]))

    numbers = (start,) if stop is None else (start, stop)
    return _parts(x, SizeLiteral("slice", x.dim(), dim, size, numbers), redo)


def _attention(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Call | None:
    """Read attention without ``scale``; ``redo`` scales the queries as for the given width."""
    query, width = args[0], args[0].shape[-1]
    if _given(args, kwargs, 6, "scale") is not None:
        return None
    literal = SizeLiteral("scale", query.dim(), query.dim() - 1, width, ())

    def redo(numbers: Sequence[Numbers]) -> Any:
        return func(query * math.sqrt(width / numbers[0][0]), *args[1:], **kwargs)

    return Call(query, (literal,), redo, key=_given(args, kwargs, 1, "key"))


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
