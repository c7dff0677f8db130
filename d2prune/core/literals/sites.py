"""The place of a call in the source code."""

from __future__ import annotations

import ast
import copy
import linecache
import sys
import types
from collections.abc import Sequence
from functools import lru_cache
from itertools import islice
from pathlib import Path

from torch import nn

from d2prune.core.literals.numbered import call_at
from d2prune.core.literals.written import CallChange, UnchangeableError, with_numbers

Frame = types.FrameType
_INSIDE = {
    "torch.overrides",
    "torch._tensor",
    "torch.functional",
    "torch.nn.functional",
    "torch.utils._device",
}
_CALLER = nn.Module.__module__


def frames_of_call() -> list[Frame]:
    """Return the frames of the module's code that make the current call, its ``forward`` first."""
    frame: Frame | None = sys._getframe(1)
    while frame is not None and frame.f_globals["__name__"].startswith(("d2prune.core.", *_INSIDE)):
        frame = frame.f_back
    found: list[Frame] = []
    while frame is not None and frame.f_globals["__name__"] != _CALLER:
        found.insert(0, frame)
        frame = frame.f_back
    return found if frame is not None else []


def locate(frames: Sequence[Frame], numbers: Sequence[tuple[int, float]]) -> CallChange:
    """Return the call that the last of ``frames`` makes now, with ``numbers`` to change.

    Raises:
        UnchangeableError: if the call is not found in the source, or can't be given other numbers.
    """
    if not frames or frames[0].f_code.co_name.startswith("<"):
        raise UnchangeableError("the call is made outside of any module's forward")
    frame, named = frames[-1], [f for f in frames if not f.f_code.co_name.startswith("<")]
    code = named[-1].f_code  # comprehensions stand in it
    definition = definition_of(code)
    ends = _position(frame, definition)
    nodes = [node for node in _calls_in(definition) if (node.end_lineno, node.end_col_offset) == ends]
    if len(nodes) != 1:
        raise UnchangeableError(
            f"line {frame.f_lineno} of {_file(code)} is not written out in a method of the module"
        )
    line = [node for node in _calls_in(definition) if node.end_lineno == ends[0]]
    names = tuple(_name(f, named[0]) for f in named)
    place = (ends[0] - code.co_firstlineno, line.index(nodes[0]))
    change = CallChange(names, *place, ast.unparse(nodes[0]), tuple(sorted(numbers)))
    with_numbers(copy.deepcopy(nodes[0]), change)  # raises where it can't be written with other numbers
    return change


@lru_cache(maxsize=64)
def _tree(filename: str) -> ast.Module:
    source = "".join(linecache.getlines(filename))
    if not source:
        raise UnchangeableError(f"the source of {Path(filename).name} is not available")
    try:
        return ast.parse(source)
    except SyntaxError as error:
        raise UnchangeableError(f"the source of {Path(filename).name} is no Python") from error


def definition_of(code: types.CodeType) -> ast.FunctionDef:
    """Return the function in the source that ``code`` was compiled from."""
    for node in ast.walk(_tree(code.co_filename)):
        if isinstance(node, ast.FunctionDef) and node.name == code.co_name:
            if min([node.lineno, *(d.lineno for d in node.decorator_list)]) == code.co_firstlineno:
                return node
    raise UnchangeableError(f"{code.co_name} is not found in {_file(code)}")


def class_name(code: types.CodeType) -> str | None:
    """Return the name of the class that a function stands in: private names in it depend on that."""
    definition, name = definition_of(code), None
    for node in ast.walk(_tree(code.co_filename)):  # outer classes come before the ones in them
        if isinstance(node, ast.ClassDef) and any(part is definition for part in ast.walk(node)):
            name = node.name
    return name


def _position(frame: Frame, definition: ast.FunctionDef) -> tuple[int, int]:
    """Return the line and the column at which the expression ends that the frame evaluates."""
    if not hasattr(frame.f_code, "co_positions"):  # Python 3.10 knows the line only
        node = call_at(frame, _tree(frame.f_code.co_filename), definition)
        if node is None:
            raise UnchangeableError(
                f"Python before 3.11 can't tell which call on line {frame.f_lineno} of "
                f"{_file(frame.f_code)} is made"
            )
        return _end(node)
    _, line, _, column = next(islice(frame.f_code.co_positions(), frame.f_lasti // 2, None))
    return line or 0, column or 0


def _name(frame: Frame, forward: Frame) -> str:
    """Return a function's name, with "self." before methods of the module other than its ``forward``."""
    if frame is forward or not frame.f_code.co_argcount:
        return frame.f_code.co_name
    first = [frame.f_locals.get(f.f_code.co_varnames[0]) for f in (frame, forward)]
    own = first[0] is first[1] and first[0] is not None
    return f"self.{frame.f_code.co_name}" if own else frame.f_code.co_name


def _file(code: types.CodeType) -> str:
    return Path(code.co_filename).name


def _end(node: ast.expr) -> tuple[int, int]:
    return node.end_lineno or 0, node.end_col_offset or 0


def _calls_in(definition: ast.AST) -> list[ast.expr]:
    found = [node for node in ast.walk(definition) if isinstance(node, (ast.Call, ast.Subscript))]
    return sorted(found, key=_end)


def find(definition: ast.FunctionDef, code: types.CodeType, change: CallChange) -> ast.expr:
    """Return the call that ``change`` refers to; raise UnchangeableError if it is not there any more."""
    line = [n for n in _calls_in(definition) if _end(n)[0] - code.co_firstlineno == change.line]
    if change.ordinal < len(line) and ast.unparse(line[change.ordinal]) == change.text:
        return line[change.ordinal]
    raise UnchangeableError(
        f"{_file(code)} has no call '{change.text}' on line {code.co_firstlineno + change.line}, where "
        "it was when the model was pruned: the code has changed since"
    )
