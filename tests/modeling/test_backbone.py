"""The FPN backbones: levels, widths, and what is refused."""

from __future__ import annotations

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, build_backbone

from d2prune.errors import PruneError
from tests.each import each
from tests.modeling.small_models import LEVELS_550, RT, small_cfg

RGB = ShapeSpec(channels=3)


@pytest.mark.parametrize(
    ("pairs", "names"),
    [((), "p3 p4 p5 p6 p7"), (LEVELS_550, "p3 p4 p5 p6"), (RT, "p3 p4 p5")],
)
def test_levels_and_their_sizes(pairs, names):
    backbone = build_backbone(small_cfg(*pairs))
    features = backbone(torch.randn(1, 3, 96, 160))
    assert list(features) == names.split() and backbone.size_divisibility == 32
    for name, feature in each(features.items()):
        stride = 2 ** int(name[1])
        assert backbone.output_shape()[name].stride == stride
        assert feature.shape == (1, 32, -(-96 // stride), -(-160 // stride))


def test_p6_is_returned_before_its_relu():
    backbone = build_backbone(small_cfg())
    features = backbone(torch.randn(1, 3, 128, 128))
    top = backbone.top_block
    torch.testing.assert_close(features["p6"], top.p6(features["p5"]))
    torch.testing.assert_close(features["p7"], top.p7(features["p6"].relu()))
    assert (features["p6"] < 0).any()


@pytest.mark.parametrize("depth", [18, 34])
def test_narrow_at_full_width_is_detectron2s_own(depth):
    cfg = small_cfg(
        "MODEL.RESNETS.DEPTH", depth,
        "MODEL.RESNETS.STEM_OUT_CHANNELS", 64,
        "MODEL.RESNETS.RES2_OUT_CHANNELS", 64,
    )  # fmt: skip
    with torch.device("meta"):
        ours, theirs = (
            BACKBONE_REGISTRY.get(f"build_{name}_backbone")(cfg, RGB) for name in ("narrow_resnet", "resnet")
        )
    one, two = ours.state_dict(), theirs.state_dict()
    assert {k: v.shape for k, v in one.items()} == {k: v.shape for k, v in two.items()}
    trainable = [[n for n, p in m.named_parameters() if p.requires_grad] for m in (ours, theirs)]
    assert trainable[0] == trainable[1]
    assert str(ours) == str(theirs)


def test_narrow_fpn_has_detectron2s_levels():
    cfg = small_cfg("MODEL.BACKBONE.NAME", "build_narrow_resnet_fpn_backbone")
    assert list(build_backbone(cfg)(torch.randn(1, 3, 64, 64))) == ["p3", "p4", "p5", "p6"]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("MODEL.BACKBONE.ANTI_ALIAS", True),
        ("MODEL.MOBILENET", True),
        ("MODEL.RESNETS.DEFORM_INTERVAL", 2),
    ],
)
def test_adelaidets_own_variants_are_refused(key, value):
    for name in ("build_fcos_resnet_fpn_backbone", "build_fcos_narrow_resnet_fpn_backbone"):
        with pytest.raises(PruneError, match=f"{key} is {value}.*install AdelaiDet"):
            build_backbone(small_cfg(key, value, "MODEL.BACKBONE.NAME", name))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("MODEL.RESNETS.DEPTH", 50),
        ("MODEL.RESNETS.NUM_GROUPS", 2),
        ("MODEL.RESNETS.RES5_DILATION", 2),
        ("MODEL.RESNETS.DEFORM_ON_PER_STAGE", [False, True, False, False]),
        ("MODEL.FCOS.TOP_LEVELS", 3),
        ("MODEL.FPN.IN_FEATURES", ["res3", "res4"]),
    ],
)
def test_unfit_values_are_named(key, value):
    with pytest.raises(PruneError, match=key):
        build_backbone(small_cfg(key, value))
