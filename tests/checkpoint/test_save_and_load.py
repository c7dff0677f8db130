"""d2prune.save and d2prune.load, in this process and in a fresh one."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

import d2prune
from d2prune.core.cut.spec import PruneSpec
from d2prune.engine import outputs
from tests.tiny_blendmask import SIDE, detect, equal, picture, snapshot, tiny_cfg, tiny_model

FRESH = """
import sys
import torch
torch.set_num_threads(1)
import d2prune
from detectron2.engine import DefaultPredictor
from detectron2.modeling import build_model
sys.path.insert(0, sys.argv[1])
from tests.tiny_blendmask import detect, picture, tiny_cfg

cfg = d2prune.get_cfg()
cfg.merge_from_file(sys.argv[2])
predictor = DefaultPredictor(cfg)
found = predictor(picture())["instances"].get_fields()
stock = {name: getattr(value, "tensor", value).cpu() for name, value in found.items()}
own = detect(d2prune.load(sys.argv[3], build_model(tiny_cfg())))
torch.save({"stock": stock, "own": own, "class": type(predictor.model).__name__}, sys.argv[4])
"""


def test_load_gives_the_saved_model(saved, result):
    model = tiny_model(seed=1).train()
    loaded = d2prune.load(saved, model)
    assert loaded is model and loaded.training and loaded.prune_spec == result.spec
    assert equal(snapshot(loaded), snapshot(result.model))
    assert equal(detect(loaded), detect(result.model))


@pytest.mark.parametrize("kind", [str, Path])
def test_paths_of_either_kind(result, tmp_path, kind):
    d2prune.save(result, kind(tmp_path / "new" / "x.pth"))
    d2prune.load(kind(tmp_path / "new" / "x.pth"), tiny_model(seed=1))


def test_a_path_without_a_folder(result, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    d2prune.save(result, "x.pth")
    d2prune.load("x.pth", tiny_model())
    assert [file.name for file in tmp_path.iterdir()] == ["x.pth"]


def test_the_files_spec_is_plain_data(saved, result):
    held = torch.load(saved, map_location="cpu", weights_only=True)["prune_spec"]
    assert PruneSpec.from_dict(held) == result.spec
    assert held["written_by"] == {"d2prune": version("d2prune"), "torch": torch.__version__}


def test_a_fresh_process_finds_the_same_by_either_road(saved, result, tmp_path):
    (tmp_path / outputs.SPEC_FILE).write_text(result.spec.to_json())
    config = outputs.write_pruned_config(tiny_cfg(), str(tmp_path), str(saved))
    here = str(Path(__file__).resolve().parents[1])
    out = str(tmp_path / "found.pt")
    # The same number of threads: sums of floats depend on it.
    subprocess.run(
        [sys.executable, "-c", FRESH, here, config, str(saved), out],
        check=True, timeout=300, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    found, expected = torch.load(out), detect(result.model)
    assert found["class"] == "BlendMask" and picture().shape == (SIDE, SIDE, 3)
    assert equal(found["own"], expected) and equal(found["stock"], expected)
