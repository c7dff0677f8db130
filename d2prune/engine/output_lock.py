"""One run at a time writes to an OUTPUT_DIR; a run that dies leaves it to the next."""

from __future__ import annotations

import os

from detectron2.utils import comm
from filelock import FileLock, Timeout

from d2prune.errors import PruneError

FILE = ".d2prune.lock"
WAIT = 10.0
"""Seconds to wait for another run's end: the data loader's workers outlive a killed one for a moment."""

_held: dict[str, FileLock] = {}


def hold(folder: str) -> None:
    """Lock ``folder`` until this process ends; on the first rank only.

    Raises:
        PruneError: if another process holds it.
    """
    if not comm.is_main_process():
        return
    os.makedirs(folder, exist_ok=True)
    path = os.path.join(os.path.realpath(folder), FILE)
    lock = _held.setdefault(path, FileLock(path))
    if lock.is_locked:
        return
    try:
        lock.acquire(timeout=WAIT)
    except Timeout:
        raise PruneError(
            f"OUTPUT_DIR '{folder}' is in use by another run, which holds {FILE} there; wait for its end, or "
            "set OUTPUT_DIR to another folder",
            keys=("OUTPUT_DIR",),
        ) from None
