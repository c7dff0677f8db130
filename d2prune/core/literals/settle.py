"""The numbers of a pruned model's code brought in line with its widths.

What a number must become is known from the trace. Most numbers come from an integer attribute of a module:
that is set. What attention derives from a width is made up for in the weights that make the keys. What
neither explains is changed in the module's code, at the one call that names it.
"""

from __future__ import annotations

import logging
import math
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from d2prune.core.literals.calls import Call, NumberedCalls, Numbers, following_path, numbers_for, positions
from d2prune.core.literals.scales import Ranges, as_ranges, asking_gradients, rows_behind, scale_rows
from d2prune.core.literals.sites import (
    CallChange,
    UnchangeableError,
    change_code,
    changed_class,
    frames_of_call,
    locate,
)
from d2prune.core.literals.tracked import Attribute, Expression, attributes_in, evaluate, expression_of
from d2prune.core.types import CallKey, PrunePlan, SizeLiteral
from d2prune.errors import MISFITS, PruneError

logger = logging.getLogger(__name__)
Outputs = Mapping[str, Tensor]
Run = Callable[[nn.Module], Outputs]
Attributes = Mapping[str, Mapping[str, tuple[int, int]]]
CLOSE = 1e-4  # of an output's largest value, in float32


@dataclass(frozen=True)
class CodeChanges:
    """What must change in a model besides its weights' widths, as plain data.

    Attributes:
        attributes: by module, its integer attributes that are set: (before, after).
        scales: by layer, ranges of its output channels whose weights are multiplied: (start, stop, factor).
        calls: by module, the calls in its code that are made with other numbers.
    """

    attributes: Attributes = field(default_factory=dict)
    scales: Mapping[str, Ranges] = field(default_factory=dict)
    calls: Mapping[str, tuple[CallChange, ...]] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.attributes or self.scales or self.calls)


@dataclass(frozen=True)
class NewNumbers:
    """What the numbers of one literal become.

    Attributes:
        literal: as the trace has seen it.
        size: of its dimension now.
        numbers: now.
        producers: the layers that make its channels.
    """

    literal: SizeLiteral
    size: int
    numbers: Numbers
    producers: tuple[str, ...]

    @property
    def scale(self) -> float:
        """What makes up for attention's own scale: keys are to be multiplied by it."""
        return math.sqrt(self.size / self.literal.size) if self.literal.kind == "scale" else 1

    @property
    def made_with(self) -> Numbers:
        """What a corrected call is made with: a scale stays that of the old width."""
        return (self.literal.size,) if self.literal.kind == "scale" else self.numbers


Wanted = Mapping[CallKey, Mapping[int, NewNumbers]]  # by call and dimension


def new_numbers(plan: PrunePlan) -> Wanted:
    """What the numbers that name channels become with ``plan``, those that stay as they are included."""
    gone: dict[tuple[CallKey, SizeLiteral], set[int]] = defaultdict(set)
    makers: dict[tuple[CallKey, SizeLiteral], tuple[str, ...]] = defaultdict(tuple)
    for group, kept in zip(plan.groups, plan.kept, strict=True):
        removed = sorted(set(range(group.units)) - set(kept.tolist()))
        for use in group.literals:
            gone[use.key] |= set(use.indices[removed].ravel().tolist())
            makers[use.key] += group.producers
    wanted: dict[CallKey, dict[int, NewNumbers]] = defaultdict(dict)
    for (call, literal), lost in gone.items():
        places = [int(p) - sum(g < p for g in lost) for p in positions(literal)]
        numbers = numbers_for(literal, places)
        wanted[call][literal.dim] = NewNumbers(
            literal, literal.size - len(lost), numbers, makers[call, literal]
        )
    return wanted


def settle(model: nn.Module, wanted: Wanted, run: Run) -> CodeChanges:
    """Find what must change in ``model`` for its code to name the numbers that are wanted.

    Args:
        model: a copy, its layers cut, in float32 and eval mode; it is left with the changes made.
        wanted: from :func:`new_numbers`.
        run: gives the model's outputs by name.

    Raises:
        PruneError: where no attribute explains a number and its call can't be changed.
    """
    if all(new.numbers == new.literal.numbers and new.size == new.literal.size for new in _all(wanted)):
        return CodeChanges()
    return _Settling(model, wanted, run).changes()


def set_attributes(model: nn.Module, attributes: Attributes) -> None:
    """Set integer attributes of modules to their second values."""
    for path, values in attributes.items():
        for name, (_, after) in values.items():
            setattr(model.get_submodule(path), name, after)


