"""Inserting, recognising and removing one edit in one file, by the markers around it."""

from __future__ import annotations

from enum import Enum

from d2prune.errors import PruneError
from d2prune.patching.anchors import Place, find_place
from d2prune.patching.edits import BEGIN, END, Edit
from d2prune.patching.source import Source


class State(Enum):
    """The state of an edit in a file."""

    ABSENT = "not there yet; it fits"
    THERE = "there"
    CHANGED = "there, but not as the patch has it"


def state_of(source: Source, edit: Edit) -> State:
    """Return the state of the edit in the file; raise PruneError if its markers are damaged."""
    block = _block(source, edit)
    if block is None:
        return State.ABSENT
    held = [line.strip() for line in source.lines[block.start + 1 : block.stop - 1]]
    return State.THERE if held == [line.strip() for line in edit.lines] else State.CHANGED


def insert(source: Source, edit: Edit) -> Source:
    """Return the file with the edit.

    Raises:
        PruneError: if there is no place for it, the result would not be Python, or can't be reverted.
    """
    place = find_place(source, edit)
    after = _insert(source, edit, place)
    try:
        after.parse()
    except PruneError as error:
        raise PruneError(f"{edit.place}: with it, {error}") from error
    if state_of(after, edit) is not State.THERE or remove(after, edit) != source:
        raise PruneError(f"{edit.place}: the lines would not come out again as they went in")
    return after


def remove(source: Source, edit: Edit) -> Source:
    """Return the file without the edit.

    Raises:
        PruneError: if the edit's markers are damaged.
    """
    block = _block(source, edit)
    if block is None:
        return source
    lines = source.lines
    above, below = lines[: block.start], lines[block.stop :]
    if not below and above and not lines[-1].endswith(("\r", "\n")):
        above[-1] = above[-1].rstrip("\r\n")  # the file ended without a newline before, too
    return source.with_lines(above + below)


def _marked(source: Source, marker: str, edit: Edit) -> int | None:
    found = [n for n, line in enumerate(source.lines) if line.strip() == marker + edit.name]
    if len(found) > 1:
        raise PruneError(f"{edit.place}: '{marker}{edit.name}' stands there {len(found)} times")
    return found[0] if found else None


def _block(source: Source, edit: Edit) -> range | None:
    begin, end = _marked(source, BEGIN, edit), _marked(source, END, edit)
    if begin is None and end is None:
        return None
    if begin is None or end is None or end < begin:
        raise PruneError(f"{edit.place}: one of its two markers is gone; take the rest out by hand")
    return range(begin, end + 1)


def _insert(source: Source, edit: Edit, place: Place) -> Source:
    lines = source.lines
    line = _beside_blocks(lines, place.line)
    newline = source.newline(max(line - 1, 0))
    ours = [BEGIN + edit.name, *edit.lines, END + edit.name]
    block = [_indented(line, place) + newline for line in ours]
    if line == len(lines) and lines and not lines[-1].endswith(("\r", "\n")):
        lines[-1] += newline
        block[-1] = block[-1].removesuffix(newline)
    return source.with_lines(lines[:line] + block + lines[line:])


def _beside_blocks(lines: list[str], line: int) -> int:
    """Return ``line``, moved outside of another edit's block: the parser does not see markers."""
    while line < len(lines) and lines[line].strip().startswith(END):
        line += 1
    while line > 0 and lines[line - 1].strip().startswith(BEGIN):
        line -= 1
    return line


def _indented(line: str, place: Place) -> str:
    text = line.lstrip(" ")
    levels, rest = divmod(len(line) - len(text), 4)
    return (place.indent + place.unit * levels + " " * rest + text).rstrip()
