"""The format of a patch: lines, and the places where they are inserted."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from d2prune.errors import PruneError

# The markers around inserted lines; the edit's name follows.
BEGIN, END = "# d2prune: begin ", "# d2prune: end "
# Where, as seen from the symbol, and what it must be.
PLACES = {
    "start": "below the docstring of a class, a function or the module",
    "end": "below the last statement of a class, a function or the module",
    "before": "above a class or a function, and its decorators",
    "after": "below a class or a function",
    "before return": "above the return that a function ends with",
    "after assignment": "below a function's first assignment to `variable`",
    "after imports": "below the imports that the module begins with",
}
_NAME = re.compile(r"[a-z0-9_]+")
_NEEDED = {"name", "file", "where", "lines"}
_KNOWN = _NEEDED | {"symbol", "variable", "uses"}


@dataclass(frozen=True)
class Edit:
    """Lines to insert at one place of one file.

    Attributes:
        name: ``patch/edit``, as written in the markers around the lines.
        file: path below the fork's root, with slashes.
        symbol: dotted path of a class or a function in the file; empty for the module itself.
        where: one of ``PLACES``.
        lines: the lines, without the indentation of the place; four spaces for each level of their own.
        variable: the assigned variable, for "after assignment".
        uses: names that the lines take from the function around them.
    """

    name: str
    file: str
    symbol: str
    where: str
    lines: tuple[str, ...]
    variable: str = ""
    uses: tuple[str, ...] = ()

    @property
    def place(self) -> str:
        """The place in words, for messages."""
        return f"{self.name} ({self.file}, {self.where} of {self.symbol or 'the module'})"


def read_edits(path: str | os.PathLike[str]) -> list[Edit]:
    """Read a patch: YAML with ``name`` and a list of ``edits``.

    Raises:
        PruneError: if there is no such file, or it is no patch; the first wrong entry is named.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
        document = yaml.safe_load(text)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise PruneError(f"'{path}' can't be read as a patch: {error}") from error
    if not isinstance(document, dict) or set(document) - {"name", "about", "edits"}:
        raise PruneError(f"'{path}' is no patch; expected the keys name, about and edits")
    name, entries = document.get("name"), document.get("edits")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise PruneError(f"'{path}': name is {name!r}; expected lower-case letters, digits and _")
    if not isinstance(entries, list) or not entries:
        raise PruneError(f"'{path}': expected a list of edits")
    edits = [_edit(f"'{path}', edit {number}", name, entry) for number, entry in enumerate(entries, 1)]
    twice = [name for name, count in Counter(edit.name for edit in edits).items() if count > 1]
    if twice:
        raise PruneError(f"'{path}': two edits are called '{twice[0]}'")
    return edits


def _edit(which: str, patch: str, entry: Any) -> Edit:
    if not isinstance(entry, dict) or not _NEEDED <= set(entry) <= _KNOWN:
        needed = ", ".join(sorted(_NEEDED))
        raise PruneError(f"{which}: expected the keys {needed}, and at most symbol, variable, uses")
    _check(which, entry)
    return Edit(
        name=f"{patch}/{entry['name']}",
        file=entry["file"],
        symbol=entry.get("symbol", ""),
        where=entry["where"],
        lines=tuple(entry["lines"].strip("\n").split("\n")),
        variable=entry.get("variable", ""),
        uses=tuple(entry.get("uses", ())),
    )


def _check(which: str, entry: Mapping[str, Any]) -> None:
    for key, value in entry.items():
        if key != "uses" and not isinstance(value, str):
            raise PruneError(f"{which}: {key} is {value!r}; expected text")
    if not _NAME.fullmatch(entry["name"]):
        raise PruneError(f"{which}: name is '{entry['name']}'; expected lower-case letters, digits and _")
    if entry["where"] not in PLACES:
        raise PruneError(f"{which}: where is '{entry['where']}'; expected one of: {', '.join(PLACES)}")
    parts = PurePosixPath(entry["file"]).parts
    if not parts or parts[0] == "/" or ".." in parts or "\\" in entry["file"]:
        raise PruneError(f"{which}: file is '{entry['file']}'; expected a path below the fork's root")
    if not entry["lines"].strip():
        raise PruneError(f"{which}: lines is {entry['lines']!r}; expected at least one line")
    uses = entry.get("uses", [])
    if not isinstance(uses, list) or not all(isinstance(name, str) for name in uses):
        raise PruneError(f"{which}: uses is {uses!r}; expected a list of names")
    if (entry["where"] == "after assignment") != bool(entry.get("variable")):
        raise PruneError(f"{which}: variable goes with where: after assignment, and it with variable")
