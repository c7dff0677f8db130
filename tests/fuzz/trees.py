"""Changes to plain data (JSON, YAML, what a pickle holds): other kinds, sizes and shapes at any place."""

from __future__ import annotations

import copy
from collections.abc import Callable
from random import Random
from typing import Any

_ODD: tuple[Callable[[Random], Any], ...] = (
    lambda rng: None,
    lambda rng: rng.choice((True, False)),
    lambda rng: rng.choice((0, 1, -1, 2, 3, 255, -128)),
    lambda rng: rng.choice((2**31, 2**63 - 1, 2**63, -(2**63), 10**30, 10**4000, 10**5000)),
    lambda rng: rng.choice((0.0, -0.0, 0.5, 4.0, 1e308, -1e308, 5e-324)),
    lambda rng: rng.choice((float("nan"), float("inf"), float("-inf"))),
    lambda rng: rng.choice(("", "0", "x", "-", "~" * 5000, "(" * 300, "a.b.c", "\0", "\ud800", "ß" * 20_000)),
    lambda rng: rng.choice(
        ("forward", "self.forward", "__class__", "__init__", "training", "wide", "stem.0")
    ),
    lambda rng: rng.choice(([], {}, [[]], [{}], {"": {}}, {"out": []}, [None])),
    lambda rng: list(range(rng.choice((10, 1000, 100_000)))),
    lambda rng: _nested(rng.choice((9, 100, 300))),
)


def changed(rng: Random, tree: Any, odd: tuple[Callable[[Random], Any], ...] = _ODD) -> Any:
    """A copy of ``tree`` with one to three changes.

    Args:
        rng: the source of chance.
        tree: dicts, lists and leaves.
        odd: makers of what takes a value's place.
    """
    holder = [copy.deepcopy(tree)]
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        target, key = rng.choice(_places(holder))
        rng.choice(_CHANGES)(rng, target, key, odd)
    return holder[0] if holder else None


def _nested(depth: int) -> Any:
    tree: Any = 1
    for i in range(depth):
        tree = [tree] if i % 2 else {"a": tree}
    return tree


def _places(holder: Any) -> list[tuple[Any, Any]]:
    """(container, key or index) of every value below ``holder``."""
    found, waiting = [], [holder]
    while waiting and len(found) < 5000:
        target = waiting.pop()
        keys = list(target) if isinstance(target, dict) else range(len(target))
        found += [(target, key) for key in keys]
        waiting += [target[key] for key in keys if isinstance(target[key], (dict, list))]
    return found or [([None], 0)]


def _replace(rng: Random, target: Any, key: Any, odd: Any) -> None:
    target[key] = rng.choice(odd)(rng)


def _nudge(rng: Random, target: Any, key: Any, odd: Any) -> None:
    """A number is a little different, or of another type; of a text the characters change."""
    value = target[key]
    if isinstance(value, (int, float)):
        target[key] = rng.choice(
            (value + 1, value - 1, -value, value * 2, float(min(value, 2**60)), str(value)[:99])
        )
    elif isinstance(value, str):
        target[key] = rng.choice((value + "x", value[:-1], value.upper(), value + "." + value, [value]))
    else:
        _shuffle(rng, target, key, odd)


def _delete(rng: Random, target: Any, key: Any, odd: Any) -> None:
    del target[key]


def _add(rng: Random, target: Any, key: Any, odd: Any) -> None:
    value = rng.choice(odd)(rng)
    if isinstance(target, dict):
        target[rng.choice(("x", "", "out", "in", "groups", "version", "MODEL", "stem", "head.bias"))] = value
    else:
        target.insert(key, value)


def _wrap(rng: Random, target: Any, key: Any, odd: Any) -> None:
    target[key] = rng.choice(([target[key]], {"a": target[key]}, [target[key]] * 3))


def _copy_over(rng: Random, target: Any, key: Any, odd: Any) -> None:
    """A value of the same container takes this one's place, too."""
    other = rng.choice(list(target) if isinstance(target, dict) else range(len(target)))
    target[key] = copy.deepcopy(target[other])


def _rename(rng: Random, target: Any, key: Any, odd: Any) -> None:
    if isinstance(target, dict):
        target[rng.choice((f"{key}.", f"x{key}", "", key.upper() if isinstance(key, str) else "1"))] = (
            target.pop(key)
        )
    else:
        target[key] = {str(key): target[key]}


def _shuffle(rng: Random, target: Any, key: Any, odd: Any) -> None:
    value = target[key]
    if isinstance(value, list):
        rng.choice(
            (value.reverse, lambda: rng.shuffle(value), lambda: value.extend(value[:100]), value.clear)
        )()
    elif isinstance(value, dict):
        target[key] = rng.choice((list(value), list(value.values()), dict(reversed(value.items()))))
    else:
        _replace(rng, target, key, odd)


_CHANGES = (_replace, _replace, _nudge, _nudge, _delete, _add, _wrap, _copy_over, _rename, _shuffle)
