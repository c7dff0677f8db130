"""The place in a file that an edit's symbol means, found by Python's own parser."""

from __future__ import annotations

import ast
import difflib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from d2prune.errors import PruneError
from d2prune.patching.edits import BEGIN, END, Edit
from d2prune.patching.source import Source

Function = ast.FunctionDef | ast.AsyncFunctionDef
Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
Scope = Definition | ast.Module


@dataclass(frozen=True)
class Place:
    """The place before line ``line`` (from 0).

    ``indent`` goes before each inserted line; ``unit`` is one level of indentation.
    """

    line: int
    indent: str
    unit: str


def find_place(source: Source, edit: Edit) -> Place:
    """Find where the edit's lines go.

    Raises:
        PruneError: if the symbol is gone or defined twice, or has no such place.
    """
    tree = source.parse()
    lines = source.lines
    scope = _find_symbol(tree, edit, _inserted(lines))
    _check_uses(tree, scope, edit)
    _check_subclass(scope, edit)
    if edit.where in {"before", "after"}:
        return _beside(lines, scope, edit)
    return _inside(lines, scope, edit)


def _inserted(lines: list[str]) -> set[int]:
    """Return the numbers (from 1) of begin markers and the lines up to their end markers."""
    inside, numbers = False, set()
    for number, line in enumerate(lines, 1):
        inside = line.strip().startswith(BEGIN) or (inside and not line.strip().startswith(END))
        if inside:
            numbers.add(number)
    return numbers


def _find_symbol(tree: ast.Module, edit: Edit, inserted: set[int]) -> Scope:
    """Return the fork's class or function that the edit names; the module if it names none."""
    scope: Scope = tree
    for part in filter(None, edit.symbol.split(".")):
        inside = [node for node in _definitions(scope.body) if node.lineno not in inserted]
        found = [node for node in inside if node.name == part]
        if not found:
            raise _gone(edit, part, [node.name for node in inside])
        if len(found) > 1:
            lines = ", ".join(str(node.lineno) for node in found)
            raise PruneError(f"{edit.place}: '{part}' is defined {len(found)} times, in lines {lines}")
        scope = found[0]
    return scope


def _gone(edit: Edit, part: str, names: list[str]) -> PruneError:
    close = difflib.get_close_matches(part, names, 1)
    if close:
        hint = f"did you mean '{close[0]}'?"
    else:
        hint = f"there are: {', '.join(names[:8]) or 'no definitions'}"
    return PruneError(f"{edit.place}: the fork has no '{part}'; {hint}")


def _definitions(body: Iterable[ast.AST]) -> Iterator[Definition]:
    """Yield the classes and functions of one scope, also those in an ``if`` or a ``try``."""
    for node in body:
        if isinstance(node, Definition):
            yield node
        else:
            yield from _definitions(ast.iter_child_nodes(node))


def _check_uses(tree: ast.Module, scope: Scope, edit: Edit) -> None:
    outside = [node for node in tree.body if not isinstance(node, Definition)]
    bound = {name for node in (scope, *outside) for name in _bound(node)}
    for name in edit.uses:
        if name not in bound:
            raise PruneError(f"{edit.place}: the lines use '{name}', which is nowhere set there")


def _bound(scope: ast.AST) -> Iterator[str]:
    for node in ast.walk(scope):
        if isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(node, ast.alias):
            yield node.asname or node.name.partition(".")[0]
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id


def _check_subclass(scope: Scope, edit: Edit) -> None:
    """Raise PruneError if the lines define a subclass that can't take the name of its class."""
    text = "\n".join(edit.lines)
    if not isinstance(scope, ast.ClassDef) or f"class {scope.name}(" not in text:
        return
    for base in map(ast.unparse, scope.bases):
        if f"({base}," in text:
            raise PruneError(f"{edit.place}: the class has the base {base} already")
    for node in ast.walk(scope):
        if isinstance(node, ast.Call) and ast.unparse(node).startswith(f"super({scope.name},"):
            call = f"line {node.lineno} calls super({scope.name}, ...), which would call itself without end"
            raise PruneError(f"{edit.place}: {call}; write super() there first")


