"""Where in the code a call stands, and functions compiled again with other numbers in it.

A pruned module gets a subclass of its own class whose ``forward`` (or what that calls) has the numbers
that are right for it; nothing is looked up while it runs. The source is read from the file that
Python read it from, so code without a file (typed in, generated) can't be changed.
"""

from __future__ import annotations

import ast
import copy
import linecache
import sys
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

from torch import nn

from d2prune.errors import PruneError

Function = types.FunctionType
Frame = types.FrameType
_INSIDE = {
    "torch.overrides",
    "torch._tensor",
    "torch.functional",
    "torch.nn.functional",
    "torch.utils._device",
}
_CALLER = nn.Module.__module__
_CALLED_AS_FUNCTION = {"reshape", "unflatten", "split", "split_with_sizes", "narrow"}  # torch.reshape(x, …)


@dataclass(frozen=True)
class CallChange:
    """A call in a module's code, and the numbers that it is to be made with.

    Attributes:
        functions: names of the functions that lead to it, from the module's ``forward`` on.
        line: on which line of the last function it ends, counted from the function's first line.
        ordinal: which of the calls and subscripts that end on this line, from left to right.
        text: the call as the code has it.
        numbers: (place, number) pairs; see :func:`_with_numbers` for what a place is.
    """

    functions: tuple[str, ...]
    line: int
    ordinal: int
    text: str
    numbers: tuple[tuple[int, float], ...]


class UnchangeableError(PruneError):
    """Code that can't be changed: its source is not to be had, or the call is not written out in it."""


def frames_of_call() -> list[Frame]:
    """The frames of the module's code that make the call in hand: its ``forward`` first."""
    frame: Frame | None = sys._getframe(1)
    while frame is not None and frame.f_globals["__name__"].startswith(("d2prune.core.literals", *_INSIDE)):
        frame = frame.f_back
    found: list[Frame] = []
    while frame is not None and frame.f_globals["__name__"] != _CALLER:
        found.insert(0, frame)
        frame = frame.f_back
    return found if frame is not None else []


def locate(frames: Sequence[Frame], numbers: Sequence[tuple[int, float]]) -> CallChange:
    """The call that the last of ``frames`` makes now.

    Raises:
        UnchangeableError: if it can't be told which it is.
    """
    if not frames or frames[0].f_code.co_name.startswith("<"):
        raise UnchangeableError("the call is made outside of any module's forward")
    frame, named = frames[-1], [f for f in frames if not f.f_code.co_name.startswith("<")]
    code = named[-1].f_code  # comprehensions stand in it
    definition = _definition(code)
    ends = _position(frame, definition)
    nodes = [node for node in _calls_in(definition) if (node.end_lineno, node.end_col_offset) == ends]
    if len(nodes) != 1:
        raise UnchangeableError(
            f"line {frame.f_lineno} of {_file(code)} is not written out in a method of the module"
        )
    line = [node for node in _calls_in(definition) if node.end_lineno == ends[0]]
    names = tuple(f.f_code.co_name for f in named)
    place = (ends[0] - code.co_firstlineno, line.index(nodes[0]))
    change = CallChange(names, *place, ast.unparse(nodes[0]), tuple(sorted(numbers)))
    _with_numbers(copy.deepcopy(nodes[0]), change)  # raises where it can't be written with other numbers
    return change


def merged(earlier: Sequence[CallChange], later: Sequence[CallChange]) -> tuple[CallChange, ...]:
    """Both; where they are of one call, its later numbers."""
    calls = {replace(change, numbers=()): change for change in earlier}
    for change in later:
        known = calls.get(replace(change, numbers=()), change)
        same = len(known.numbers) == len(change.numbers) or change.text.startswith("split")
        numbers = (
            change.numbers if same else tuple(sorted({**dict(known.numbers), **dict(change.numbers)}.items()))
        )
        calls[replace(change, numbers=())] = replace(change, numbers=numbers)
    return tuple(calls.values())


def change_code(module: nn.Module, changes: Sequence[CallChange]) -> None:
    """Have ``module`` make these calls with their numbers, beside those that were changed before.

    Raises:
        UnchangeableError: if the module's code has no such calls.
    """
    module.__class__ = changed_class(module, changes)


def changed_class(module: nn.Module, changes: Sequence[CallChange]) -> type[nn.Module]:
    """The class that ``module`` would get; raises as :func:`change_code` does."""
    before = type(module)._changes if isinstance(module, _Changed) else ()
    original = type(module)._original if isinstance(module, _Changed) else type(module)
    return _changed(original, merged(before, changes))  # type: ignore[arg-type]


class _Changed:
    """What classes with changed code share: they are pickled by their original and the changes."""

    _original: type[nn.Module]
    _changes: tuple[CallChange, ...]

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return _revived, (self._original, self._changes), self.__dict__


def _revived(original: type[nn.Module], changes: tuple[CallChange, ...]) -> nn.Module:
    kind = _changed(original, changes)  # type: ignore[arg-type]
    module: nn.Module = kind.__new__(kind)
    return module


@cache
def _changed(original: type[nn.Module], changes: tuple[CallChange, ...]) -> type[nn.Module]:
    tree: dict[str, Any] = {}
    for change in changes:
        node = tree
        for name in change.functions:
            node = node.setdefault(name, {})
        node.setdefault("", []).append(change)
    members = {name: _rebuilt(_method(original, name), below) for name, below in tree.items()}
    names = {"__module__": original.__module__, "__qualname__": original.__qualname__}
    own = {**members, **names, "_original": original, "_changes": changes}
    return type(original.__name__, (_Changed, original), own)


