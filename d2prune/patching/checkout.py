"""Checking, applying, reverting and printing patches of a fork on disk. All files change, or none."""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from d2prune.errors import PruneError
from d2prune.files import atomic_write
from d2prune.patching.edits import Edit
from d2prune.patching.insertion import State, insert, remove, state_of
from d2prune.patching.source import Source

Change = Callable[[Source, Edit], Source]


@dataclass(frozen=True)
class Finding:
    """The state of one edit in a fork, or the reason why it can't be applied."""

    edit: Edit
    state: State | None
    reason: str = ""

    def __str__(self) -> str:
        """Return one line for a terminal."""
        return f"{self.edit.place}: {self.state.value}" if self.state else self.reason


def check(edits: Sequence[Edit], root: str | os.PathLike[str]) -> list[Finding]:
    """Find the state of every edit, writing nothing; it is None for an edit that can't be applied."""
    return [_look(edit, Path(root)) for edit in edits]


def apply(edits: Sequence[Edit], root: str | os.PathLike[str]) -> list[Path]:
    """Insert the edits that are missing; return the files that changed.

    Raises:
        PruneError: if an edit has no place, or is there in another form. Nothing is written then.
    """
    return _write(_changed(edits, Path(root), _insert_missing))


def revert(edits: Sequence[Edit], root: str | os.PathLike[str]) -> list[Path]:
    """Remove what :func:`apply` inserted, changed since or not; return the files that changed.

    Raises:
        PruneError: if a file or one of two markers is gone. Nothing is written then.
    """
    return _write(_changed(edits, Path(root), remove))


def diff(edits: Sequence[Edit], root: str | os.PathLike[str]) -> str:
    """Return the patch as a unified diff for this fork (``patch -p1``), whether it is applied or not.

    Raises:
        PruneError: as :func:`apply` does.
    """
    without = _changed(edits, Path(root), remove)
    both = {path: (old, _all(edits, path, old, Path(root), _insert_missing)) for path, old in without.items()}
    return "".join(_unified(old, new) for old, new in both.values())


def _look(edit: Edit, root: Path) -> Finding:
    try:
        source = _read(_path(root, edit), edit)
        state = state_of(source, edit)
        if state is State.ABSENT:
            insert(source, edit)
        return Finding(edit, state)
    except PruneError as error:
        return Finding(edit, None, str(error))


def _insert_missing(source: Source, edit: Edit) -> Source:
    state = state_of(source, edit)
    if state is State.CHANGED:
        raise PruneError(f"{edit.place}: {state.value}; revert it first, then apply it again")
    return insert(source, edit) if state is State.ABSENT else source


def _path(root: Path, edit: Edit) -> Path:
    """Return the path of an edit's file; ``root`` is the folder of the package, or the package itself."""
    first, _, below = edit.file.partition("/")
    package = root.resolve()
    if below and not (package / first).exists() and package.name == first:
        return package / below
    return package / edit.file


def _read(path: Path, edit: Edit) -> Source:
    try:
        return Source.decode(edit.file, path.read_bytes())
    except OSError as error:
        raise PruneError(f"{edit.place}: '{path}' can't be read ({error.strerror})") from error


def _changed(edits: Sequence[Edit], root: Path, change: Change) -> dict[Path, Source]:
    """Return every file of the patch, as it is after ``change``."""
    first = {_path(root, edit): edit for edit in reversed(edits)}
    sources = {path: _read(path, edit) for path, edit in first.items()}
    return {path: _all(edits, path, source, root, change) for path, source in sources.items()}


def _all(edits: Iterable[Edit], path: Path, source: Source, root: Path, change: Change) -> Source:
    for edit in edits:
        if _path(root, edit) == path:
            source = change(source, edit)
    return source


def _write(sources: dict[Path, Source]) -> list[Path]:
    before = {path: path.read_bytes() for path in sources}
    after = {path: source.encode() for path, source in sources.items()}
    changed = [path for path in after if after[path] != before[path]]
    try:
        for path in changed:
            _replace(path, after[path])
    except BaseException as error:
        for path in changed:
            if path.read_bytes() != before[path]:
                _replace(path, before[path])
        if isinstance(error, OSError):
            raise PruneError(f"'{error.filename}' can't be written ({error.strerror})") from error
        raise
    return changed


def _replace(path: Path, data: bytes) -> None:
    mode = path.stat().st_mode
    target = path.resolve()  # of a link, the file itself
    with atomic_write(target, "wb") as file:
        file.write(data)
    target.chmod(mode)  # scripts stay executable


def _unified(old: Source, new: Source) -> str:
    lines = difflib.unified_diff(old.lines, new.lines, f"a/{old.file}", f"b/{new.file}")
    endless = "\n\\ No newline at end of file\n"
    return "".join(line if line.endswith("\n") else line + endless for line in lines)
