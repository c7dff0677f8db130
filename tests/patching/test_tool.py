"""tools/patch_fork.py: what it prints, and its exit status."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest
import yaml

from tests.patching.made_up_fork import FILE, write

TOOL = Path(__file__).resolve().parents[2] / "tools" / "patch_fork.py"


@pytest.fixture
def tool(tmp_path, monkeypatch, capsys):
    root, path = write(tmp_path)
    patch = tmp_path / "patch.yaml"

    def run(command, symbol="Trainer.run"):
        entry = {"name": "e", "file": FILE, "symbol": symbol, "where": "start", "lines": "x = 1"}
        patch.write_text(yaml.safe_dump({"name": "p", "edits": [entry]}))
        monkeypatch.setattr(
            sys, "argv", ["patch_fork.py", command, "--patch", str(patch), "--root", str(root)]
        )
        with pytest.raises(SystemExit) as end:
            runpy.run_path(str(TOOL), run_name="__main__")
        return end.value.code, capsys.readouterr().out.strip()

    return run, path


def test_the_road_there_and_back(tool):
    run, path = tool
    assert run("check") == (0, f"p/e ({FILE}, start of Trainer.run): not there yet; it fits")
    assert run("diff")[1].startswith(f"--- a/{FILE}\n+++ b/{FILE}\n")
    assert run("apply") == (0, str(path)) and run("apply") == (0, "already applied")
    assert run("check")[1].endswith(": there")
    assert run("revert") == (0, str(path)) and run("revert") == (0, "nothing to revert")


def test_a_fork_without_the_place(tool):
    run, path = tool
    before = path.read_bytes()
    code, printed = run("check", "gone")
    assert code == 1 and "the fork has no 'gone'" in printed
    code, printed = run("apply", "gone")
    assert code.startswith("nothing was written: p/e") and printed == "" and path.read_bytes() == before
