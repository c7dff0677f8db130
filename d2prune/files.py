"""Atomic writing of files: a file is written whole, or not at all."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from d2prune.errors import PruneError

OURS = ".d2prune-"
"""What the names of temporary files have, so that nobody else's are removed."""
STALE = 600
"""Seconds after which a temporary file counts as left behind."""


@contextmanager
def atomic_write(path: str | os.PathLike[str], mode: str = "w") -> Iterator[IO[Any]]:
    """Open a temporary file that replaces ``path`` when the block ends without an error.

    Args:
        path: the file to write; its folder must exist.
        mode: "w" (UTF-8 text) or "wb".

    Raises:
        PruneError: if the disk is full, say; what was at ``path`` before is still there.
    """
    path = Path(path)
    encoding = None if "b" in mode else "utf-8"
    try:
        made, temporary = tempfile.mkstemp(prefix=f".{path.name}{OURS}", suffix=".tmp", dir=path.parent)
    except OSError as error:
        raise unwritten(path, error) from error
    try:
        os.close(made)
        with open(temporary, mode, encoding=encoding) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException as error:
        Path(temporary).unlink(missing_ok=True)
        # torch.save goes on to close its file, and then tells of that.
        for cause in (error, error.__context__):
            if isinstance(cause, OSError):
                raise unwritten(path, cause) from error
        raise


def unwritten(path: object, error: OSError) -> PruneError:
    """Return the error, in one line, for a file that the system did not let us write."""
    return PruneError(f"'{path}' can't be written: {error.strerror or error}")


def sweep(folder: str | os.PathLike[str]) -> None:
    """Remove the temporary files that killed writes left in ``folder``."""
    for path in Path(folder).glob(f".*{OURS}*.tmp"):
        if path.is_file() and time.time() - path.stat().st_mtime > STALE:
            path.unlink(missing_ok=True)


def _umask() -> int:
    """Return the process's umask, which mkstemp ignores; it can only be read by setting it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
