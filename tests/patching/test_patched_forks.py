"""The repository's patches on the Detectron2 and AdelaiDet that are installed, in copies of them."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from d2prune.modeling import HAS_ADELAIDET
from d2prune.patching import apply, read_edits, revert

TESTS = Path(__file__).resolve().parents[1]
ROOT = TESTS.parent


def edits_of(patch):
    return read_edits(ROOT / "patches" / f"{patch}.yaml")


def package(name):
    """The folder of an installed package, found without importing it."""
    return Path(importlib.util.find_spec(name).submodule_search_locations[0])


def copied(name, root, edits):
    """A copy of links, but for the files that are to be patched."""
    own = {package(name).parent / edit.file for edit in edits}

    def put(source, target):
        shutil.copy2(source, target) if Path(source) in own else os.symlink(source, target)

    shutil.copytree(
        package(name), root / name, copy_function=put, ignore=shutil.ignore_patterns("__pycache__")
    )
    return {path.relative_to(package(name).parent): path.read_bytes() for path in own}


def run(script, root, folder):
    paths = [root, ROOT, *(TESTS / name for name in ("adapters", "modeling")), *sys.path]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths))}
    script = Path(__file__).with_name(script)
    done = subprocess.run([sys.executable, str(script), str(folder)], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


def patched_and_back(names, script, folder):
    root = folder / "fork"
    root.mkdir()
    edits = {name: edits_of(patch) for name, patch in names.items()}
    before = {}
    for name, of_it in edits.items():
        before |= copied(name, root, of_it)
        assert {path.relative_to(root) for path in apply(of_it, root)} <= before.keys()
    run(script, root, folder)
    for of_it in edits.values():
        revert(of_it, root)
    assert {path: (root / path).read_bytes() for path in before} == before


def test_detectron2_patched(tmp_path):
    patched_and_back({"detectron2": "detectron2"}, "in_detectron2.py", tmp_path)


@pytest.mark.skipif(not HAS_ADELAIDET, reason="AdelaiDet (adet.modeling) can't be imported here")
def test_adelaidet_patched(tmp_path):
    both = {"detectron2": "detectron2", "adet": "adelaidet"}
    patched_and_back(both, "in_adelaidet.py", tmp_path)
