"""One call at a time, held to what every read of a foreign file is held to: error, time and memory."""

from __future__ import annotations

import contextlib
import resource
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from d2prune.errors import PruneError

SECONDS = 2.0  # of the processor's time, which other processes on the machine do not lengthen
BYTES = 1 << 30
_STUCK = 20.0  # seconds after which a call is ended
_NO_MEMORY = ("can't allocate memory", "not enough memory", "Cannot allocate memory")


class WrongError(AssertionError):
    """What a case must not do."""


class _Stuck(BaseException):
    """It took too long: no Exception, since d2prune turns several of those into its own."""


@dataclass
class Tally:
    """What became of the cases of one kind.

    Attributes:
        loaded: how many loaded, and rightly.
        refused: how many ended in a PruneError that left all as it was.
        wrong: what the others did.
        longest: the most seconds that one took.
        slowest: which one that was.
        most: the most bytes by which the process's address space grew beyond what it was at the start.
    """

    loaded: int = 0
    refused: int = 0
    wrong: list[str] = field(default_factory=list)
    longest: float = 0.0
    slowest: str = ""
    most: int = 0


def limit_memory(more: int = BYTES) -> None:
    """Let this process's address space grow by so many bytes at the most: what asks for more fails."""
    if _address_space() is not None:
        resource.setrlimit(resource.RLIMIT_AS, (_address_space() + more,) * 2)


def _address_space(peak: bool = False) -> int | None:
    status = Path("/proc/self/status")
    if not status.exists():  # not on Linux
        return None
    rows = dict(line.split(":", 1) for line in status.read_text().splitlines())
    return int(rows["VmPeak" if peak else "VmSize"].split()[0]) << 10


class Watch:
    """Runs calls and counts."""

    def __init__(self) -> None:
        self.tally = Tally()
        self._start = _address_space() or 0

    def call(self, name: str, load: Callable[[], Any]) -> tuple[Any, PruneError | None]:
        """What ``load`` returns, or the PruneError that it raises.

        Raises:
            WrongError: if it raises anything else, takes too long, or asks for too much memory.
        """
        start = time.process_time()
        try:
            with _ended_when_stuck():
                value, error = load(), None
        except PruneError as caught:
            value, error = None, caught
        except (Exception, _Stuck) as caught:
            raise WrongError(f"{type(caught).__name__}: {str(caught)[:300]}") from caught
        self._measure(name, time.process_time() - start)
        if error is not None:
            _check_error(error)
        return value, error

    def _measure(self, name: str, seconds: float) -> None:
        if seconds > self.tally.longest:
            self.tally.longest, self.tally.slowest = seconds, name
        self.tally.most = max(self.tally.most, (_address_space(peak=True) or 0) - self._start)
        if seconds > SECONDS:
            raise WrongError(f"it took {seconds:.1f} s")

    def judge(self, name: str, case: Callable[[], bool]) -> None:
        """Count a case, which returns whether it loaded, or raises WrongError."""
        try:
            if case():
                self.tally.loaded += 1
            else:
                self.tally.refused += 1
        except (WrongError, SystemError) as wrong:  # the latter where a signal ends what C code called
            self.tally.wrong.append(f"{name}: {wrong}")


def _check_error(error: PruneError) -> None:
    """One line of no great length, for which nothing larger than allowed was asked for."""
    if "\n" in str(error) or len(str(error)) > 3000:
        raise WrongError(f"an error of {len(str(error))} characters: {str(error)[:200]!r}")
    link: BaseException | None = error
    while link is not None:
        if isinstance(link, MemoryError) or any(text in str(link) for text in _NO_MEMORY):
            raise WrongError(f"it asked for too much memory: {str(error)[:200]}")
        link = link.__cause__ or link.__context__


@contextlib.contextmanager
def _ended_when_stuck() -> Iterator[None]:
    def end(*_: object) -> None:
        raise _Stuck(f"still at it after {_STUCK} s")

    before = signal.signal(signal.SIGPROF, end)
    signal.setitimer(signal.ITIMER_PROF, _STUCK)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)
