"""Run by test_patched_forks.py, in a process that finds a patched AdelaiDet first."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from adet.checkpoint import AdetCheckpointer
from adet.config import get_cfg
from detectron2.modeling import build_model

import d2prune
from d2prune.adapters import TraceInput
from tests.each import each
from tests.modeling import small_models

FOLDER = Path(sys.argv[1])
NO_BASIS_LOSS = ("MODEL.BASIS_MODULE.LOSS_ON", False)


def images():
    return torch.rand(2, 3, 192, 256) * 255


def forward_leaves_early(model):
    x = images()
    early, want = model.eval()(x), TraceInput(model).dense(model, x)
    assert want.keys() == early.keys() and all(torch.equal(want[name], early[name]) for name in each(want))
    sum(tensor.sum() for tensor in early.values()).backward()
    assert not [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    (found,) = model([{"image": images()[0]}])
    assert "instances" in found, "lists of dicts go the whole way"


def a_pruned_file_decides(cfg):
    result = d2prune.prune(small_models.eager(build_model(cfg)), 0.5, input_size=(192, 256))
    assert result.proof.exact
    d2prune.save(result, FOLDER / "model_pruned.pth")
    cfg.MODEL.WEIGHTS = str(FOLDER / "model_pruned.pth")
    built = build_model(cfg)
    assert built.prune_spec == result.spec and type(built).__module__.startswith("adet.")
    AdetCheckpointer(built).load(cfg.MODEL.WEIGHTS)
    x = images()
    want, got = (model.eval()(x) for model in (result.model, built))
    assert all(torch.equal(want[name], got[name]) for name in each(want))
    return built


def finetune_needs_one(cfg):
    cfg.MODEL.FINETUNE = True
    assert build_model(cfg).prune_spec
    cfg.MODEL.WEIGHTS = ""
    with pytest.raises(d2prune.PruneError, match="MODEL.FINETUNE needs MODEL.WEIGHTS"):
        build_model(cfg)


if __name__ == "__main__":
    torch.manual_seed(0)
    small_models.get_cfg = get_cfg
    cfg = small_models.small_cfg(*NO_BASIS_LOSS)
    forward_leaves_early(build_model(cfg))
    pruned = a_pruned_file_decides(cfg)
    AdetCheckpointer(pruned, str(FOLDER)).save("again")
    written = torch.load(FOLDER / "again.pth", weights_only=False)
    assert isinstance(written["struct"], type(pruned)), "Detectron2 is patched, too"
    finetune_needs_one(cfg)