def _beside(lines: list[str], scope: Scope, edit: Edit) -> Place:
    if isinstance(scope, ast.Module):
        raise PruneError(f"{edit.place}: expected a class or a function")
    if not _alone(lines, scope):
        raise PruneError(f"{edit.place}: it shares its line with another statement")
    line = (scope.end_lineno or 0) if edit.where == "after" else _top(scope)
    return Place(line, _indent(lines, scope), _unit(lines, scope))


def _inside(lines: list[str], scope: Scope, edit: Edit) -> Place:
    if not scope.body:
        raise PruneError(f"{edit.place}: the file is empty")
    first = scope.body[0]
    if not _alone(lines, first):
        raise PruneError(f"{edit.place}: its first statement is not on a line of its own")
    above, below = _neighbours(scope, edit)
    indent, unit = _indent(lines, first), _unit(lines, scope)
    if above is None:
        return Place(_top(first), indent, unit)
    end = above.end_lineno or 0
    if below is not None and below.lineno <= end:
        raise PruneError(f"{edit.place}: line {below.lineno} holds two statements")
    return Place(end, indent, unit)


def _top(node: ast.stmt) -> int:
    """Return the line (from 0) of a statement, or of its first decorator."""
    return min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", []))]) - 1


def _neighbours(scope: Scope, edit: Edit) -> tuple[ast.stmt | None, ast.stmt | None]:
    """Return the statements that the lines go between; None at an end of the body."""
    body = scope.body
    if edit.where == "start":
        count = 1 if ast.get_docstring(scope, clean=False) is not None else 0
    elif edit.where == "end":
        count = len(body)
        if isinstance(body[-1], ast.Return | ast.Raise):
            raise PruneError(f"{edit.place}: it ends with a return or a raise, below which nothing runs")
    elif edit.where == "after imports":
        count = _imports(scope, edit)
    elif not isinstance(scope, Function):
        raise PruneError(f"{edit.place}: expected a function")
    elif edit.where == "before return":
        count = len(body) - 1
        if not isinstance(body[-1], ast.Return):
            raise PruneError(f"{edit.place}: the function does not end with a return")
    else:
        count = _assignment(body, edit)
    return (body[count - 1] if count else None), (body[count] if count < len(body) else None)


def _imports(scope: Scope, edit: Edit) -> int:
    if not isinstance(scope, ast.Module):
        raise PruneError(f"{edit.place}: expected no symbol")
    count = 1 if ast.get_docstring(scope, clean=False) is not None else 0
    while count < len(scope.body) and isinstance(scope.body[count], ast.Import | ast.ImportFrom):
        count += 1
    return count


def _assignment(body: list[ast.stmt], edit: Edit) -> int:
    for count, node in enumerate(body, 1):
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        if isinstance(node, ast.Assign | ast.AnnAssign) and any(
            isinstance(target, ast.Name) and target.id == edit.variable for target in targets
        ):
            return count
    raise PruneError(f"{edit.place}: nothing is assigned to '{edit.variable}' there")


def _alone(lines: list[str], node: ast.stmt) -> bool:
    return lines[node.lineno - 1].encode()[: node.col_offset].strip() == b""


def _indent(lines: list[str], node: ast.stmt) -> str:
    line = lines[node.lineno - 1]
    return line[: len(line) - len(line.lstrip(" \t"))]


def _unit(lines: list[str], scope: Scope) -> str:
    """Return one level of indentation, as in the symbol's body or else the first class or function."""
    nodes = [scope] if not isinstance(scope, ast.Module) else list(_definitions(scope.body))
    for node in nodes:
        outer, inner = _indent(lines, node), _indent(lines, node.body[0])
        if inner.startswith(outer) and inner != outer:
            return inner[len(outer) :]
    return "    "
