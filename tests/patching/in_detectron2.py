"""Run by test_patched_forks.py, in a process that finds a patched Detectron2 first."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
import torch_pruning
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import get_cfg
from detectron2.engine import DefaultPredictor
from detectron2.modeling import build_model
from detectron2.modeling.backbone import resnet

from tests.each import each

assert "d2prune" not in sys.modules, "a patched Detectron2 imports nothing before it needs it"
FOLDER = Path(sys.argv[1])


def config_has_the_keys():
    cfg = get_cfg()
    assert not cfg.MODEL.PRUNE and not cfg.MODEL.FINETUNE and cfg.MODEL.PRUNING.ROUND_TO == 8


def torch_pruning_sees_the_norms_of_a_block():
    block, x = resnet.BasicBlock(8, 16), torch.rand(1, 8, 9, 9)
    graph = torch_pruning.DependencyGraph().build_dependency(block, x)
    graph.get_pruning_group(block.conv1, torch_pruning.prune_conv_out_channels, [0, 1]).prune()
    assert block.norm1.num_features == 14 and block(x).shape == (1, 16, 9, 9)


def pruned_models_are_known_without_d2prunes_trainer():
    import d2prune
    from tests.adapters.families import R18, SIZE, dense, small_zoo_cfg

    cfg = small_zoo_cfg("COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml", R18)
    result = d2prune.prune(build_model(cfg), 0.4, allocation="uniform", input_size=SIZE)
    assert result.proof.exact
    DetectionCheckpointer(result.model, str(FOLDER)).save("model_pruned")
    cfg.MODEL.WEIGHTS = str(FOLDER / "model_pruned.pth")
    struct = torch.load(cfg.MODEL.WEIGHTS, weights_only=False)["struct"]
    built = build_model(cfg)
    assert built.prune_spec == result.spec
    DetectionCheckpointer(built).load(cfg.MODEL.WEIGHTS)
    loaded = d2prune.load(cfg.MODEL.WEIGHTS, build_model(cfg))
    predictor = DefaultPredictor(cfg)
    assert predictor(torch.zeros(64, 96, 3, dtype=torch.uint8).numpy())
    want = dense(result.model)
    for model in (struct, built, loaded, predictor.model):
        assert all(torch.equal(want[name], got) for name, got in each(dense(model).items()))
    cfg.MODEL.FINETUNE = True
    assert d2prune.PruneTrainer.build_model(cfg).prune_spec == result.spec
    torch.save({"model": {}}, FOLDER / "unpruned.pth")
    cfg.MODEL.WEIGHTS = str(FOLDER / "unpruned.pth")
    with pytest.raises(d2prune.PruneError, match="unpruned.pth' holds no pruning spec"):
        build_model(cfg)


if __name__ == "__main__":
    torch.manual_seed(0)
    config_has_the_keys()
    torch_pruning_sees_the_norms_of_a_block()
    pruned_models_are_known_without_d2prunes_trainer()
