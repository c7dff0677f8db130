"""The rows of a pruning spec as plain data: written out, and read back with every type and limit checked."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from d2prune.core.layers.kinds import Keep
from d2prune.core.literals.changes import CodeChanges
from d2prune.core.literals.version1 import Correction
from d2prune.core.literals.written import CallChange

Value = TypeVar("Value")
Widths = tuple[int | None, int | None]

# Far above what any model needs, and low enough to read in seconds.
_MOST_VALUES = 5_000_000
_MOST_NESTED = 8
_LONGEST_TEXT = 10_000
_LARGEST = 2**63

_NEEDED = {"version", "base", "layers"}
_KEYS = _NEEDED | {"attributes", "scales", "calls", "corrections", "written_by"}


def row_of(keep: Keep, widths: Widths) -> dict[str, Any]:
    """Return a layer's row: the channels kept of each axis that changed.

    Args:
        keep: the channels.
        widths: (out, in) before pruning.
    """
    row: dict[str, Any] = {}
    for axis, kept, before in (("out", keep.out, widths[0]), ("in", keep.inp, widths[1])):
        if kept is not None:
            row[axis] = {"before": before, "after": len(kept), "kept": list(kept)}
    if keep.groups is not None:
        row["groups"] = keep.groups
    return row


def table(rows: Mapping[str, Any]) -> str:
    """Return JSON of ``rows`` with one of them a line."""
    return (
        "{\n" + ",\n".join(f"  {json.dumps(name)}: {json.dumps(row)}" for name, row in rows.items()) + "\n}"
    )


def plain_json(text: str) -> Any:
    """Return the value of a JSON text; raise ValueError for what is none, or too deep or large to read."""
    try:
        return json.loads(text, object_pairs_hook=_once, parse_constant=_no_number)
    except RecursionError:
        raise ValueError(f"it is nested deeper than {_MOST_NESTED} levels") from None
    except MemoryError:
        raise ValueError("it is too large for the memory") from None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key is there twice")
    return found


def _no_number(text: str) -> float:
    raise ValueError(f"{text} is no finite number")


def check_plain(data: Any) -> None:
    """Raise ValueError unless ``data`` is dicts, lists, text and finite numbers, within limits.

    Shared and circular parts count as often as they are reached.
    """
    level, count = [data], 0
    for _ in range(_MOST_NESTED):
        held = [value for value in level if isinstance(value, (dict, list))]
        for value in (value for value in level if not isinstance(value, (dict, list))):
            _check_leaf(value)
        count += sum(map(len, held))
        if count > _MOST_VALUES:
            raise ValueError(f"it has more than {_MOST_VALUES} values")
        level = [inner for value in held for inner in (value.values() if isinstance(value, dict) else value)]
        for key in (key for value in held if isinstance(value, dict) for key in value):
            _text(key, "a key")
    if level:
        raise ValueError(f"it is nested deeper than {_MOST_NESTED} levels")


def _check_leaf(value: Any) -> None:
    if type(value) not in (str, int, float, bool, type(None)):
        raise ValueError(f"it holds a {type(value).__name__}; expected plain data")
    if type(value) is str:
        _text(value, "a text")
    if type(value) in (int, float) and not abs(value) < _LARGEST:  # nor NaN
        raise ValueError(f"it holds a number beyond ±{_LARGEST}")


def check_keys(data: Any) -> None:
    """Raise ValueError unless ``data`` is a dict that has a spec's keys and no other."""
    if not isinstance(data, dict) or not set(data) >= _NEEDED:
        raise ValueError("expected the keys version, base, layers")
    other = [key for key in data if key not in _KEYS]
    if other:
        shown = repr(other[0][:100]) if isinstance(other[0], str) else f"of type {type(other[0]).__name__}"
        raise ValueError(f"unknown key {shown}; expected {', '.join(sorted(_KEYS))}")


