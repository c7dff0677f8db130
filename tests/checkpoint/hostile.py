"""Files that would run code if they were unpickled as they ask to be."""

from __future__ import annotations

import functools
import os
import pickle
import struct
import zipfile

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


def text(value):
    """The opcode of a text."""
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def name(module, attribute):
    """The opcode of a class or function."""
    return f"c{module}\n{attribute}\n".encode()


def attributes(target, key, value):
    """Opcodes that set an attribute of ``target`` as a state in slots does."""
    return target + b"N}" + text(key) + value + b"s\x86b"


def program(*values):
    """A pickle of a dict with these opcodes' results under "0", "1" and so on."""
    items = b"".join(text(str(i)) + value for i, value in enumerate(values))
    return b"\x80\x02}(" + items + b"u."


def archive(path, pickled, compression=zipfile.ZIP_STORED, **members):
    """A zip file as torch.save writes it, with this pickle and these tensors' bytes by their keys."""
    with zipfile.ZipFile(path, "w", compression) as out:
        out.writestr("x/data.pkl", pickled)
        out.writestr("x/byteorder", b"little")
        for key, data in members.items():
            out.writestr(f"x/data/{key.removeprefix('t')}", data)
        out.writestr("x/version", b"3\n")


class Forged:
    """A numpy dtype that says what it likes of itself."""

    def __init__(self, kind="f8", *state):
        self.kind, self.state = kind, state

    def __reduce__(self):
        return np.dtype, (self.kind, False, True), (3, *self.state)


class FilledArray:
    """A numpy array of a shape, dtype and bytes of the file's choice."""

    def __init__(self, shape, dtype, data):
        self.state = (1, shape, dtype, False, data)

    def __reduce__(self):
        return np.zeros(1).__reduce__()[0], (np.ndarray, (0,), b"b"), self.state
