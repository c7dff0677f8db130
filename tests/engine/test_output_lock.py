"""OUTPUT_DIR belongs to one run at a time."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest
from filelock import FileLock

from d2prune.engine import output_lock
from d2prune.engine.output_lock import FILE, hold
from d2prune.errors import PruneError

HOLD = """
import sys
from filelock import FileLock
lock = FileLock(sys.argv[1])
lock.acquire()
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def other(tmp_path):
    """Another process that holds the folder."""
    words = [sys.executable, "-c", HOLD, str(tmp_path / FILE)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"held\n"
        yield process
        process.kill()


def test_another_run_is_refused_until_it_has_died(other, tmp_path, monkeypatch):
    monkeypatch.setattr(output_lock, "WAIT", 0.1)
    with pytest.raises(PruneError, match=r"OUTPUT_DIR '.*' is in use by another run"):
        hold(str(tmp_path))
    other.send_signal(signal.SIGKILL)
    other.wait()
    hold(str(tmp_path))


def test_a_run_holds_its_folder_and_may_ask_again(tmp_path):
    folder = tmp_path / "new"
    hold(str(folder))
    hold(f"{folder}/")
    with pytest.raises(TimeoutError):
        FileLock(folder / FILE, timeout=0).acquire()
