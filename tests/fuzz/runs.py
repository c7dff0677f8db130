"""A small prune and a small fine-tune in processes of their own, which can be killed at any moment.

The processes are forks of one that has imported everything, so that their time is the runs' own.
"""

from __future__ import annotations

import contextlib
import os
import time
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from tests.engine.tiny_runs import command
from tests.tiny_blendmask import CONFIG

SERVER = get_context("forkserver")
LONGEST = 300.0  # seconds after which a run on a busy machine is given up


def run(data: str, folder: str, log: str, words: tuple[str, ...]) -> None:
    """What the process does: tools/train_net.py's main, its output going to a file."""
    torch.set_num_threads(1)
    os.environ["TINY_DATA"] = data
    with open(log, "a") as out, contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        import tests.engine.registered  # noqa: F401

        command(CONFIG, folder, *words)


def start(data: Path, folder: Path, *words: Any) -> Any:
    """Begin a run in ``folder``."""
    log = folder.with_name(f"{folder.name}.log")
    process = SERVER.Process(target=run, args=(str(data), str(folder), str(log), tuple(map(str, words))))
    process.start()
    return process


def spent(process: Any, begin: float) -> float:
    """Seconds of the processor that a run has used: a busy machine does not lengthen them.

    Without /proc, those that have passed since ``begin``.
    """
    try:
        fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return time.monotonic() - begin
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def until(process: Any, seconds: float) -> float:
    """Wait until a run has used so many seconds, or is over; return what it had used then."""
    begin, used = time.monotonic(), 0.0
    while process.is_alive() and used < seconds and time.monotonic() - begin < LONGEST:
        used = max(used, spent(process, begin))
        process.join(0.01)
    return used


def finished(process: Any) -> tuple[int | None, float]:
    """(exit code, seconds used) of a run that is left alone."""
    used = until(process, LONGEST)
    process.kill()
    process.join()
    return process.exitcode, used


def killed_after(process: Any, seconds: float, more: float) -> bool:
    """Kill a run that has used so many seconds, and ``more`` of the clock; return whether it was alive."""
    until(process, seconds)
    process.join(more)  # so that it may also be waiting for the disk
    alive = process.is_alive()
    process.kill()
    process.join()
    return alive


def preload() -> None:
    """Let the server of forks import what every run imports."""
    SERVER.set_forkserver_preload(["tests.fuzz.preloaded"])
