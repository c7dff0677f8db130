"""Forks on disk: what goes in comes out byte by byte, in any style; all edits or none."""

from __future__ import annotations

import asyncio
import os
import random
import subprocess

import pytest

from d2prune.errors import PruneError
from d2prune.patching import apply, check, checkout, diff, revert
from d2prune.patching.insertion import State
from tests.each import each
from tests.patching.made_up_fork import EDITS, FORK, STYLES, edit, write


def states(edits, root):
    return [finding.state for finding in check(edits, root)]


@pytest.mark.parametrize("style", STYLES)
def test_what_goes_in_comes_out(style, tmp_path):
    root, path = write(tmp_path, style=style)
    before = path.read_bytes()
    assert states(EDITS, root) == [State.ABSENT] * len(EDITS)
    assert apply(EDITS, root) == [path]
    patched = path.read_bytes()
    assert states(EDITS, root) == [State.THERE] * len(EDITS)
    assert apply(EDITS, root) == [] and path.read_bytes() == patched, "the second time nothing is done"
    assert revert(EDITS, root) == [path] and path.read_bytes() == before
    assert revert(EDITS, root) == [] and path.read_bytes() == before


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("style", ["plain", "crlf, none at the end"])
def test_in_any_order(style, seed, tmp_path):
    root, path = write(tmp_path, style=style)
    before, shuffle = path.read_bytes(), random.Random(seed).sample
    for one in shuffle(EDITS, len(EDITS)):
        apply([one], root)
    assert states(EDITS, root) == [State.THERE] * len(EDITS)
    for one in shuffle(EDITS, len(EDITS)):
        revert([one], root)
    assert path.read_bytes() == before


@pytest.mark.parametrize("style", ["plain", "crlf", "tabs", "two spaces", "latin"])
def test_the_lines_run_where_they_belong(style, tmp_path):
    root, path = write(tmp_path, style=style)
    apply(EDITS, root)
    space = {"__name__": "train"}
    exec(compile(path.read_bytes(), "train.py", "exec"), space)
    seen, trainer = space["seen"], space["Trainer"]
    assert seen == ["above", "end"] and trainer.more == 2 and trainer.also is trainer.run
    assert [base.__name__ for base in trainer.__bases__] == ["UserDict", "Trainer"] and trainer.own == 1
    assert trainer.__bases__[1].__doc__ == "Of theirs."
    seen.clear()
    assert asyncio.run(trainer().run(None)) is None
    assert asyncio.run(trainer().run(7)) == {"batch": 7}
    assert seen == ["run", "run", "run_return"]
    seen.clear()
    made = trainer()
    made.build([1])
    assert seen == ["nested", "build"] and made.kept == [1]
    seen.clear()
    assert space["setup"](1) == [1, 1] and space["last"](0) is None
    assert seen == ["setup", "setup_return", "last", "last"]


def test_inserted_lines_take_the_forks_style(tmp_path):
    root, path = write(tmp_path, FORK.replace("    ", "\t"), "crlf")
    apply(EDITS, root)
    text = path.read_bytes()
    assert text.count(b"\n") == text.count(b"\r\n")
    assert b'\r\n\t\t\t\tfor _ in range(1):\r\n\t\t\t\t\tseen.append("nested")\r\n' in text


GROWTH = {
    '    """Of theirs."""\n': '    """Of theirs."""\n\n    def own(self):\n        pass\n',
    "        out = {": "        batch = [batch]\n        out = {",
    "import os": "# theirs\nimport re\nimport os",
    "def last": "def other():\n    pass\n\n\ndef last",
    "Größe, ": "object, Größe, ",
}


def changed(text, changes):
    for old, new in each(changes.items()):
        assert old in text
        text = text.replace(old, new)
    return text


def test_a_fork_that_moved_and_grew_is_patched_alike(tmp_path):
    root, path = write(tmp_path, changed(FORK, GROWTH))
    before = path.read_bytes()
    apply(EDITS, root)
    assert states(EDITS, root) == [State.THERE] * len(EDITS)
    revert(EDITS, root)
    assert path.read_bytes() == before


