"""The repository's patches on the Detectron2 and AdelaiDet that are installed, in copies of them."""

from __future__ import annotations

import importlib.util
import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import d2prune
from d2prune.modeling import HAS_ADELAIDET
from d2prune.patching import apply, read_edits, revert
from tests.each import each

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
    for name, of_it in each(edits.items()):
        before |= copied(name, root, of_it)
        assert {path.relative_to(root) for path in apply(of_it, root)} <= before.keys()
    run(script, root, folder)
    for of_it in edits.values():
        revert(of_it, root)
    assert {path: (root / path).read_bytes() for path in before} == before


TRAIN_NET = '''\
"""A training script whose trainer overrides what d2prune's mixin does, as AdelaiDet's does."""
from detectron2.config import get_cfg
from detectron2.engine import DefaultTrainer


class Trainer(DefaultTrainer):
    def resume_or_load(self, resume=True):
        self.checkpointer.resume_or_load(self.cfg.MODEL.WEIGHTS, resume=resume)

    @classmethod
    def build_model(cls, cfg):
        return super().build_model(cfg)


def setup(options):
    cfg = get_cfg()
    cfg.merge_from_list(options)
    return cfg
'''


@pytest.mark.parametrize("patch", ["detectron2_train_net", "adelaidet_train_net"])
def test_a_training_script_patched(patch, tmp_path):
    path = tmp_path / "tools" / "train_net.py"
    path.parent.mkdir()
    path.write_text(TRAIN_NET)
    apply(edits_of(patch), tmp_path)
    script = runpy.run_path(str(path))
    assert script["setup"](["MODEL.PRUNE", True]).MODEL.PRUNE
    trainer, theirs = script["Trainer"], script["Trainer"].__mro__[2]
    assert trainer.resume_or_load is d2prune.PruningMixin.resume_or_load
    assert theirs.__module__ == trainer.__module__ and "resume_or_load" in vars(theirs)


def test_detectron2_patched(tmp_path):
    patched_and_back({"detectron2": "detectron2"}, "in_detectron2.py", tmp_path)


@pytest.mark.skipif(not HAS_ADELAIDET, reason="AdelaiDet (adet.modeling) can't be imported here")
def test_adelaidet_patched(tmp_path):
    both = {"detectron2": "detectron2", "adet": "adelaidet"}
    patched_and_back(both, "in_adelaidet.py", tmp_path)