def check_changes(model: nn.Module, changes: CodeChanges) -> None:
    """Raise PruneError where ``model`` is not one that ``changes`` were made for."""
    modules = dict(model.named_modules())
    for path in (*changes.attributes, *changes.scales, *changes.calls):
        if path not in modules:
            kind = type(model).__name__
            raise PruneError(f"the pruning spec changes '{path}', which this {kind} does not have")
    for path, values in changes.attributes.items():
        for name, (before, _) in values.items():
            found = getattr(modules[path], name, None)
            if found != before:
                raise PruneError(
                    f"attribute {name} of '{path}' is {found}; the pruning spec was made for {before}"
                )
    for path, calls in changes.calls.items():
        changed_class(modules[path], calls)


def apply_changes(model: nn.Module, changes: CodeChanges) -> None:
    """Make all changes; those of calls replace earlier ones."""
    set_attributes(model, changes.attributes)
    for path, ranges in changes.scales.items():
        scale_rows(model.get_submodule(path), ranges)
    for path, calls in changes.calls.items():
        change_code(model.get_submodule(path), calls)


@dataclass
class _Wrong:
    """A call that names other numbers than are wanted: by place, what it should name."""

    numbers: dict[int, float]
    change: CallChange | UnchangeableError | None


class _Settling:
    """The outputs that are right are those of a run in which every call gets its numbers from the trace."""

    def __init__(self, model: nn.Module, wanted: Wanted, run: Run) -> None:
        self._model, self._wanted, self._run = model, wanted, run
        self._right, self._wrong = self._corrected()

    def changes(self) -> CodeChanges:
        attributes = self._attributes() if self._wrong else {}
        scales = self._scales()
        self._right, wrong = self._corrected(locating=True, scaled=bool(scales))
        calls = _calls_changed(wrong)
        changes = CodeChanges(attributes, scales, calls)
        apply_changes(self._model, CodeChanges(calls=calls))
        if changes and not self._close(self._plain()):
            raise PruneError("numbers in the model's code can't be corrected: its outputs then differ")
        return changes

    def _corrected(
        self, locating: bool = False, scaled: bool = False
    ) -> tuple[Outputs, dict[CallKey, _Wrong]]:
        """Run with every call corrected: the outputs, and the calls that needed it."""
        path = [""]
        calls = _Corrected(path, self._wanted, locating, self._scaled() if scaled else set())
        with torch.no_grad(), following_path(self._model, path), calls:
            return dict(self._run(self._model)), calls.wrong

    def _plain(self) -> Outputs:
        with torch.no_grad():
            return dict(self._run(self._model))

    def _close(self, outputs: Outputs) -> bool:
        pairs = [(self._right[name], outputs[name]) for name in self._right]
        return all(
            a.shape == b.shape and bool((a - b).abs().max() <= CLOSE * a.abs().max()) for a, b in pairs
        )

    def _attributes(self) -> dict[str, dict[str, tuple[int, int]]]:
        """Set what explains wrong numbers and leaves the outputs right, name by name."""
        accepted: dict[str, dict[str, tuple[int, int]]] = {}
        solved = self._solved()
        for name in dict.fromkeys(name for _, name in solved):
            some = {p: {n: v} for (p, n), v in solved.items() if n == name}
            if self._stands(some):
                for path, values in some.items():
                    accepted.setdefault(path, {}).update(values)
        return accepted

    def _stands(self, attributes: Attributes) -> bool:
        """Whether the outputs stay right with these set; else they are set back."""
        set_attributes(self._model, attributes)
        try:
            if self._close(self._corrected()[0]):
                return True
        except MISFITS:
            pass
        back = {p: {n: (b, a) for n, (a, b) in values.items()} for p, values in attributes.items()}
        set_attributes(self._model, back)
        return False

    def _solved(self) -> dict[Attribute, tuple[int, int]]:
        """Attributes whose one new value makes all numbers right that are worked out from them."""
        uses = _uses(self._wanted)
        leaves = sorted(
            {leaf for one, _ in uses for leaf in attributes_in(one)}, key=lambda leaf: _indirect(leaf, uses)
        )
        before = {(p, n): int(self._model.get_submodule(p).__dict__[n]) for p, n in leaves}
        values = dict(before)
        for leaf in leaves:
            mine = [(one, new) for one, new in uses if leaf in attributes_in(one)]
            fitting = (v for v in _trials(leaf, mine, values[leaf]) if _fits(mine, {**values, leaf: v}))
            values[leaf] = next(fitting, values[leaf])
        return {leaf: (before[leaf], after) for leaf, after in values.items() if after != before[leaf]}

    def _scaled(self) -> set[CallKey]:
        """Attention calls whose heads have become narrower."""
        return {key for key, news in self._wanted.items() for new in news.values() if new.scale != 1}

    def _scales(self) -> dict[str, Ranges]:
        scales = self._ranges()
        kept = {path: self._model.get_submodule(path)._parameters.copy() for path in scales}
        for path, ranges in scales.items():
            scale_rows(self._model.get_submodule(path), ranges)
        if scales and self._close(self._corrected(scaled=True)[0]):
            return scales
        for path, parameters in kept.items():
            self._model.get_submodule(path)._parameters.update(parameters)
        return {}

    def _ranges(self) -> dict[str, Ranges]:
        """The rows of weights that make the keys of narrower heads, with the factors that these need."""
        news = {key: next(iter(self._wanted[key].values())) for key in self._scaled()}
        names = dict.fromkeys(name for new in news.values() for name in new.producers)
        weights = {name: self._model.get_submodule(name).get_parameter("weight") for name in names}
        path = [""]
        calls = _Corrected(path, self._wanted)
        with asking_gradients(weights.values()), following_path(self._model, path), calls:
            self._run(self._model)
            factors = {name: [1.0] * len(weight) for name, weight in weights.items()}
            for key, new in news.items():
                mine = {name: weights[name] for name in new.producers}
                for name, rows in rows_behind(calls.keys[key], mine).items():
                    factors[name] = [
                        new.scale if row else f for f, row in zip(factors[name], rows, strict=True)
                    ]
        return {name: ranges for name, values in factors.items() if (ranges := as_ranges(values))}