def test_the_fork_may_change_around_a_patch(tmp_path):
    changes = {"class Trainer(": "class Renamed(", "batch is None": "not batch", "import os": "import re, os"}
    root, path = write(tmp_path)
    apply(EDITS, root)
    path.write_text(changed(path.read_text(), changes))
    revert(EDITS, root)
    assert path.read_text() == changed(FORK, changes)


def test_what_an_update_took_away_is_put_back(tmp_path):
    root, path = write(tmp_path)
    apply(EDITS, root)
    whole = path.read_bytes()
    revert(EDITS[3:5], root)
    assert apply(EDITS, root) == [path] and path.read_bytes() == whole


def test_another_version_of_a_patch_is_reverted_first(tmp_path):
    root, path = write(tmp_path)
    before = path.read_bytes()
    old, new = (edit("run", "start", "Trainer.run", lines=[f"version = {n}"]) for n in (1, 2))
    apply([old], root)
    assert states([new], root) == [State.CHANGED]
    with pytest.raises(PruneError, match="not as the patch has it; revert it first"):
        apply([new], root)
    revert([new], root)
    assert path.read_bytes() == before


@pytest.mark.parametrize("marker", ["begin", "end"])
def test_a_lost_marker_is_named(marker, tmp_path):
    root, path = write(tmp_path)
    apply(EDITS, root)
    damaged = path.read_text().replace(f"# d2prune: {marker} test/run\n", "\n")
    path.write_text(damaged)
    for command in (apply, revert, diff):
        with pytest.raises(PruneError, match=r"test/run \(pkg/train.py.*one of its two markers is gone"):
            command(EDITS, root)
    assert path.read_text() == damaged


def test_all_edits_or_none(tmp_path):
    root, path = write(tmp_path)
    before = path.read_bytes()
    with pytest.raises(PruneError, match="has no 'gone'"):
        apply([*EDITS, edit("gone", "start", "gone")], root)
    assert path.read_bytes() == before


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write everywhere")
def test_files_that_cant_be_written(tmp_path):
    root, path = write(tmp_path)
    path.parent.chmod(0o500)
    try:
        with pytest.raises(PruneError, match="can't be written"):
            apply(EDITS, root)
    finally:
        path.parent.chmod(0o700)


def test_a_write_that_fails_takes_back_the_others(tmp_path, monkeypatch):
    root, path = write(tmp_path)
    second = path.with_name("second.py")
    second.write_text("x = 1\n")
    before, replace = path.read_bytes(), checkout._replace

    def broken(target, data):
        if target == second:
            raise OSError(28, "No space left on device", str(target))
        replace(target, data)

    monkeypatch.setattr(checkout, "_replace", broken)
    other = type(EDITS[0])("test/other", "pkg/second.py", "", "end", ("y = 2",))
    with pytest.raises(PruneError, match="second.py' can't be written .No space left"):
        apply([*EDITS, other], root)
    assert path.read_bytes() == before and second.read_text() == "x = 1\n"


def test_modes_and_links_are_kept(tmp_path):
    root, path = write(tmp_path)
    real = path.with_name("real.py")
    path.rename(real)
    path.symlink_to(real)
    real.chmod(0o755)
    apply(EDITS, root)
    assert path.is_symlink() and real.stat().st_mode & 0o777 == 0o755 and b"d2prune" in real.read_bytes()


def test_root_may_be_the_package_itself(tmp_path):
    root, path = write(tmp_path)
    assert apply(EDITS, root / "pkg") == [path]


@pytest.mark.parametrize("style", ["plain", "crlf", "no newline at the end"])
def test_the_diff_is_what_apply_writes(style, tmp_path):
    root, path = write(tmp_path, style=style)
    before, printed = path.read_bytes(), diff(EDITS, root)
    assert path.read_bytes() == before
    apply(EDITS, root)
    patched = path.read_bytes()
    assert diff(EDITS, root) == printed, "the same, applied or not"
    path.write_bytes(before)
    git = ["git", "apply", "--whitespace=nowarn", "-"]
    done = subprocess.run(git, cwd=root, input=printed.encode(), capture_output=True)
    assert done.returncode == 0, done.stderr
    assert path.read_bytes() == patched
