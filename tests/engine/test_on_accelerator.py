"""The whole pipeline on a GPU: nothing leaves the device, and nothing is wired to another."""

from __future__ import annotations

import pytest
import torch

import d2prune
from d2prune.checkpoint import build_from_cfg, read_checkpoint
from tests.each import each
from tests.engine.tiny_runs import command
from tests.tiny_blendmask import CONFIG, detect, device, equal, tiny_cfg, tiny_model, tiny_prune

pytestmark = pytest.mark.cuda


def places(model):
    return {str(t.device) for t in (*model.parameters(), *model.buffers())}


def test_a_prune_stays_on_its_device(tmp_path):
    model = tiny_model()
    result = tiny_prune(model)
    assert places(result.model) == places(model) == {str(model.device)}
    assert model.device.type == torch.device(device()).type and result.proof.exact
    d2prune.save(result, tmp_path / "x.pth")
    again = d2prune.load(tmp_path / "x.pth", tiny_model(seed=1))
    assert places(again) == places(model)
    assert again.state_dict().keys() == result.model.state_dict().keys()
    assert equal(*({k: v for k, v in m.state_dict().items()} for m in (again, result.model)))


def test_a_files_tensors_need_no_accelerator(tmp_path):
    d2prune.save(tiny_prune(tiny_model(), verify=False), tmp_path / "x.pth")
    held = torch.load(tmp_path / "x.pth", map_location="cpu", weights_only=True)
    assert {tensor.device.type for tensor in held["model"].values()} == {"cpu"}


def test_prune_finetune_and_evaluate(data, baseline, tmp_path):
    words = ("MODEL.PRUNE", "True", "MODEL.FINETUNE", "True", "MODEL.WEIGHTS", str(baseline))
    command(CONFIG, tmp_path, *words)
    assert "bbox" in command(tmp_path / "pruned.yaml", tmp_path / "eval", "--eval-only")
    model = build_from_cfg(tiny_cfg("MODEL.WEIGHTS", str(tmp_path / "model_final.pth")))
    assert model.device.type == torch.device(device()).type and detect(model)


def test_fine_tuning_in_mixed_precision(data, baseline, tmp_path):
    words = ("MODEL.PRUNE", "True", "MODEL.FINETUNE", "True", "MODEL.WEIGHTS", str(baseline))
    command(CONFIG, tmp_path, *words, "SOLVER.AMP.ENABLED", "True", "SOLVER.MAX_ITER", "3")
    start, end = (read_checkpoint(tmp_path / f"model_{name}.pth")["model"] for name in ("pruned", "final"))
    assert not equal(start, end) and all(value.isfinite().all() for value in each(end.values()))
