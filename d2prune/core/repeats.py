"""Widths that a model's code repeats as numbers: ``x.view(b, n, 3, 12, 64)``, ``x[:, :256]``.

The trace writes down which channels such a number counts; a pruned model corrects it while it runs,
so no source has to be edited. Only calls that would fail, or that name exactly what was written
down, are changed.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, product
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from d2prune.core.types import Correction, Repeat

Numbers = tuple[int, ...]
Key = tuple[str, int, int, int, Numbers]


@dataclass(frozen=True)
class Call:
    """A call that names numbers of channels.

    Attributes:
        tensor: whose dimensions they are; None for the result's.
        asked: one for each dimension on which it names any.
        open: -1 leaves one dimension to be worked out, so a wrong number may pass unnoticed.
        fits: whether the tensor can be had with these numbers, in the order of ``asked``.
        redo: makes the call with other numbers, in the order of ``asked``.
    """

    tensor: Tensor | None
    asked: tuple[Repeat, ...]
    open: bool
    fits: Callable[[Sequence[Numbers]], bool]
    redo: Callable[[Sequence[Numbers]], Any]


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


class Corrections(TorchFunctionMode):
    """Corrects the calls of one module's forward; the module enters and leaves it by hooks.

    Attributes:
        used: which corrections a call has needed so far.
    """

    def __init__(self, corrections: Iterable[Correction]) -> None:
        super().__init__()
        self.used: set[Correction] = set()
        self.table: dict[Key, list[Correction]] = defaultdict(list)
        for correction in corrections:
            self.table[_key(correction.repeat, correction.size)].append(correction)

    def enter(self, module: nn.Module, args: Any) -> None:
        """Forward pre-hook."""
        self.__enter__()  # type: ignore[no-untyped-call]

    def leave(self, module: nn.Module, args: Any, result: Any) -> None:
        """Forward hook, called after an error, too."""
        self.__exit__(None, None, None)  # type: ignore[no-untyped-call]

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        call = read(func, args, kwargs)
        if call is not None:
            asked = [repeat.asked for repeat in call.asked]
            if call.open or not call.fits(asked):
                for chosen in self._choices(call):
                    numbers = [_numbers(c) if isinstance(c, Correction) else c for c in chosen]
                    if numbers != asked and call.fits(numbers):
                        self.used.update(c for c in chosen if isinstance(c, Correction))
                        return call.redo(numbers)
        return func(*args, **kwargs)

    def _choices(self, call: Call) -> Iterator[tuple[Correction | Numbers, ...]]:
        """Every way to correct some of the numbers, most first."""
        known = [self.table.get(_key(repeat, repeat.size), []) for repeat in call.asked]
        if any(known):
            yield from product(*([*k, r.asked] for k, r in zip(known, call.asked, strict=True)))


def install(model: nn.Module, corrections: Mapping[str, Sequence[Correction]]) -> None:
    """Has ``model`` correct these, by the module whose forward names them; earlier ones are replaced."""
    for name, module in model.named_modules():
        _remove(module)
        if name in corrections:
            mode = Corrections(corrections[name])
            module.register_forward_pre_hook(mode.enter)
            module.register_forward_hook(mode.leave, always_call=True)


def needed(model: nn.Module, run: Callable[[nn.Module], object]) -> dict[str, tuple[Correction, ...]]:
    """Those of ``model``'s corrections that ``run(model)`` makes use of; other code follows by itself."""
    modes = _installed(model)
    with torch.no_grad():
        run(model) if modes else None
    used = {name: [c for cs in mode.table.values() for c in cs if c in mode.used] for name, mode in modes}
    return {name: tuple(corrections) for name, corrections in used.items() if corrections}


def _installed(model: nn.Module) -> list[tuple[str, Corrections]]:
    hooks = ((name, h) for name, m in model.named_modules() for h in m._forward_pre_hooks.values())
    return [(name, hook.__self__) for name, hook in hooks if _ours(hook)]


def _ours(hook: Any) -> bool:
    return isinstance(getattr(hook, "__self__", None), Corrections)


def _remove(module: nn.Module) -> None:
    for hooks in (module._forward_pre_hooks, module._forward_hooks):
        for number in [n for n, hook in hooks.items() if _ours(hook)]:
            del hooks[number]
            module._forward_hooks_always_called.pop(number, None)


def _key(repeat: Repeat, size: int) -> Key:
    """A part's numbers mean something only on a dimension of one size; a view makes its dimension."""
    return repeat.kind, repeat.dims, repeat.dim, size if repeat.kind != "view" else 0, repeat.asked


def _numbers(correction: Correction) -> Numbers:
    """What a corrected call is made with: a scale stays that of the old width."""
    return (correction.repeat.size,) if correction.repeat.kind == "scale" else correction.given


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
    return tuple(Repeat(kind, dims, first + i, shape[i], (shape[i],)) for i in where), where


def _replaced(shape: Sequence[int], where: Sequence[int], numbers: Sequence[Numbers]) -> tuple[int, ...]:
    result = list(shape)
    for i, (number,) in zip(where, numbers, strict=True):
        result[i] = number
    return tuple(result)


def _fills(count: int, shape: Sequence[int]) -> bool:
    known = math.prod(size for size in shape if size != -1)
    return count == known if -1 not in shape else known > 0 and count % known == 0


def _view(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Call | None:
    x, shape = args[0], _ints(args[1:] or tuple(kwargs.values()))
    if shape is None:
        return None
    asked, where = _sizes("view", shape, 0, len(shape))
    return Call(
        None, asked, -1 in shape,
        lambda numbers: _fills(x.numel(), _replaced(shape, where, numbers)),
        lambda numbers: x.reshape(_replaced(shape, where, numbers)),
    )  # fmt: skip


def _unflatten(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Call | None:
    x, shape = args[0], _ints([_given(args, kwargs, 2, "sizes")])
    if shape is None:
        return None
    dim = _given(args, kwargs, 1, "dim") % x.dim()
    asked, where = _sizes("view", shape, dim, x.dim() - 1 + len(shape))
    return Call(
        None, asked, -1 in shape,
        lambda numbers: _fills(x.shape[dim], _replaced(shape, where, numbers)),
        lambda numbers: func(x, dim, _replaced(shape, where, numbers)),
    )  # fmt: skip


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
        None, asked, False, fits,
        lambda numbers: x.expand(_replaced(shape, where, numbers)),
    )  # fmt: skip


def _parts(x: Tensor, repeat: Repeat, redo: Callable[[Numbers], Any]) -> Call:
    """Parts of one dimension; what is asked for is looked up by the dimension's size."""
    return Call(x, (repeat,), True, lambda numbers: True, lambda numbers: redo(numbers[0]))


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

    return Call(query, (repeat,), True, lambda numbers: True, redo)


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