class _Corrected(NumberedCalls):
    """Makes every call with the numbers that are wanted, and notes those that would not have been."""

    def __init__(
        self, path: list[str], wanted: Wanted, locating: bool = False, scaled: Collection[CallKey] = ()
    ) -> None:
        super().__init__(path)
        self.keys: dict[CallKey, Tensor] = {}
        self.wrong: dict[CallKey, _Wrong] = {}
        self._wanted, self._locating, self._scaled = wanted, locating, scaled

    def make(self, key: CallKey, call: Call, redo: Callable[[], Any]) -> Any:
        if call.key is not None:
            self.keys[key] = call.key
        news = {} if key in self._scaled else self._wanted.get(key, {})
        numbers = [news[one.dim].made_with if one.dim in news else _named(one) for one in call.literals]
        changed = [
            i
            for i, (one, new) in enumerate(zip(call.literals, numbers, strict=True))
            if _named(one) != tuple(new)
        ]
        if not changed:
            return redo()
        places = _places(call, numbers, changed)
        self.wrong[key] = _Wrong(places, _located(places) if self._locating else None)
        return call.redo(numbers)


def _named(literal: SizeLiteral) -> Numbers:
    """What a call names as the code has it; of attention the width that its scale is derived from."""
    return (literal.size,) if literal.kind == "scale" else tuple(literal.numbers)


def _located(places: Mapping[int, float]) -> CallChange | UnchangeableError:
    try:
        return locate(frames_of_call(), list(places.items()))
    except UnchangeableError as error:
        return error


def _places(call: Call, numbers: Sequence[Numbers], changed: Sequence[int]) -> dict[int, float]:
    if call.places:
        return {call.places[i]: numbers[i][0] for i in changed}
    (literal,), (new,) = call.literals, numbers
    if literal.kind == "scale":
        return {0: new[0] ** -0.5}
    return dict(enumerate(new))


def _calls_changed(wrong: Mapping[CallKey, _Wrong]) -> dict[str, tuple[CallChange, ...]]:
    found: dict[str, dict[CallChange, CallChange]] = defaultdict(dict)
    for (module, _), one in wrong.items():
        if not isinstance(one.change, CallChange):
            raise PruneError(f"a number in the code of '{module}' can't be changed: {one.change}")
        known = found[module].setdefault(replace(one.change, numbers=()), one.change)
        if known != one.change:
            raise PruneError(f"'{known.text}' in the code of {module} would need several numbers at once")
    return {module: tuple(changes.values()) for module, changes in found.items()}


def _all(wanted: Wanted) -> Iterator[NewNumbers]:
    return (new for news in wanted.values() for new in news.values())


Uses = Sequence[tuple[Expression, int | None]]


def _uses(wanted: Wanted) -> list[tuple[Expression, int | None]]:
    """How each number is worked out that comes from attributes, and what it must come to; None: not one."""
    uses: dict[tuple[Expression, int | None], None] = {}
    for new in _all(wanted):
        numbers: Sequence[int | None] = new.numbers
        if len(numbers) != len(new.literal.numbers):
            numbers = [None] * len(new.literal.numbers)
        for old, number in zip(new.literal.numbers, numbers, strict=True):
            if attributes_in(expression_of(old)):
                uses[expression_of(old), number] = None
    return list(uses)


def _indirect(leaf: Attribute, uses: Uses) -> tuple[bool, Attribute]:
    return all(expression != leaf for expression, _ in uses), leaf


def _trials(leaf: Attribute, uses: Uses, before: int) -> Iterable[int]:
    """Values to try: what is named directly, or those near by."""
    direct = [new for expression, new in uses if expression == leaf and new is not None]
    return direct[:1] or range(1, 2 * before)


def _fits(uses: Uses, values: Mapping[Attribute, int]) -> bool:
    try:
        return all(evaluate(expression, values) == new for expression, new in uses)
    except ZeroDivisionError:
        return False
