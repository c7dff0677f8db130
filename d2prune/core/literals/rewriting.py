"""Modules whose code has other numbers: they get a subclass whose functions are compiled again.

Nothing is looked up while they run. The source is read from the file that Python read it from, so code
without a file (typed in, generated) can't be changed.
"""

from __future__ import annotations

import ast
import copy
import types
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from torch import nn

from d2prune.core.literals.numbered import codes_in, remember
from d2prune.core.literals.sites import class_name, definition_of, find
from d2prune.core.literals.written import CallChange, UnchangeableError, merged, with_numbers

Function = types.FunctionType


def change_code(module: nn.Module, changes: Sequence[CallChange]) -> None:
    """Make ``module``, in place, make these calls with their new numbers, besides earlier changes.

    Raises:
        UnchangeableError: if the module's code has no such calls.
    """
    module.__class__ = changed_class(module, changes)


def changed_class(module: nn.Module, changes: Sequence[CallChange]) -> type[nn.Module]:
    """Return the class that :func:`change_code` would give ``module``; raise as it does."""
    before = type(module)._changes if isinstance(module, _Changed) else ()
    original = type(module)._original if isinstance(module, _Changed) else type(module)
    return _changed(original, merged(before, changes))  # type: ignore[arg-type]


class _Changed:
    """The base of classes with changed code, which are pickled as their original and the changes."""

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
        node: dict[str, Any] = {}
        for i, name in enumerate(change.functions):
            method = i == 0 or name.startswith("self.")
            node = (tree if method else node).setdefault(name.removeprefix("self."), {})
        node.setdefault("", []).append(change)
    members = {name: _rebuilt(_method(original, name), below) for name, below in tree.items()}
    names = {"__module__": original.__module__, "__qualname__": original.__qualname__}
    own = {**members, **names, "_original": original, "_changes": changes}
    return type(original.__name__, (_Changed, original), own)


def _rebuilt(function: Function, below: Mapping[str, Any]) -> Function:
    """Return ``function`` with changed calls, calling rebuilt functions where those have changed calls."""
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
    """Return the code of a function with other numbers in some of its calls."""
    if not changes:
        return code
    definition = copy.deepcopy(definition_of(code))
    for change in changes:
        with_numbers(find(definition, code, change), change)
    definition.decorator_list = []
    arguments = [ast.arg(name) for name in code.co_freevars if name != "__class__"]
    tree = ast.parse(f"def factory():\n class {class_name(code) or 'Code'}: pass")
    factory = tree.body[0]
    assert isinstance(factory, ast.FunctionDef) and isinstance(factory.body[0], ast.ClassDef)
    factory.args.args, factory.body[0].body = arguments, [definition]
    ast.fix_missing_locations(tree)
    made = next(c for c in codes_in(compile(tree, code.co_filename, "exec")) if c.co_name == code.co_name)
    remember(made, tree, definition)
    return made
