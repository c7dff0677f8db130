"""LSKNet: the published sizes and names, its shapes, and what its configuration refuses."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from detectron2.layers import FrozenBatchNorm2d, ShapeSpec
from detectron2.modeling import build_model

import d2prune
from d2prune import PruneError
from d2prune.config import add_lsknet_config, read_config
from d2prune.modeling import LSKNet, build_lsknet_backbone
from d2prune.modeling.lsknet import Block
from tests.each import each

CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "LSKNet"
DETECTORS = {
    "faster_rcnn_lsk_s_fpn_1x": 31_365_020,
    "rotated_faster_rcnn_lsk_s_fpn_1x": 30_976_291,  # 3 x (256 + 1) fewer: 5 numbers an anchor, not 6
    "lsk_s_fpn_1x_dota_le90": 30_977_062,
}
BLOCK = (
    "layer_scale_1 layer_scale_2 norm1 norm2 attn.proj_1 attn.proj_2 mlp.fc1 mlp.dwconv.dwconv mlp.fc2 "
    + " ".join(
        f"attn.spatial_gating_unit.{name}"
        for name in "conv0 conv_spatial conv1 conv2 conv_squeeze conv".split()
    )
).split()


def small(**changes):
    torch.manual_seed(0)
    options = {"dims": (8, 16, 24, 32), "depths": (1, 1, 2, 1), "mlp_ratios": (4, 4, 2, 2), "norm": "BN"}
    return LSKNet(**{**options, **changes}).eval()


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


def ghost(name, *opts):
    cfg = read_config(d2prune.get_cfg(), str(CONFIGS / f"{name}.yaml"), ["MODEL.DEVICE", "meta", *opts])
    with torch.device("meta"):
        return build_model(cfg)


def test_the_published_numbers_of_parameters():
    with torch.device("meta"):
        model = LSKNet()
    stages = [sum(count(model.get_submodule(f"{part}{i}")) for part in ("patch_embed", "block", "norm"))
              for i in range(1, 5)]  # fmt: skip
    assert stages == [192_268, 758_540, 5_249_112, 7_640_972] and sum(stages) == count(model) == 13_840_892
    blocks = [module for module in model.modules() if isinstance(module, Block)]
    assert (sum(count(b.mlp) for b in blocks), sum(count(b.attn) for b in blocks)) == (8_264_320, 3_628_988)


def test_the_published_names():
    model = small()
    names = {name.removesuffix(".weight").removesuffix(".bias") for name, _ in model.named_parameters()}
    stem = {f"{name}{i}{rest}" for i in (1, 2, 3, 4) for name, rest in
            (("patch_embed", ".proj"), ("patch_embed", ".norm"), ("norm", ""))}  # fmt: skip
    blocks = {f"block{i}.{j}" for i, j in ((1, 0), (2, 0), (3, 0), (3, 1), (4, 0))}
    assert names == stem | {f"{block}.{name}" for block in blocks for name in BLOCK}


@pytest.mark.parametrize("name, parameters", DETECTORS.items())
def test_detectors_have_as_many_parameters_as_by_arithmetic(name, parameters):
    model = ghost(name)
    assert count(model) == parameters and count(model.backbone.bottom_up) == 13_840_892
    assert count(model.backbone) - 13_840_892 == 2_623_488  # four lateral and four output convolutions
    assert {n: shape.stride for n, shape in model.backbone.output_shape().items()} == {
        "p2": 4, "p3": 8, "p4": 16, "p5": 32, "p6": 64,
    }  # fmt: skip


@pytest.mark.parametrize("size", [(64, 96), (50, 70)])
def test_stages_have_their_strides_and_widths(size):
    model = small(out_features=("stage2", "stage4"))
    outputs = model(torch.rand(2, 3, *size))
    told = model.output_shape()
    assert list(outputs) == list(told) == ["stage2", "stage4"]
    for name, tensor in each(outputs.items()):
        sides = [-(-side // told[name].stride) for side in size]
        assert tensor.shape == (2, told[name].channels, *sides)


def test_a_stage_is_normalised_over_its_channels():
    stage = small()(torch.rand(1, 3, 64, 64))["stage3"]
    zeros = torch.zeros_like(stage[:, 0])
    torch.testing.assert_close(stage.mean(1), zeros, atol=1e-5, rtol=0)
    torch.testing.assert_close(stage.var(1, unbiased=False), zeros + 1, atol=1e-2, rtol=0)


def test_the_gate_mixes_its_views_place_by_place():
    """Where the map of one view is one and the other's zero, the other view has no say."""
    gate = small().block3[0].attn.spatial_gating_unit.double()
    x = torch.rand(1, 24, 9, 9, dtype=torch.float64)
    for first, second in ((40.0, -40.0), (-40.0, 40.0)):
        with torch.no_grad():
            gate.conv_squeeze.weight.zero_()
            gate.conv_squeeze.bias.copy_(torch.tensor([first, second]))
        near = gate.conv0(x)
        view = gate.conv1(near) if first > 0 else gate.conv2(gate.conv_spatial(near))
        torch.testing.assert_close(gate(x), x * gate.conv(view))


def test_stochastic_depth_grows_from_nothing():
    rates = [m.drop_path.p for m in small(drop_path=0.2).modules() if isinstance(m, Block)]
    assert rates == pytest.approx([0, 0.05, 0.1, 0.15, 0.2])


def test_frozen_stages_stay_and_the_others_train():
    cfg = d2prune.get_cfg()
    cfg.merge_from_list(["MODEL.BACKBONE.FREEZE_AT", 2, "MODEL.LSKNET.EMBED_DIMS", [8, 8, 8, 8]])
    model = build_lsknet_backbone(cfg, ShapeSpec(channels=3))
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert frozen and all(name.split(".")[0][-1] in "12" for name in frozen)
    assert any(isinstance(m, FrozenBatchNorm2d) for m in model.block2.modules())
    assert not any(isinstance(m, FrozenBatchNorm2d) for m in model.block3.modules())


def test_keys_keep_the_values_that_they_have():
    cfg = d2prune.get_cfg()
    cfg.MODEL.LSKNET.DROP_RATE = 0.5
    add_lsknet_config(cfg)
    assert cfg.MODEL.LSKNET.DROP_RATE == 0.5


@pytest.mark.parametrize(
    "key, value, says",
    [
        (
            "MODEL.LSKNET.MLP_RATIOS",
            [8, 8, 4],
            "MODEL.LSKNET.MLP_RATIOS is .*; expected four positive numbers",
        ),
        ("MODEL.LSKNET.DEPTHS", [2, 2, 0, 2], "expected four positive numbers"),
        ("MODEL.LSKNET.OUT_FEATURES", ["res2"], "expected some of: stage1"),
        ("MODEL.BACKBONE.FREEZE_AT", 5, "MODEL.BACKBONE.FREEZE_AT is 5; expected 0 to 4"),
    ],
)
def test_what_no_lsknet_has_is_refused(key, value, says):
    with pytest.raises(PruneError, match=says):
        ghost("faster_rcnn_lsk_s_fpn_1x", key, value)
