"""Calls in source code, and how to write them with other numbers."""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from d2prune.errors import PruneError

_CALLED_AS_FUNCTION = {"reshape", "unflatten", "split", "split_with_sizes", "narrow"}  # torch.reshape(x, …)


@dataclass(frozen=True)
class CallChange:
    """A call in a module's code, and the numbers to make it with.

    Attributes:
        functions: names of the functions that lead to it, from the module's ``forward`` on; "self." stands
            before those of its other methods.
        line: the line on which it ends, counted from the first line of the last function.
        ordinal: its index, from left to right, among the calls and subscripts that end on this line.
        text: the call as it is in the code.
        numbers: (place, number) pairs; see :func:`with_numbers` for what a place is.
    """

    functions: tuple[str, ...]
    line: int
    ordinal: int
    text: str
    numbers: tuple[tuple[int, float], ...]


class UnchangeableError(PruneError):
    """Code that can't be changed: its source is not available, or the call is not written out in it."""


def merged(earlier: Sequence[CallChange], later: Sequence[CallChange]) -> tuple[CallChange, ...]:
    """Return the changes of both; where both change one call, later numbers replace earlier ones."""
    calls = {replace(change, numbers=()): change for change in earlier}
    for change in later:
        place = replace(change, numbers=())
        if place in calls and not _is_split(change):  # the lengths of a split are one number, or all
            both = {**dict(calls[place].numbers), **dict(change.numbers)}
            change = replace(change, numbers=tuple(sorted(both.items())))
        calls[place] = change
    return tuple(calls.values())


def _is_split(change: CallChange) -> bool:
    node = ast.parse(change.text, mode="eval").body
    return isinstance(node, ast.Call) and _function(node) in ("split", "split_with_sizes")


def _function(node: ast.Call) -> str:
    """Return the name of the function or method that is called."""
    return node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")


def with_numbers(node: ast.expr, change: CallChange) -> None:
    """Write numbers into a call, in place.

    A place is an index into a view's shape; 0 and 1 for the ends of a slice, or the start and length of
    ``narrow``; an index into the lengths of a split; or 0 for the scale of attention.
    """
    if isinstance(node, ast.Subscript):
        return _with_bounds(node, dict(change.numbers))
    assert isinstance(node, ast.Call)
    name = _function(node)
    if name == "scaled_dot_product_attention":
        node.keywords = [k for k in node.keywords if k.arg != "scale"]
        node.keywords.append(ast.keyword("scale", ast.Constant(dict(change.numbers)[0])))
        return
    of_torch = isinstance(node.func, ast.Attribute) and ast.unparse(node.func.value) == "torch"
    first = int(of_torch and name in _CALLED_AS_FUNCTION) + {"unflatten": 1, "narrow": 1}.get(name, 0)
    given, numbers = node.args[first:], dict(change.numbers)
    if name in ("split", "split_with_sizes"):
        lengths: list[ast.expr] = [ast.Constant(n) for _, n in change.numbers]
        new = ast.List(lengths, ast.Load()) if len(lengths) > 1 else lengths[0]
        node.args = [*node.args[:first], new, *given[1:]]
        _unless(given, name, change)
        return
    if name == "narrow":
        node.args = [*node.args[:first], *(ast.Constant(numbers[i]) for i in range(2)), *given[2:]]
    elif name in ("view", "reshape", "expand", "unflatten"):
        node.args = [*node.args[:first], *_sizes(given, numbers)]
    else:
        given = []
    _unless(given, name, change)


def _unless(given: Sequence[ast.expr], name: str, change: CallChange) -> None:
    if not given:
        raise UnchangeableError(
            f"the numbers of '{change.text}' are not written as arguments of {name or 'it'}"
        )


def _with_bounds(node: ast.Subscript, numbers: Mapping[int, float]) -> None:
    parts = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
    cut = [p for p in parts if isinstance(p, ast.Slice) and (p.lower is not None or p.upper is not None)]
    if len(cut) != 1:
        raise UnchangeableError(f"the bounds of '{ast.unparse(node)}' are not written out")
    cut[0].lower = ast.Constant(numbers[0])
    cut[0].upper = ast.Constant(numbers[1]) if 1 in numbers else None


def _sizes(given: Sequence[ast.expr], numbers: Mapping[int, float]) -> list[ast.expr]:
    """Return the arguments of a shape with some sizes replaced; after a starred argument, at run time."""
    one = given[0] if len(given) == 1 else None
    listed = list(one.elts) if isinstance(one, (ast.Tuple, ast.List)) else list(given)
    written_out = one is None or isinstance(one, (ast.Tuple, ast.List))
    if written_out and not any(isinstance(size, ast.Starred) for size in listed[: max(numbers) + 1]):
        return [ast.Constant(numbers[i]) if i in numbers else size for i, size in enumerate(listed)]
    shape = one if one is not None and not isinstance(one, ast.Starred) else ast.Tuple(listed, ast.Load())
    table = ast.Dict([ast.Constant(i) for i in numbers], [ast.Constant(n) for n in numbers.values()])
    source = "x(*[table.get(i, n) for i, n in enumerate(shape)])"
    call = ast.parse(source, mode="eval").body
    assert isinstance(call, ast.Call)

    class Fill(ast.NodeTransformer):
        def visit_Name(self, node: ast.Name) -> ast.expr:  # noqa: N802
            return {"table": table, "shape": shape}.get(node.id, node)

    return [Fill().visit(argument) for argument in call.args]
