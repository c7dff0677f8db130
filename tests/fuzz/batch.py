"""Runs cases in a process of its own, whose memory is limited: ``python -m tests.fuzz.batch zip:0:300``.

Prints one line of JSON for each kind named, and a case's name to stderr before it, for when the process dies.
"""

from __future__ import annotations

import dataclasses
import faulthandler
import json
import logging
import os
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from tests.fuzz import configs, specs
from tests.fuzz.loads import Judge, by_checkpointer, by_load
from tests.fuzz.mutations import CHECKPOINTS, checkpoint
from tests.fuzz.watched import Tally, Watch, limit_memory

Run = Callable[[Watch, Path, range], None]


def checkpoints(kind: str, watch: Watch, folder: Path, seeds: range) -> None:
    """Every second one is loaded by the trainer's checkpointer, into a model that is narrow already."""
    path = folder / "x.pth"
    judges = Judge(watch, path, by_load, pruned=False), Judge(watch, path, by_checkpointer, pruned=True)
    for seed in seeds:
        case = checkpoint(kind, seed)
        name = f"{kind} {seed} ({case.how}, {('load', 'checkpointer')[seed % 2]})"
        watch.judge(name, partial(judges[seed % 2], case, name))


KINDS: dict[str, Run] = {
    **{kind: partial(checkpoints, kind) for kind in CHECKPOINTS},
    "spec text": specs.mutated,
    "spec JSON": specs.generated,
    "YAML text": configs.mutated,
    "YAML values": configs.generated,
}


def run(kind: str, seeds: range) -> Tally:
    """The tally of these cases."""
    watch = Watch()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        KINDS[kind](watch, Path(folder).resolve(), seeds)
        if os.path.exists("evil"):
            watch.tally.wrong.append(f"{kind}: what a file names was called")
        os.chdir("/")
    return watch.tally


def main() -> None:
    faulthandler.enable()
    logging.disable(logging.CRITICAL)
    torch.set_num_threads(1)
    for kind in KINDS:  # imports and caches are not the cases'
        run(kind, range(2))
    limit_memory()
    for word in sys.argv[1:]:
        kind, start, count = word.split(":")
        tally = run(kind, range(int(start), int(start) + int(count)))
        print(json.dumps({"kind": kind, **dataclasses.asdict(tally)}), flush=True)


if __name__ == "__main__":
    main()
