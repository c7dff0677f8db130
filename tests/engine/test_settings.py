"""MODEL.PRUNING.* becomes plain values; what is wrong is named before anything is built."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from d2prune.core.types import Request
from d2prune.engine.settings import check_modes, input_size, request_from_cfg, trace_input_from_cfg
from d2prune.errors import PruneError
from tests.tiny_blendmask import SIDE, tiny_cfg, tiny_model


def test_every_request_key_is_read():
    pairs = {
        "AMOUNT": 0.3, "TARGET": "params", "CRITERION": "mine", "ALLOCATION": "uniform",
        "RATIOS": [["a.*", 0.2], ("b", 1)], "PROTECT": ["c"], "INCLUDE": ["d", "e"],
        "MAX_RATIO": 0.6, "ROUND_TO": 4, "ALLOW_INEXACT": True,
    }  # fmt: skip
    cfg = tiny_cfg()
    for key, value in pairs.items():
        cfg.MODEL.PRUNING[key] = value
    assert request_from_cfg(cfg) == Request(
        0.3, "params", "mine", "uniform", (("a.*", 0.2), ("b", 1.0)), ("c",), ("d", "e"), 0.6, 4, True
    )


@pytest.mark.parametrize("row", ["ab", ["a"], ["a", "much"], 3, ["a", 0.1, 2], ["a", None]])
def test_a_malformed_ratio_is_named(row):
    cfg = tiny_cfg()
    cfg.MODEL.PRUNING.RATIOS = [["fine", 0.5], row]
    with pytest.raises(PruneError, match="MODEL.PRUNING.RATIOS has the row"):
        request_from_cfg(cfg)


@pytest.mark.parametrize(
    ("sizes", "given", "expected"),
    [((64, 64), (), (64, 64)), ((800, 1333), (), (800, 1344)), ((800, 0), (), (800, 800)),
     ((64, 64), (100, 130), (128, 160)), ((64, 64), [32, 32], (32, 32))],
)  # fmt: skip
def test_the_counting_size_is_padded_as_the_model_pads(sizes, given, expected):
    cfg = tiny_cfg("INPUT.MIN_SIZE_TEST", sizes[0], "INPUT.MAX_SIZE_TEST", sizes[1])
    cfg.MODEL.PRUNING.INPUT_SIZE = given
    model = nn.Module()
    model.backbone = nn.Identity()
    model.backbone.size_divisibility = 32
    assert input_size(cfg, model) == expected


def test_a_model_that_pads_nothing_is_counted_at_the_size_itself():
    cfg = tiny_cfg()
    cfg.MODEL.PRUNING.INPUT_SIZE = (100, 130)
    assert input_size(cfg, nn.Identity()) == (100, 130)


@pytest.mark.parametrize("size", [(64,), (64, 64, 3), (0, 64), (-1, 64), (64.5, 64), ("64", "64")])
def test_a_malformed_size_is_named(size):
    cfg = tiny_cfg()
    cfg.MODEL.PRUNING.INPUT_SIZE = size
    with pytest.raises(PruneError, match="MODEL.PRUNING.INPUT_SIZE is"):
        input_size(cfg, nn.Identity())


def test_the_target_counts_on_that_size():
    target = trace_input_from_cfg(tiny_cfg(), tiny_model())
    assert target.counted.shape == (1, 3, SIDE, SIDE) and target.counted.is_meta


def test_a_model_without_an_adapter_is_named():
    with pytest.raises(PruneError, match="no adapter for Identity"):
        trace_input_from_cfg(tiny_cfg(), nn.Identity())


def test_no_mode_needs_nothing():
    check_modes(tiny_cfg())


@pytest.mark.parametrize("mode", ["PRUNE", "FINETUNE"])
def test_a_mode_needs_weights(mode):
    with pytest.raises(PruneError, match=f"MODEL.{mode} needs MODEL.WEIGHTS"):
        check_modes(tiny_cfg(f"MODEL.{mode}", True))


@pytest.mark.parametrize("spelling", ["{}/model_pruned.pth", "{}/./model_pruned.pth"])
def test_prune_may_not_overwrite_its_weights(tmp_path, spelling):
    weights = spelling.format(tmp_path)
    cfg = tiny_cfg("MODEL.PRUNE", True, "OUTPUT_DIR", str(tmp_path), "MODEL.WEIGHTS", weights)
    with pytest.raises(PruneError, match="which MODEL.PRUNE would overwrite"):
        check_modes(cfg)


@pytest.mark.parametrize("iterations", [0, -5])
def test_a_fine_tuning_of_no_iterations_is_refused(iterations):
    cfg = tiny_cfg("MODEL.FINETUNE", True, "MODEL.WEIGHTS", "x.pth", "SOLVER.MAX_ITER", iterations)
    with pytest.raises(PruneError, match=f"SOLVER.MAX_ITER is {iterations}; expected at least 1"):
        check_modes(cfg)


@pytest.mark.parametrize("mode", ["PRUNE", "FINETUNE"])
@pytest.mark.parametrize("key", ["TRAIN", "TEST"])
def test_an_unknown_data_set_is_named_before_any_work(mode, key):
    cfg = tiny_cfg(f"MODEL.{mode}", True, "MODEL.WEIGHTS", "x.pth", f"DATASETS.{key}", ("nowhere",))
    with pytest.raises(PruneError, match=f"DATASETS.{key} names 'nowhere', which is not registered"):
        check_modes(cfg)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU, where mixed precision works")
def test_mixed_precision_without_a_gpu_is_refused_before_anything_is_built():
    cfg = tiny_cfg("MODEL.FINETUNE", True, "MODEL.WEIGHTS", "x.pth", "SOLVER.AMP.ENABLED", True)
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = ()
    with pytest.raises(
        PruneError, match=r"SOLVER.AMP.ENABLED is True and MODEL.DEVICE '.*set SOLVER.AMP.ENABLED False"
    ):
        check_modes(cfg)
    cfg.SOLVER.AMP.ENABLED = False
    check_modes(cfg)
