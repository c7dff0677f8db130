"""What a test asserts of each of several things fails where there are none: see ``tests/each.py``.

Held: loops with assertions in them, and ``assert all(...)`` and ``not any(...)`` of comprehensions.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests import conftest

TESTS = Path(__file__).resolve().parents[1]
FILES = sorted(path.relative_to(TESTS).as_posix() for path in TESTS.rglob("*.py"))
# Each gives something where every argument has something in it; strictly zipped lists are equally long.
PASS_ON = {"enumerate", "list", "reversed", "set", "sorted", "tuple", "zip"}
OF_A_DICT = {"items", "keys", "values"}
OF_A_MODULE = {"modules", "named_modules", "parameters", "named_parameters"}
COMPREHENSIONS = (ast.GeneratorExp, ast.ListComp, ast.SetComp, ast.DictComp)


def has_some(node: ast.expr, known: frozenset[str] = frozenset()) -> bool:
    """Whether the text shows that there is something in ``node``; the names in ``known`` have something."""
    match node:
        case ast.Name(id=name):
            return name in known
        case ast.List(elts=parts) | ast.Tuple(elts=parts) | ast.Set(elts=parts):
            return any(not isinstance(p, ast.Starred) or has_some(p.value, known) for p in parts)
        case ast.Dict(values=values):
            return bool(values)
        case ast.Constant(value=str(text)):
            return bool(text)
        case ast.BinOp(op=ast.Add(), left=left, right=right):
            return has_some(left, known) or has_some(right, known)
        case ast.Call(func=ast.Name(id=name), args=arguments):
            passed = name in PASS_ON and all(has_some(argument, known) for argument in arguments)
            return passed or name in {"each", "range"}
        case ast.Call(func=ast.Attribute(value=of, attr=name)):
            return name in OF_A_MODULE or (name in OF_A_DICT and has_some(of, known))
    if isinstance(node, COMPREHENSIONS):
        return all(has_some(part.iter, known) and not part.ifs for part in node.generators)
    return False


def known_names(scope: ast.AST, known: frozenset[str]) -> frozenset[str]:
    """Names that ``scope`` gives something, or asserts to have something: ``assert names``, ``and`` more."""
    for node in ast.walk(scope):
        if isinstance(node, ast.Assign) and has_some(node.value, known):
            known |= {target.id for target in node.targets if isinstance(target, ast.Name)}
        if isinstance(node, ast.Assert):
            parts = node.test.values if isinstance(node.test, ast.BoolOp) else [node.test]
            if not (isinstance(node.test, ast.BoolOp) and isinstance(node.test.op, ast.Or)):
                known |= {part.id for part in parts if isinstance(part, ast.Name)}
    return known


def checked(scope: ast.AST) -> Iterator[ast.For | ast.comprehension]:
    """The loops of ``scope`` that assert, and the ones in an asserted ``all`` or ``not any``."""
    for node in ast.walk(scope):
        if isinstance(node, ast.For) and any(map(is_check, ast.walk(node))):
            yield node
        if isinstance(node, ast.Assert):
            for call in ast.walk(node.test):
                match call:
                    case ast.Call(func=ast.Name(id="all"), args=[of]):
                        yield from loops(of)
                    case ast.UnaryOp(op=ast.Not(), operand=ast.Call(func=ast.Name(id="any"), args=[of])):
                        yield from loops(of)


def loops(of: ast.expr) -> list[ast.comprehension]:
    """The loops of a comprehension; of anything else (a name, a ``map``) one over each list in it."""
    if isinstance(of, COMPREHENSIONS):
        return of.generators
    mapped = isinstance(of, ast.Call) and ast.unparse(of.func) == "map"
    return [ast.comprehension(of, part, [], 0) for part in (of.args[1:] if mapped else [of])]


def is_check(node: ast.AST) -> bool:
    return isinstance(node, ast.Assert) or (
        isinstance(node, ast.With) and "raises" in ast.unparse(node.items[0])
    )


def perhaps_empty(source: str) -> list[tuple[int, str]]:
    """Lines, and what is looped over there."""
    tree = ast.parse(source)
    top = [node for node in tree.body if isinstance(node, ast.Assign)]
    constants = known_names(ast.Module(top, []), frozenset())
    found = set()
    for scope in tree.body:
        known = known_names(scope, constants)
        for loop in checked(scope):
            if getattr(loop, "ifs", []) or not has_some(loop.iter, known):
                found.add((loop.iter.lineno, ast.unparse(loop.iter)))
    return sorted(found)


@pytest.mark.parametrize("name", FILES)
def test_what_is_asserted_of_each_is_asserted_of_some(name: str):
    found = perhaps_empty((TESTS / name).read_text(encoding="utf-8"))
    assert found == [], "may be empty; wrap it in each() of tests/each.py, filters included"


@pytest.mark.parametrize(
    "body",
    [
        "for x in found: assert x",
        "for x in found:\n        with pytest.raises(E): x()",
        "for a, b in zip(found, found, strict=True): assert a == b",
        "assert all(found)",
        "assert all(x for x in found)",
        "assert all(map(f, found))",
        "assert not any(x for x in found.values())",
        "assert all(x for x in [1, 2] if x > 2)",
        "assert found or all(x for x in found)",
        "names = [x for x in found]; assert all(x for x in names)",
    ],
)
def test_a_loop_over_perhaps_nothing_is_seen(body: str):
    assert perhaps_empty(f"def test(found):\n    {body}\n")


@pytest.mark.parametrize(
    "body",
    [
        "for x in each(found): assert x",
        "for i, x in enumerate((1, *found)): assert x",
        "for n in range(3): assert found[n]",
        "for x in CASES: assert x",
        "assert found and all(x for x in found)",
        "assert all(x for x in each(x for x in found if x))",
        "assert all((found > 1, found < 2))",
        "for x in found: x.run()",
    ],
)
def test_a_loop_over_something_is_left_alone(body: str):
    assert perhaps_empty(f"CASES = [1, 2]\ndef test(found):\n    {body}\n") == []


@pytest.mark.parametrize("given", [{"args": ("x", [])}, {"args": ("x",), "kwargs": {"argvalues": {}}}])
def test_no_list_of_cases_is_empty(given: dict):
    mark = SimpleNamespace(**given)
    test = SimpleNamespace(nodeid="this test", iter_markers=lambda name: [mark])
    with pytest.raises(pytest.UsageError, match="this test has no cases"):
        conftest.pytest_generate_tests(SimpleNamespace(definition=test))
