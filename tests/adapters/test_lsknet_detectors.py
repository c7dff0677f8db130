"""Detectors on LSKNet: pruned, proved, saved, loaded, trained, run; rotated ones as far as they go."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from detectron2.structures import BoxMode, Instances, RotatedBoxes

import d2prune
from d2prune import PruneError
from d2prune.modeling.rotated import has_rotated_operators
from tests.adapters.families import SIZE, build, runs, shrunk, stands, trains
from tests.each import each

CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "LSKNet"
SMALL = {
    "MODEL.LSKNET.EMBED_DIMS": [8, 16, 16, 24],
    "MODEL.LSKNET.DEPTHS": [1, 1, 2, 1],
    "MODEL.LSKNET.NORM": "BN",
    "MODEL.RPN.POST_NMS_TOPK_TRAIN": 50,
    "MODEL.RPN.POST_NMS_TOPK_TEST": 50,
}
ROTATED = "rotated_faster_rcnn_lsk_s_fpn_1x"
NEED = "needs Detectron2's compiled operators for rotated boxes"
# What can't go exactly: stages (LayerNorm), the gate's views (mean and max over channels), its two maps.
LEFT = (".proj", ".proj_2", ".fc2", ".norm", ".norm1", ".norm2", "layer_scale_1", "layer_scale_2", "conv1",
        "conv2", "conv_squeeze", "bottom_up.norm3", "bottom_up.norm4")  # fmt: skip


def small(name="faster_rcnn_lsk_s_fpn_1x", *changes):
    torch.manual_seed(0)
    cfg = d2prune.get_cfg()
    cfg.merge_from_file(str(CONFIGS / f"{name}.yaml"))
    return build(shrunk(cfg, SMALL, *changes))


def rotated_batch():
    boxes = torch.tensor([[40.0, 30.0, 40.0, 20.0, 30.0], [90.0, 60.0, 30.0, 50.0, -20.0]])
    target = Instances((96, 128), gt_boxes=RotatedBoxes(boxes), gt_classes=torch.tensor([0, 1]))
    assert BoxMode.XYWHA_ABS in BoxMode  # what boxes of a data set have to be
    return [{"image": torch.randint(0, 256, (3, 96, 128), dtype=torch.uint8), "instances": target}]


@pytest.fixture(scope="module")
def stood(tmp_path_factory):
    return stands(small, tmp_path_factory.mktemp("x"), amount=0.3, left=LEFT)


def row(result, end):
    return next(row for row in result.coverage if row.name.endswith(end))


def test_it_stands(stood):
    ends = "mlp.fc1 attn.proj_1 fpn_lateral3 fpn_output3 rpn_head.conv box_head.fc1 box_head.fc2"
    for end in each(ends.split()):
        assert row(stood, end).status == "pruned"


@pytest.mark.parametrize(
    "end, reason",
    [
        ("block1.0.attn.spatial_gating_unit.conv1", "mixed by aten::mean"),
        ("block1.0.attn.spatial_gating_unit.conv2", "mixed by aten::mean"),
        ("block1.0.attn.spatial_gating_unit.conv_squeeze", "taken apart by position"),
        ("patch_embed2.proj", "normalised together (LayerNorm)"),
        ("block3.1.mlp.fc2", "normalised together (LayerNorm)"),
    ],
)
def test_what_cant_go_exactly_stays_and_says_why(stood, end, reason):
    found = row(stood, end)
    assert found.status == "skipped" and reason in found.reason


def test_gate_and_stages_go_where_that_is_asked_for_and_are_not_equal():
    result = d2prune.prune(small(), 0.3, allocation="global", input_size=SIZE, allow_inexact=True)
    assert not result.proof.exact and result.proof.error > 1e-6
    assert row(result, "spatial_gating_unit.conv1").after < row(result, "spatial_gating_unit.conv1").before


@pytest.mark.parametrize("name", [ROTATED, "lsk_s_fpn_1x_dota_le90"])
def test_rotated_ones_prune_and_reload_without_compiled_operators(name, tmp_path):
    result = d2prune.prune(small(name), 0.3, allocation="uniform", input_size=SIZE)
    assert result.proof.exact and "box/deltas" in result.proof.compared
    d2prune.save(result, tmp_path / "pruned.pth")
    loaded = d2prune.load(tmp_path / "pruned.pth", small(name))
    assert loaded.prune_spec == result.spec


@pytest.mark.skipif(has_rotated_operators(), reason="Detectron2 has its operators")
def test_without_compiled_operators_the_error_says_what_to_do():
    with pytest.raises(PruneError, match="'RotatedRPN', which needs .* compiled operators .*nms_rotated"):
        small(ROTATED)(rotated_batch())


@pytest.mark.skipif(not has_rotated_operators(), reason=NEED)
def test_the_rotated_one_trains_and_detects_after_a_prune():
    model = d2prune.prune(small(ROTATED), 0.3, allocation="uniform", input_size=SIZE).model
    trains(model, rotated_batch())
    runs(model)


def test_the_oriented_one_is_for_counting_and_pruning():
    with pytest.raises(PruneError, match="to train or detect take 'RotatedRPN'"):
        small("lsk_s_fpn_1x_dota_le90")(rotated_batch())
