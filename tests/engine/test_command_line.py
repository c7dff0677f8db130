"""What a tool's user can mend is said in one line; what is a bug keeps its traceback."""

from __future__ import annotations

import sys

import pytest

from d2prune.engine.command_line import run_command
from d2prune.errors import PruneError

IN_A_WORKER = """Caught PruneError in DataLoader worker process 0.
Original Traceback (most recent call last):
  File "worker.py", line 1, in fetch
OSError: image file is truncated

d2prune.errors.PruneError: the image 'x.png' can't be read
"""


@pytest.fixture
def said(monkeypatch):
    """Runs a main that raises; what the tool says."""
    monkeypatch.setattr(sys, "argv", ["tools/train_net.py"])

    def run(error):
        def main(args):
            raise error

        with pytest.raises(SystemExit) as stopped:
            run_command(main)
        return stopped.value.code

    return run


def test_a_prune_error_is_one_line(said):
    assert said(PruneError("AMOUNT is 3")) == "train_net: AMOUNT is 3"
    assert said(PruneError(IN_A_WORKER)) == "train_net: the image 'x.png' can't be read"


def test_a_folder_that_cannot_be_written_is_one_line(said, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError) as failed:
        (tmp_path / "file" / "run").mkdir()
    assert said(failed.value) == f"train_net: '{tmp_path}/file/run' can't be written: Not a directory"
    assert said(OSError(28, "No space left on device", "log.txt")).endswith(
        "'log.txt' can't be written: No space left on device"
    )


def test_other_errors_keep_their_traceback(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["tools/train_net.py"])
    for error in (OSError(110, "timed out"), ConnectionResetError("gone"), RuntimeError("a bug")):

        def main(args, error=error):
            raise error

        with pytest.raises(type(error)):
            run_command(main)
