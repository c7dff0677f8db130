"""Integers that know which attribute of which module they were read from."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Union

from torch import nn

Attribute = tuple[str, str]
"""(dotted path of a module, name of an integer attribute of it)."""
Expression = Union[int, Attribute, tuple[str, Any, Any]]  # noqa: UP007  (it is recursive)
"""What a number was worked out from: a number, an attribute, or (operator, left, right)."""

_OPERATORS: dict[str, Callable[[int, int], int]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "//": operator.floordiv,
    "%": operator.mod,
}
SMALLEST = 2  # attributes of 0 and 1 are flags and levels rather than widths


class TrackedInt(int):
    """An integer that was read from a module's attribute, or worked out from such integers.

    Attributes:
        expression: how it was worked out.
    """

    expression: Expression

    def __new__(cls, value: int, expression: Expression) -> TrackedInt:  # noqa: D102
        tracked = super().__new__(cls, value)
        tracked.expression = expression
        return tracked

    def __reduce__(self) -> tuple[Any, ...]:
        return int, (int(self),)  # copies of a module forget where its numbers came from


def _binary(symbol: str, reverse: bool) -> Callable[[TrackedInt, Any], Any]:
    function = _OPERATORS[symbol]

    def method(self: TrackedInt, other: Any) -> Any:
        if type(other) not in (int, TrackedInt):
            return NotImplemented
        one, two = (other, self) if reverse else (self, other)
        return TrackedInt(function(int(one), int(two)), (symbol, expression_of(one), expression_of(two)))

    return method


for _name, _symbol in (("add", "+"), ("sub", "-"), ("mul", "*"), ("floordiv", "//"), ("mod", "%")):
    setattr(TrackedInt, f"__{_name}__", _binary(_symbol, False))
    setattr(TrackedInt, f"__r{_name}__", _binary(_symbol, True))


def expression_of(number: int) -> Expression:
    """Return how ``number`` was worked out; the number itself if no attribute is known to be involved."""
    return number.expression if isinstance(number, TrackedInt) else int(number)


def attributes_in(expression: Expression) -> tuple[Attribute, ...]:
    """Return the attributes that an expression is worked out from."""
    if isinstance(expression, int):
        return ()
    if len(expression) == 2:
        return (expression,)
    _, one, two = expression
    return (*attributes_in(one), *attributes_in(two))


def evaluate(expression: Expression, values: Mapping[Attribute, int]) -> int:
    """Return the value of an expression with other values of its attributes."""
    if isinstance(expression, int):
        return expression
    if len(expression) == 2:
        return values[expression]
    symbol, one, two = expression
    return _OPERATORS[symbol](evaluate(one, values), evaluate(two, values))


@contextmanager
def tracked(model: nn.Module) -> Iterator[None]:
    """Replace integer attributes of modules in ``model`` by ``TrackedInt`` while the context lasts.

    PyTorch's own layers are left out: :func:`d2prune.core.layers.kinds.cut` updates their widths.
    """
    changed: list[tuple[dict[str, Any], str, int]] = []
    for path, module in model.named_modules():
        if not type(module).__module__.startswith("torch."):
            own = module.__dict__
            changed += [(own, n, v) for n, v in own.items() if type(v) is int and v >= SMALLEST]
            own.update({n: TrackedInt(v, (path, n)) for where, n, v in changed if where is own})
    try:
        yield
    finally:
        for own, name, value in changed:
            own[name] = value
