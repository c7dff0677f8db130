"""Which call a frame makes, where Python (3.10) knows of an instruction only the line it is on.

The module is compiled once more with a line number of its own for each call of a function. The bytecode
stays the same, so that its table of lines says which call an instruction belongs to.
"""

from __future__ import annotations

import ast
import copy
import types
from collections.abc import Iterator
from functools import lru_cache

_REWRITTEN: dict[types.CodeType, tuple[ast.Module, ast.FunctionDef]] = {}


def remember(code: types.CodeType, tree: ast.Module, definition: ast.FunctionDef) -> None:
    """Keep what ``code`` was compiled from, where that is not what its file says."""
    _REWRITTEN.update(dict.fromkeys(codes_in(code), (tree, definition)))


def call_at(frame: types.FrameType, tree: ast.Module, definition: ast.FunctionDef) -> ast.expr | None:
    """Return the call or subscript in ``definition`` that the frame makes now; None if that can't be told.

    Args:
        frame: of the function, or of a comprehension or lambda in it.
        tree: the module that it stands in.
        definition: the function, in ``tree``. If it was rewritten, so is the call.
    """
    tree, definition = _REWRITTEN.get(frame.f_code, (tree, definition))
    calls, first = _calls_in_body(definition), _first_number(definition)
    lines = {
        line
        for code in _numbered(tree, definition)
        if _same(code, frame.f_code)
        for start, end, line in code.co_lines()
        if start <= frame.f_lasti < end
    }
    index = (lines.pop() or 0) - first if len(lines) == 1 else -1
    return calls[index] if 0 <= index < len(calls) else None


@lru_cache(maxsize=64)
def _numbered(tree: ast.Module, definition: ast.FunctionDef) -> tuple[types.CodeType, ...]:
    """Compile the module with calls numbered in place of their lines; return all code that comes of it."""
    twins = copy.deepcopy(tree)
    twin = next(b for a, b in zip(ast.walk(tree), ast.walk(twins), strict=True) if a is definition)
    assert isinstance(twin, ast.FunctionDef)
    for number, call in enumerate(_calls_in_body(twin), _first_number(definition)):
        call.lineno = number
        if isinstance(call, ast.Call):
            call.func.end_lineno = number  # methods are called on the line where their name ends
    return tuple(codes_in(compile(twins, "<numbered>", "exec", dont_inherit=True)))


def _calls_in_body(definition: ast.FunctionDef) -> list[ast.expr]:
    """Not in its decorators, whose line counts as that of the function."""
    nodes = [node for statement in definition.body for node in ast.walk(statement)]
    return [node for node in nodes if isinstance(node, (ast.Call, ast.Subscript))]


def _first_number(definition: ast.FunctionDef) -> int:
    return 1 + (definition.end_lineno or 0)


def codes_in(code: types.CodeType) -> Iterator[types.CodeType]:
    """Give ``code`` and all that is defined in it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from codes_in(constant)


def _same(code: types.CodeType, other: types.CodeType) -> bool:
    parts = ("co_name", "co_firstlineno", "co_code")
    return all(getattr(code, part) == getattr(other, part) for part in parts)
