"""Patches as files: this repository's are sound, and a wrong entry is named."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from d2prune.errors import PruneError
from d2prune.patching import read_edits

PATCHES = sorted((Path(__file__).resolve().parents[2] / "patches").glob("*.yaml"))
ENTRY = {"name": "e", "file": "a/b.py", "symbol": "f", "where": "start", "lines": "x = 1\n"}


def written(folder, document):
    path = folder / "p.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


def test_an_edit_is_read_as_written(tmp_path):
    entry = {**ENTRY, "lines": "if x:\n    y\n\nz\n", "uses": ["x"]}
    (edit,) = read_edits(written(tmp_path, {"name": "p", "about": "it", "edits": [entry]}))
    assert (edit.name, edit.file, edit.symbol, edit.where) == ("p/e", "a/b.py", "f", "start")
    assert edit.lines == ("if x:", "    y", "", "z") and edit.uses == ("x",)


@pytest.mark.parametrize("path", PATCHES, ids=lambda path: path.stem)
def test_our_patches_hold_calls_of_ours_only(path):
    edits = read_edits(path)
    assert edits and all(edit.name.startswith(f"{path.stem}/") for edit in edits)
    for edit in edits:
        assert "d2prune" in " ".join(edit.lines) and len(edit.lines) <= 6


WRONG = [
    ({"file": "/etc/x.py"}, "file is '/etc/x.py'"),
    ({"file": "a/../../x.py"}, "expected a path below the fork's root"),
    ({"where": "somewhere"}, "where is 'somewhere'; expected one of: start, end"),
    ({"where": "after assignment"}, "variable goes with where: after assignment"),
    ({"variable": "cfg"}, "variable goes with where: after assignment"),
    ({"lines": " \n"}, "expected at least one line"),
    ({"lines": 3}, "lines is 3; expected text"),
    ({"name": "Two Words"}, "name is 'Two Words'"),
    ({"uses": "cfg"}, "uses is 'cfg'; expected a list of names"),
    ({"wherever": "start"}, "expected the keys file, lines, name, where"),
]


@pytest.mark.parametrize("change, message", WRONG)
def test_a_wrong_entry_is_named(change, message, tmp_path):
    path = written(tmp_path, {"name": "p", "edits": [ENTRY | {"name": "first"}, ENTRY | change]})
    with pytest.raises(PruneError, match="p.yaml', edit 2: ") as caught:
        read_edits(path)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "text", ["", "[]", "name: p", "name: P\nedits: []", "name: p\nedits: []", "a: b: c", "\0"]
)
def test_what_is_no_patch_is_refused(text, tmp_path):
    path = tmp_path / "p.yaml"
    path.write_text(text)
    with pytest.raises(PruneError, match="p.yaml'"):
        read_edits(path)


def test_one_name_for_two_edits_is_refused(tmp_path):
    with pytest.raises(PruneError, match="two edits are called 'p/e'"):
        read_edits(written(tmp_path, {"name": "p", "edits": [ENTRY, ENTRY]}))


def test_a_missing_patch_is_named(tmp_path):
    with pytest.raises(PruneError, match="gone.yaml' can't be read as a patch"):
        read_edits(tmp_path / "gone.yaml")
