"""The checkpoint that a run goes on from: the last one, or the one before where the last is damaged."""

from __future__ import annotations

import logging
from pathlib import Path

from d2prune.checkpoint import read_checkpoint
from d2prune.engine.settings import PRUNED_FILE
from d2prune.errors import PruneError
from d2prune.files import atomic_write

logger = logging.getLogger(__name__)
TAG = "last_checkpoint"


def last_checkpoint(folder: str) -> str:
    """Return the path of the checkpoint that ``folder``'s last_checkpoint names; empty if there is none."""
    tag = Path(folder) / TAG
    if not tag.is_file():
        return ""
    file = tag.parent / tag.read_text(encoding="utf-8").strip()
    return str(file) if file.is_file() else ""


def fall_back(folder: str) -> None:
    """Let last_checkpoint name the newest checkpoint that can be read, if the one it names can't be.

    Where none can, it stays as it is: reading it then says what is wrong.
    """
    last = last_checkpoint(folder)
    damage = damage_of(last) if last else ""
    if not damage:
        return
    by_iteration = sorted(Path(folder).glob("model_[0-9]*.pth"), reverse=True)
    for path in (*by_iteration, Path(folder) / PRUNED_FILE):
        if str(path) != last and path.is_file() and not damage_of(path):
            logger.warning("%s; going on from '%s', the one before", damage, path.name)
            with atomic_write(Path(folder) / TAG) as file:
                file.write(path.name)
            return


def damage_of(path: str | Path) -> str:
    """Return what is wrong with a checkpoint; empty if it can be read."""
    try:
        read_checkpoint(path)
    except PruneError as error:
        return str(error)
    return ""