def fields_of(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a PruneSpec that ``data``, which :func:`check_plain` has passed, describes.

    Raises:
        ValueError: naming the layer or module whose row is malformed.
    """
    rows = _each(data, "layers", _layer)
    code = CodeChanges(
        _each(data, "attributes", _attributes),
        _each(data, "scales", lambda row: tuple(map(_scale, _listed(row)))),
        _each(data, "calls", lambda row: tuple(map(_call, _listed(row)))),
    )
    return {
        "base": _text(data["base"], "base"),
        "layers": {name: keep for name, (keep, _) in rows.items()},
        "widths": {name: widths for name, (_, widths) in rows.items()},
        "attributes": code.attributes,
        "scales": code.scales,
        "calls": code.calls,
        "corrections": _each(data, "corrections", lambda row: tuple(map(_correction, _listed(row)))),
        "version": whole(data["version"], least=1),
        "written_by": _each(data, "written_by", lambda text: _text(text, "a version")),
    }


def _each(data: Mapping[str, Any], part: str, read: Callable[[Any], Value]) -> dict[str, Value]:
    rows = data.get(part, {})
    if not isinstance(rows, dict):
        raise ValueError(f"{part} is a {type(rows).__name__}; expected a dict")
    found = {}
    for name, row in rows.items():
        try:
            found[name] = read(row)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{part}: the row of {name[:200]!r} is malformed ({error})") from error
    return found


def _layer(row: Any) -> tuple[Keep, Widths]:
    _dict(row, (), ("out", "in", "groups"))
    (out, before_out), (inp, before_inp) = (
        _axis(row[a]) if a in row else (None, None) for a in ("out", "in")
    )
    groups = whole(row["groups"], least=1) if "groups" in row else None
    if groups is not None and out is None:
        raise ValueError("it has groups, but keeps all output channels")
    return Keep(out, inp, groups), (before_out, before_inp)


def _axis(cell: Any) -> tuple[tuple[int, ...], int]:
    _dict(cell, ("before", "after", "kept"))
    before, after = whole(cell["before"], least=1), whole(cell["after"], least=1)
    kept = tuple(whole(i) for i in _listed(cell["kept"]))
    if not kept or any(a >= b for a, b in zip(kept, kept[1:], strict=False)) or kept[-1] >= before:
        raise ValueError(f"kept positions must be sorted, distinct and in [0, {before})")
    if after != len(kept):
        raise ValueError(f"'after' is {after}, but {len(kept)} positions are kept")
    return kept, before


def _attributes(row: Any) -> dict[str, tuple[int, int]]:
    found = {}
    for name, pair in _dict(row).items():
        if not name.isidentifier() or name.startswith("__"):
            raise ValueError(f"{name[:100]!r} is no attribute's name")
        before, after = _listed(pair, 2)
        found[name] = whole(before, least=-_LARGEST), whole(after, least=-_LARGEST)
    return found


def _scale(row: Any) -> tuple[int, int, float]:
    start, stop, factor = _listed(row, 3)
    if whole(start) >= whole(stop) or type(factor) not in (int, float):
        raise ValueError("a scale must be [start, stop, factor] with start < stop")
    return start, stop, float(factor)


def _call(row: Any) -> CallChange:
    _dict(row, ("functions", "line", "ordinal", "text", "numbers"))
    functions = tuple(_text(name, "a function") for name in _listed(row["functions"]))
    pairs = [_listed(pair, 2) for pair in _listed(row["numbers"])]
    numbers = tuple((whole(place), _number(n)) for place, n in pairs)
    if not functions or not numbers:
        raise ValueError("a call has no functions or no numbers")
    return CallChange(
        functions, whole(row["line"]), whole(row["ordinal"]), _text(row["text"], "the text"), numbers
    )


def _number(number: Any) -> int | float:
    """A float only where it is no integer: 4.0 equals 4, and code made for one is taken for both."""
    if type(number) is float and not number.is_integer():
        return number
    return whole(int(number) if type(number) is float else number, least=-_LARGEST)


def _correction(row: Any) -> Correction:
    return Correction.from_row(_listed(row, 10))


def whole(number: Any, least: int = 0) -> int:
    """Return ``number`` if it is an integer and no smaller than ``least``; else raise ValueError."""
    if type(number) is not int:  # neither 3.7, which int() would cut, nor True
        raise ValueError(f"{str(number)[:50]!r} is not an integer")
    if number < least:
        raise ValueError(f"{number} is less than {least}")
    return number


def _text(value: Any, what: str) -> str:
    if type(value) is not str or len(value) > _LONGEST_TEXT:
        raise ValueError(f"{what} is no text of up to {_LONGEST_TEXT} characters")
    return value


def _listed(value: Any, length: int | None = None) -> list[Any]:
    if not isinstance(value, list) or (length is not None and len(value) != length):
        raise ValueError(f"expected a list of {'any' if length is None else length} values")
    return value


def _dict(value: Any, needed: tuple[str, ...] = (), allowed: tuple[str, ...] | None = None) -> dict[str, Any]:
    """Return ``value`` if it is a dict of keys that are needed, or allowed too; of any keys if neither is."""
    if not isinstance(value, dict):
        raise ValueError(f"a {type(value).__name__} where a dict is expected")
    known = {*needed, *(allowed or ())}
    wrong = sorted((set(value) - known if known else set()) | (set(needed) - set(value)))
    if wrong:
        raise ValueError(f"key {wrong[0][:100]!r} is unknown or missing; expected {', '.join(sorted(known))}")
    return value
