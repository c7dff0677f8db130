"""Specs of version 1, which corrected calls while they ran, by their similarity to calls that were traced.

Nothing writes them any more: :mod:`d2prune.core.literals.settle` has replaced them. Models that were
pruned with them still load and run.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from math import prod
from typing import Any

from torch import nn
from torch.overrides import TorchFunctionMode

from d2prune.core.literals.calls import Call, Numbers, read
from d2prune.core.types import SizeLiteral
from d2prune.errors import PruneError

Key = tuple[str, int, int, int, int, Numbers]
_MOST_WAYS = 10_000  # trying them takes a tenth of a second; specs of real models have fewer than a hundred


@dataclass(frozen=True)
class Correction:
    """The correction of a size literal in a pruned model's code.

    Attributes:
        literal: the literal, as traced.
        size: the pruned size of its dimension.
        new: the numbers that replace the literal's.
        full_shape: the whole shape that the view asked for, with the size that -1 stood for.
        other_shapes: shapes of views of the same module in which the same number means something else.
    """

    literal: SizeLiteral
    size: int
    new: Numbers
    full_shape: Numbers = ()
    other_shapes: tuple[Numbers, ...] = ()

    def to_row(self) -> list[Any]:
        """Return the correction as plain data."""
        r = self.literal
        shapes = [list(self.full_shape), [list(shape) for shape in self.other_shapes]]
        return [
            r.kind,
            r.dims,
            r.dim,
            r.size,
            list(r.numbers),
            r.inferred_dim,
            *shapes,
            self.size,
            list(self.new),
        ]

    @classmethod
    def from_row(cls, row: Sequence[Any]) -> Correction:
        """Read the list of :meth:`to_row`; raise TypeError or ValueError for anything else."""
        kind, dims, dim, size, numbers, inferred, full, others, now, new = row
        values = (
            dims,
            dim,
            size,
            inferred,
            now,
            *numbers,
            *full,
            *new,
            *(n for shape in others for n in shape),
        )
        if any(type(n) is not int for n in values):
            raise TypeError(f"{row!r} holds numbers that are no integers")
        literal = SizeLiteral(str(kind), dims, dim, size, tuple(numbers), inferred)
        return cls(literal, now, tuple(new), tuple(full), tuple(tuple(shape) for shape in others))


class Corrections(TorchFunctionMode):
    """A function mode that corrects the calls in one module's ``forward``, entered and left by hooks."""

    def __init__(self, corrections: Iterable[Correction]) -> None:
        super().__init__()
        self.table: dict[Key, list[Correction]] = defaultdict(list)
        for correction in corrections:
            self.table[_key(correction.literal, correction.size)].append(correction)

    def enter(self, module: nn.Module, args: Any) -> None:
        """Enter the mode, as a forward pre-hook."""
        self.__enter__()  # type: ignore[no-untyped-call]

    def leave(self, module: nn.Module, args: Any, result: Any) -> None:
        """Leave the mode, as a forward hook that is called after an error, too."""
        self.__exit__(None, None, None)  # type: ignore[no-untyped-call]

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        call = read(func, args, kwargs)
        if call is not None:
            if not (_certain(call) and call.fits([literal.numbers for literal in call.literals])):
                way = max(self._ways(call), key=lambda way: way[0], default=None)
                if way is not None:
                    _, chosen, numbers = way
                    return call.redo(numbers)
        return func(*args, **kwargs)

    def _ways(self, call: Call) -> Iterator[tuple[tuple[Any, ...], list[Correction], list[Numbers]]]:
        """Yield every way to correct some of the numbers: its rank, corrections and new numbers.

        Ways rank by the similarity of this view to those traced, then by how many numbers they correct,
        then by how far back these are: of (..., 3, 3, 32), heads are the second 3, because a stacked
        dimension stands in front of what was stacked.
        """
        known = [self._known(call, place) for place in range(len(call.literals))]
        asked = [literal.numbers for literal in call.literals]
        if prod(len(corrections) + 1 for corrections in known) > _MOST_WAYS:
            raise PruneError(
                f"the spec corrects a call in more than {_MOST_WAYS} ways; expected one that d2prune wrote"
            )
        for way in product(*([*k, None] for k in known)) if any(known) else ():
            numbers = [a if c is None else _numbers(c) for a, c in zip(asked, way, strict=True)]
            if numbers != asked and call.fits(numbers):
                shape, chosen = _resolved(call, numbers), [c for c in way if c is not None]
                likeness = [_alike(c.full_shape, shape) for c in chosen]
                if all(like >= _most(c, shape) for c, like in zip(chosen, likeness, strict=True)):
                    changed = [c is not None for c in reversed(way)]
                    yield (sum(likeness) / len(chosen), len(chosen), changed), chosen, numbers

    def _known(self, call: Call, place: int) -> list[Correction]:
        """Return the corrections of a literal; for a view also of a factor of it (heads times images)."""
        literal = call.literals[place]
        found = self.table.get(_key(literal, literal.size), [])
        if not found and literal.kind == "view":
            where, size = _key(literal, 0)[:4], literal.size
            alike = [c for key, corrections in self.table.items() if key[:4] == where for c in corrections]
            parts = [c for c in alike if size * c.size % c.literal.size == 0]
            found = [replace(c, new=(size * c.size // c.literal.size,)) for c in parts]
            if _read_off(call, place, found):
                return []
        likeliest = sorted(found, key=lambda c: _alike(c.full_shape, call.shape))
        return list({c.new: c for c in likeliest}.values())


def _resolved(call: Call, numbers: Sequence[Numbers]) -> Numbers:
    """Return a view's shape, with the size that -1 stands for."""
    inferred = -1 if call.inferred is None else call.inferred(numbers)
    return tuple(inferred if size == -1 else size for size in call.shape)


def _certain(call: Call) -> bool:
    """Return whether a call that fits is right as it is."""
    return call.tensor is None and call.inferred is None


def _alike(one: Numbers, two: Numbers) -> int:
    """Return the number of dimensions in which two shapes agree."""
    return sum(a == b for a, b in zip(one, two, strict=False))


def _most(correction: Correction, shape: Numbers) -> int:
    """Return how similar ``shape`` is to a view in which the number means something else."""
    return max((_alike(other, shape) for other in correction.other_shapes), default=0)


def _read_off(call: Call, place: int, parts: Sequence[Correction]) -> bool:
    """Return whether a number was more likely read from a tensor, and so is right already.

    That is so if -1 stands for the traced size with the number as it is, and not with it corrected.
    """
    asked = [literal.numbers for literal in call.literals]
    others = [[*asked[:place], c.new, *asked[place + 1 :]] for c in parts]
    if call.inferred is None or not all(call.fits(numbers) for numbers in (asked, *others)):
        return False

    def likeness(part: Correction, numbers: Sequence[Numbers]) -> int:
        dim, now, then = part.literal.dim, _resolved(call, numbers), part.full_shape
        return _alike(then[:dim] + then[dim + 1 :], now[:dim] + now[dim + 1 :])

    as_it_is = [likeness(part, asked) for part in parts]
    changed = [likeness(part, numbers) for part, numbers in zip(parts, others, strict=True)]
    return max(as_it_is, default=0) > max(changed, default=0)


def install(model: nn.Module, corrections: Mapping[str, Sequence[Correction]]) -> None:
    """Hook ``corrections``, by module, into ``model`` in place; earlier ones are removed."""
    for name, module in model.named_modules():
        _remove(module)
        if name in corrections:
            mode = Corrections(corrections[name])
            module.register_forward_pre_hook(mode.enter)
            module.register_forward_hook(mode.leave, always_call=True)


def _ours(hook: Any) -> bool:
    return isinstance(getattr(hook, "__self__", None), Corrections)


def _remove(module: nn.Module) -> None:
    for hooks in (module._forward_pre_hooks, module._forward_hooks):
        for number in [n for n, hook in hooks.items() if _ours(hook)]:
            del hooks[number]
            module._forward_hooks_always_called.pop(number, None)


def _key(literal: SizeLiteral, size: int) -> Key:
    """Return the key of a literal; the size of its dimension is part of it, except for views."""
    known = size if literal.kind != "view" else 0
    return literal.kind, literal.dims, literal.dim, literal.inferred_dim, known, literal.numbers


def _numbers(correction: Correction) -> Numbers:
    """Return the numbers to make a corrected call with: for a scale the old width, else the new ones."""
    return (correction.literal.size,) if correction.literal.kind == "scale" else correction.new