def _rebuilt(function: Function, below: Mapping[str, Any], owner: type | None = None) -> Function:
    """``function`` with changed calls, and with what it calls rebuilt where that has changed calls."""
    scope = function.__globals__
    inner = {name: below[name] for name in below if name}
    called = {n: _rebuilt(scope[n], b) for n, b in inner.items() if isinstance(scope.get(n), Function)}
    if len(called) < len(inner):
        raise UnchangeableError(
            f"{function.__qualname__} calls {sorted(set(inner) - set(called))} in a way of its own"
        )
    code = _compiled(function.__code__, tuple(below.get("", ())))
    cells = dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True))
    closure = tuple(cells[name] for name in code.co_freevars)
    made = Function(
        code, {**scope, **called} if called else scope, function.__name__, function.__defaults__, closure
    )
    made.__kwdefaults__, made.__qualname__ = function.__kwdefaults__, function.__qualname__
    made.__module__, made.__doc__ = function.__module__, function.__doc__
    return made


def _method(kind: type, name: str) -> Function:
    found = next((cls.__dict__[name] for cls in kind.__mro__ if name in cls.__dict__), None)
    if not isinstance(found, Function):
        raise UnchangeableError(f"{kind.__name__}.{name} is not a plain method")
    return found


@cache
def _compiled(code: types.CodeType, changes: tuple[CallChange, ...]) -> types.CodeType:
    """The code of a function with other numbers in some of its calls."""
    if not changes:
        return code
    definition = copy.deepcopy(_definition(code))
    for change in changes:
        _with_numbers(_find(definition, code, change), change)
    definition.decorator_list = []
    arguments = [ast.arg(name) for name in code.co_freevars if name != "__class__"]
    tree = ast.parse(f"def factory():\n class {_class_name(code)}: pass")
    factory = tree.body[0]
    assert isinstance(factory, ast.FunctionDef) and isinstance(factory.body[0], ast.ClassDef)
    factory.args.args, factory.body[0].body = arguments, [definition]
    ast.fix_missing_locations(tree)
    return next(c for c in _codes(compile(tree, code.co_filename, "exec")) if c.co_name == code.co_name)


def _class_name(code: types.CodeType) -> str:
    """The class in whose body a method stands: names that begin with two underscores depend on it."""
    parts: list[str] = getattr(code, "co_qualname", code.co_name).split(".")
    return parts[-2] if len(parts) > 1 and parts[-2].isidentifier() else "Code"


def _codes(code: types.CodeType) -> Iterator[types.CodeType]:
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield constant
            yield from _codes(constant)


@lru_cache(maxsize=64)
def _tree(filename: str) -> ast.Module:
    source = "".join(linecache.getlines(filename))
    if not source:
        raise UnchangeableError(f"the source of {Path(filename).name} is not to be had")
    try:
        return ast.parse(source)
    except SyntaxError as error:
        raise UnchangeableError(f"the source of {Path(filename).name} is no Python") from error


def _definition(code: types.CodeType) -> ast.FunctionDef:
    for node in ast.walk(_tree(code.co_filename)):
        if isinstance(node, ast.FunctionDef) and node.name == code.co_name:
            if min([node.lineno, *(d.lineno for d in node.decorator_list)]) == code.co_firstlineno:
                return node
    raise UnchangeableError(f"{code.co_name} is not found in {_file(code)}")


def _position(frame: Frame, definition: ast.AST) -> tuple[int, int]:
    """The line and the column at which the expression ends that the frame works on."""
    if not hasattr(frame.f_code, "co_positions"):  # Python 3.10 knows the line only
        nodes = [n for n in _calls_in(definition) if n.lineno <= frame.f_lineno <= _end(n)[0]]
        if len(nodes) != 1:
            raise UnchangeableError(f"line {frame.f_lineno} of {_file(frame.f_code)} has more calls than one")
        return _end(nodes[0])
    _, line, _, column = next(islice(frame.f_code.co_positions(), frame.f_lasti // 2, None))
    return line or 0, column or 0


def _file(code: types.CodeType) -> str:
    return Path(code.co_filename).name


def _end(node: ast.expr) -> tuple[int, int]:
    return node.end_lineno or 0, node.end_col_offset or 0


def _calls_in(definition: ast.AST) -> list[ast.expr]:
    found = [node for node in ast.walk(definition) if isinstance(node, (ast.Call, ast.Subscript))]
    return sorted(found, key=_end)


def _find(definition: ast.FunctionDef, code: types.CodeType, change: CallChange) -> ast.expr:
    line = [n for n in _calls_in(definition) if _end(n)[0] - code.co_firstlineno == change.line]
    if change.ordinal < len(line) and ast.unparse(line[change.ordinal]) == change.text:
        return line[change.ordinal]
    raise UnchangeableError(
        f"{_file(code)} has no call '{change.text}' on line {code.co_firstlineno + change.line}, where "
        "it was when the model was pruned: the code has changed since"
    )


def _with_numbers(node: ast.expr, change: CallChange) -> None:
    """Write numbers into a call, in place.

    A place is that of a size in a view's shape; 0 and 1 are the ends of a slice, or the start and length of a
    narrowed part; of a split all places are its lengths; of attention 0 is its scale.
    """
    if isinstance(node, ast.Subscript):
        return _with_bounds(node, dict(change.numbers))
    assert isinstance(node, ast.Call)
    name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
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
    """The arguments of a shape with some sizes replaced; behind what is unpacked, while it runs."""
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
