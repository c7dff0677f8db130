"""Loading a file into a model, and showing that a refused file has changed nothing."""

from __future__ import annotations

import tracemalloc
from contextlib import contextmanager

import pytest

from d2prune.checkpoint import PruningCheckpointer
from d2prune.errors import PruneError
from tests.tiny_blendmask import equal, snapshot


def load(model, path):
    return PruningCheckpointer(model).load(str(path))


def untouched(model, path, message=None):
    """Loading fails, once and for all, and changes nothing."""
    before = snapshot(model)
    checkpointer = PruningCheckpointer(model)
    for _ in range(2):  # a failure must not spoil the checkpointer either
        with pytest.raises(PruneError, match=message):
            checkpointer.load(str(path))
    assert equal(snapshot(model), before)


@contextmanager
def modest(most=1 << 24):
    """What happens inside never holds more than this many bytes of Python's memory."""
    tracemalloc.start()
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < most
