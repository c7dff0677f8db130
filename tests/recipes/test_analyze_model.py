"""tools/analyze_model.py: its tables, its files, and its refusals."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch

from d2prune import PruneError
from d2prune.checkpoint import read_checkpoint
from tests.tiny_lsknet import CONFIGS, TINY, pairs_of, tiny_lsk

ROOT = Path(__file__).resolve().parents[2]
CONFIG = CONFIGS / "digits_faster_rcnn_lsk.yaml"


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location(
        "d2prune_analyze_model", ROOT / "tools" / "analyze_model.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def run(config, *flags, **keys):
        device = {"MODEL.DEVICE": str(torch.get_default_device())}
        opts = [str(x) for x in pairs_of({**TINY, **device, **keys})]
        module.main(module.parse_args(["--config-file", str(config), *map(str, flags), *opts]))

    return run


@pytest.fixture
def weights(tmp_path):
    torch.save({"model": tiny_lsk().state_dict()}, tmp_path / "old.pth")
    return tmp_path / "old.pth"


def test_from_a_table_to_a_narrower_model(tool, weights, tmp_path, capsys):
    recipe = tmp_path / "small.yaml"
    recipe.write_text("head:\n  MODEL.ROI_BOX_HEAD.FC_DIM: 16\n")
    out = tmp_path / "out"
    flags = ("--depth", 1, "--recipe", recipe, "--output", out, "--execute")
    tool(CONFIG, *flags, **{"MODEL.WEIGHTS": weights})
    said = capsys.readouterr().out
    for part in ("roi_heads", "what holds its channels", "recipe small:", "exact, error"):
        assert part in said
    narrow = out / "digits_faster_rcnn_lsk_prunesmall"
    assert read_checkpoint(f"{narrow}.pth")["model"]["roi_heads.box_head.fc1.bias"].shape == (16,)
    tool(CONFIG, "--load", weights, "--output", out, **{"MODEL.ROI_BOX_HEAD.FC_DIM": 16})
    said = capsys.readouterr().out
    assert "0 skipped, 0 fresh" in said and "sliced  roi_heads.box_head.fc1.weight: 32×" in said
    assert (out / "digits_faster_rcnn_lsk.pth").is_file()


@pytest.mark.parametrize("flags", [("--execute",), ("--load", "x.pth")])
def test_what_writes_needs_a_folder(tool, flags):
    with pytest.raises(PruneError, match="need --output"):
        tool(CONFIG, *flags)
