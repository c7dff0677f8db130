"""A script of nobody's, the edits for each kind of place in it, and the ways a file may be written."""

from __future__ import annotations

from d2prune.patching import Edit

FILE = "pkg/train.py"
FORK = '''\
#!/usr/bin/env python
# -*- coding: utf-8 -*-
"""Trains."""
import os, sys  # two in a line
from json import (
    dumps,
)

assert os and sys and dumps


def decorate(f):
    return f


class Größe:
    pass


@decorate
class Trainer(Größe, metaclass=type):  # über alles
    """Of theirs."""

    @property
    def size(self): return 1

    async def run(self, batch):
        """Two lines
        of words."""
        if batch is None:
            return batch
        out = {
            "batch": batch,
        }
        return out

    def build(self, cfg):
        def inner(x):
            found = x
            return found

        self.made = inner(cfg); self.kept = cfg


try:
    import nowhere_at_all
except ImportError:
    def setup(args):
        cfg = [args]
        cfg.append(args)
        return cfg


class Plain:
    pass


def last(x):
    if x:
        return x
    seen.append("last")
'''


def edit(name, where, symbol="", **options):
    lines = options.pop("lines", (f'seen.append("{name}")',))
    return Edit(f"test/{name}", FILE, symbol, where, tuple(lines), **options)


NESTED = ("if batch:", "    for _ in range(1):", '        seen.append("nested")', "", "del batch")
SUBCLASS = ("class Trainer(collections.UserDict, Trainer):", "    own = 1")
EDITS = [
    edit("imports", "after imports", lines=["import collections", "seen = []"]),
    edit("module_start", "start", lines=["from __future__ import annotations"]),
    edit(
        "trainer", "after", "Trainer", lines=["class Trainer(collections.UserDict, Trainer):", "    own = 1"]
    ),
    edit("run", "start", "Trainer.run"),
    edit("nested", "start", "Trainer.build.inner", lines=["batch = x", *NESTED], uses=("x",)),
    edit("run_return", "before return", "Trainer.run", uses=("out", "self", "batch")),
    edit("build", "end", "Trainer.build", uses=("self",)),
    edit("setup", "after assignment", "setup", variable="cfg", uses=("cfg", "args")),
    edit("setup_return", "before return", "setup"),
    edit("class_start", "start", "Trainer", lines=["lines = 1"]),
    edit("class_end", "end", "Trainer", lines=["more = lines + 1"]),
    edit("above", "before", "Trainer"),
    edit("below", "after", "Trainer.run", lines=["also = run"]),
    edit("last", "end", "last"),
    edit("end", "end"),
]
STYLES = {
    "plain": lambda text: text.encode(),
    "crlf": lambda text: text.replace("\n", "\r\n").encode(),
    "tabs": lambda text: text.replace("    ", "\t").encode(),
    "two spaces": lambda text: text.replace("    ", "  ").encode(),
    "no newline at the end": lambda text: text.rstrip("\n").encode(),
    "crlf, none at the end": lambda text: text.rstrip("\n").replace("\n", "\r\n").encode(),
    "byte order mark": lambda text: text.encode("utf-8-sig"),
    "latin": lambda text: text.replace("coding: utf-8", "coding: latin-1").encode("latin-1"),
    "form feed": lambda text: text.replace("\n\n\n@", "\n\n\f\n@").encode(),
    "mixed endings": lambda text: text.replace("\n\n", "\r\n\n").encode(),
}


def write(folder, text=FORK, style="plain"):
    """The fork's root and its one file."""
    path = folder / FILE
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(STYLES[style](text))
    return folder, path
