"""Files that would run code if they were unpickled as they ask to be."""

from __future__ import annotations

import functools
import os
import pickle

import numpy as np
import torch

SIDE_EFFECT_MODULE = """
import os
class Thing:
    def __setstate__(self, state):
        os.mkdir(state)
"""


class Reduce:
    """REDUCE: a function of the file's choice is called."""

    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return os.mkdir, (self.marker,)


class Chained(Reduce):
    """REDUCE of the result of a REDUCE."""

    def __reduce__(self):
        return functools.partial(os.mkdir, self.marker), ()


class Listed(Reduce):
    """Items are appended to, and set on, the result."""

    def __reduce__(self):
        return os.mkdir, (self.marker,), None, iter([1, 2]), iter([("a", 1)])


def build(marker, folder):
    """BUILD: a class of the file's choice is handed a state, after its module is imported."""
    (folder / "d2prune_hostile_module.py").write_text(SIDE_EFFECT_MODULE)
    import d2prune_hostile_module as module

    thing = module.Thing()
    thing.__dict__["state"] = str(marker)
    thing.__class__.__getstate__ = lambda self: self.state
    return thing


def places(evil):
    """Where a file may hold it."""
    weights = {"w": np.ones(2)}
    return {
        "struct": {"model": weights, "struct": {"deep": [evil]}},
        "entry of model": {"model": {**weights, "evil": evil}},
        "model": {"model": evil, "iteration": 1},
        "top": evil,
        "key": {"model": weights, "optimizer": {"state": (1, [evil])}},
    }


def write(data, path, kind):
    if kind == "pkl":
        path.write_bytes(pickle.dumps(data))
    else:
        torch.save(data, path, _use_new_zipfile_serialization=kind == "zip")
