"""The numbers that a model's code must have under a plan, and the attributes that would make them so."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from d2prune.core.literals.calls import Numbers, numbers_for, positions
from d2prune.core.literals.tracked import Attribute, Expression, attributes_in, evaluate, expression_of
from d2prune.core.types import CallKey, PrunePlan, SizeLiteral


@dataclass(frozen=True)
class NewNumbers:
    """The new numbers of one literal.

    Attributes:
        literal: the literal, as traced.
        size: the new size of its dimension.
        numbers: the new numbers.
        producers: paths of the layers that make its channels.
    """

    literal: SizeLiteral
    size: int
    numbers: Numbers
    producers: tuple[str, ...]

    @property
    def unchanged(self) -> bool:
        """Whether the code may name what it named."""
        return self.numbers == self.literal.numbers and self.scale == 1

    @property
    def scale(self) -> float:
        """The factor on the keys that keeps attention's scale; 1 for other kinds of literals."""
        return math.sqrt(self.size / self.literal.size) if self.literal.kind == "scale" else 1

    @property
    def made_with(self) -> Numbers:
        """The numbers to make a corrected call with: for a scale the old width, else the new ones."""
        return (self.literal.size,) if self.literal.kind == "scale" else self.numbers


Wanted = Mapping[CallKey, Mapping[int, NewNumbers]]  # by call and dimension


def new_numbers(plan: PrunePlan) -> Wanted:
    """Return the new numbers of all literals under ``plan``, unchanged ones included."""
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


def all_numbers(wanted: Wanted) -> Iterator[NewNumbers]:
    """Return the new numbers of all calls."""
    return (new for news in wanted.values() for new in news.values())


def solved(wanted: Wanted, before: Callable[[Attribute], int]) -> dict[Attribute, tuple[int, int]]:
    """Return attributes as (before, after) whose new values make all numbers derived from them right."""
    uses = _uses(wanted)
    leaves = {leaf for one, _ in uses for leaf in attributes_in(one)}
    first = {leaf: before(leaf) for leaf in leaves}
    values = dict(first)
    for leaf in sorted(leaves, key=lambda leaf: _indirect(leaf, uses)):
        mine = [(one, new) for one, new in uses if leaf in attributes_in(one)]
        fitting = (v for v in _trials(leaf, mine, values[leaf]) if _fits(mine, {**values, leaf: v}))
        values[leaf] = next(fitting, values[leaf])
    return {leaf: (first[leaf], after) for leaf, after in values.items() if after != first[leaf]}


Uses = Sequence[tuple[Expression, int | None]]


def _uses(wanted: Wanted) -> list[tuple[Expression, int | None]]:
    """Return the expression of each number derived from attributes, and its new number if it is one."""
    uses: dict[tuple[Expression, int | None], None] = {}
    for new in all_numbers(wanted):
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
    """Return the values to try: the number that the attribute itself must be, or all up to 2 * ``before``."""
    direct = [new for expression, new in uses if expression == leaf and new is not None]
    return direct[:1] or range(1, 2 * before)


def _fits(uses: Uses, values: Mapping[Attribute, int]) -> bool:
    try:
        return all(evaluate(expression, values) == new for expression, new in uses)
    except ZeroDivisionError:
        return False
