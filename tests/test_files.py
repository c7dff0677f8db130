"""Files are there whole, or not at all."""

from __future__ import annotations

import os
import resource
import signal

import pytest
import torch

from d2prune.checkpoint.writer import write_checkpoint
from d2prune.errors import PruneError
from d2prune.files import STALE, atomic_write, sweep


def test_the_block_writes_text_and_bytes(tmp_path):
    with atomic_write(tmp_path / "a.txt") as file:
        file.write("µ")
    with atomic_write(tmp_path / "b", "wb") as file:
        file.write(b"\x00")
    assert (tmp_path / "a.txt").read_bytes() == "µ".encode() and (tmp_path / "b").read_bytes() == b"\x00"
    assert sorted(os.listdir(tmp_path)) == ["a.txt", "b"]


def test_others_see_the_file_before_until_the_end(tmp_path):
    path = tmp_path / "a"
    path.write_text("before")
    with atomic_write(path) as file:
        file.write("after")
        file.flush()
        assert path.read_text() == "before"
    assert path.read_text() == "after"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_leaves_the_file_before(tmp_path, error):
    path = tmp_path / "a"
    path.write_text("before")
    with pytest.raises(error), atomic_write(path) as file:
        file.write("half")
        raise error
    assert path.read_text() == "before" and os.listdir(tmp_path) == ["a"]


@pytest.fixture
def small_disk():
    """Files of this process may have 100,000 bytes."""
    kept = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, kept[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, kept)
    signal.signal(signal.SIGXFSZ, ignored)


def test_a_full_disk_is_an_error_in_one_line(tmp_path, small_disk):
    path = tmp_path / "a"
    path.write_text("before")
    with pytest.raises(PruneError, match="a' can't be written: File too large$"), atomic_write(path) as file:
        file.write("x" * 200_000)
    with pytest.raises(PruneError, match="a' can't be written: File too large$"):
        write_checkpoint({"weights": torch.zeros(100_000), "more": torch.zeros(10)}, path)
    assert path.read_text() == "before" and os.listdir(tmp_path) == ["a"]


def test_the_umask_is_respected_and_kept(tmp_path):
    before = os.umask(0o027)
    try:
        with atomic_write(tmp_path / "a"):
            pass
        assert os.umask(0o027) == 0o027
    finally:
        os.umask(before)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o640


def test_a_missing_folder_is_an_error(tmp_path):
    expected = "missing/a' can't be written: No such file or directory$"
    with pytest.raises(PruneError, match=expected), atomic_write(tmp_path / "missing" / "a"):
        pass


def test_what_killed_writes_left_is_swept(tmp_path, monkeypatch):
    others = tmp_path / ".cache.tmp"
    others.write_text("of another program")
    with monkeypatch.context() as killed:
        killed.setattr(os, "replace", lambda *_: None)
        with atomic_write(tmp_path / "a") as file:
            file.write("x")
    (left,) = (path for path in tmp_path.iterdir() if path != others)
    sweep(tmp_path)
    assert left.exists(), "it may be being written"
    for path in (left, others):
        os.utime(path, (path.stat().st_mtime - STALE - 1,) * 2)
    sweep(tmp_path)
    assert not left.exists() and others.exists()
