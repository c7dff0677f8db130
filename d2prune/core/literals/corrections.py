"""Widths that a model's code repeats as numbers: ``x.view(b, n, 3, 12, 64)``, ``x[:, :256]``.

The trace writes down which channels such a number counts; a pruned model corrects it while it runs,
so no source has to be edited. Only calls that would fail, or that name exactly what was written
down, are changed.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import product
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from d2prune.core.literals.calls import Call, Numbers, read
from d2prune.core.types import Correction, Repeat

Key = tuple[str, int, int, int, int, Numbers]


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
            if not (call.certain and call.fits([repeat.asked for repeat in call.asked])):
                way = max(self._ways(call), key=lambda way: way[0], default=None)
                if way is not None:
                    _, chosen, numbers = way
                    self.used.update(chosen)
                    return call.redo(numbers)
        return func(*args, **kwargs)

    def _ways(self, call: Call) -> Iterator[tuple[tuple[Any, ...], list[Correction], list[Numbers]]]:
        """Every way to correct some of the numbers, how likely it is first.

        That is: how like this one the views were that named them; how many they are; and of as many
        those further back: of (..., 3, 3, 32), heads are the second 3: what was stacked stands in front
        of what it was made of.
        """
        known = [self._known(call, place) for place in range(len(call.asked))]
        asked = [repeat.asked for repeat in call.asked]
        for way in product(*([*k, None] for k in known)) if any(known) else ():
            numbers = [a if c is None else _numbers(c) for a, c in zip(asked, way, strict=True)]
            if numbers != asked and call.fits(numbers):
                shape, chosen = call.resolved(numbers), [c for c in way if c is not None]
                likeness = [_alike(c.repeat.beside, shape) for c in chosen]
                if all(like >= _most(c.repeat, shape) for c, like in zip(chosen, likeness, strict=True)):
                    changed = [c is not None for c in reversed(way)]
                    yield (sum(likeness) / len(chosen), len(chosen), changed), chosen, numbers

    def _known(self, call: Call, place: int) -> list[Correction]:
        """Those of a number; of a view also those of its parts: heads times pictures may be one size."""
        repeat = call.asked[place]
        found = self.table.get(_key(repeat, repeat.size), [])
        if not found and repeat.kind == "view":
            where, size = _key(repeat, 0)[:4], repeat.size
            alike = [c for key, corrections in self.table.items() if key[:4] == where for c in corrections]
            parts = [c for c in alike if size * c.size % c.repeat.size == 0]
            found = [replace(c, given=(size * c.size // c.repeat.size,)) for c in parts]
            if _read_off(call, place, found):
                return []
        likeliest = sorted(found, key=lambda c: _alike(c.repeat.beside, call.shape))
        return list({c.given: c for c in likeliest}.values())


def _alike(one: Numbers, two: Numbers) -> int:
    """In how many dimensions two shapes agree."""
    return sum(a == b for a, b in zip(one, two, strict=False))


def _most(repeat: Repeat, shape: Numbers) -> int:
    """How like ``shape`` is to a view that names the number for something else."""
    return max((_alike(other, shape) for other in repeat.unlike), default=0)


def _read_off(call: Call, place: int, parts: Sequence[Correction]) -> bool:
    """Whether a number is likelier read off a tensor, and right, than a part of one that was named.

    With it as it is, -1 comes to what it came to where that was named; corrected it does not.
    """
    asked = [repeat.asked for repeat in call.asked]
    others = [[*asked[:place], c.given, *asked[place + 1 :]] for c in parts]
    if call.rest is None or not all(call.fits(numbers) for numbers in (asked, *others)):
        return False

    def likeness(part: Correction, numbers: Sequence[Numbers]) -> int:
        dim, now, then = part.repeat.dim, call.resolved(numbers), part.repeat.beside
        return _alike(then[:dim] + then[dim + 1 :], now[:dim] + now[dim + 1 :])

    as_it_is = [likeness(part, asked) for part in parts]
    changed = [likeness(part, numbers) for part, numbers in zip(parts, others, strict=True)]
    return max(as_it_is, default=0) > max(changed, default=0)


def install(model: nn.Module, corrections: Mapping[str, Sequence[Correction]]) -> None:
    """Has ``model`` correct these, by the module whose forward names them; earlier ones are replaced."""
    for name, module in model.named_modules():
        _remove(module)
        if name in corrections:
            mode = Corrections(corrections[name])
            module.register_forward_pre_hook(mode.enter)
            module.register_forward_hook(mode.leave, always_call=True)


def needed(model: nn.Module, run: Callable[[nn.Module], object]) -> dict[str, tuple[Correction, ...]]:
    """Those of ``model``'s corrections that ``run(model)`` makes use of; other code follows by itself.

    With each of them those of the same number in other views: they tell what else it may not mean.
    """
    modes = _installed(model)
    with torch.no_grad():
        run(model) if modes else None
    used = {}
    for name, mode in modes:
        keys = {_key(c.repeat, c.size) for c in mode.used}
        used[name] = [c for key, corrections in mode.table.items() for c in corrections if key in keys]
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
    known = size if repeat.kind != "view" else 0
    return repeat.kind, repeat.dims, repeat.dim, repeat.hole, known, repeat.asked


def _numbers(correction: Correction) -> Numbers:
    """What a corrected call is made with: a scale stays that of the old width."""
    return (correction.repeat.size,) if correction.repeat.kind == "scale" else correction.given
