"""The head: its layout, its levels, its norms."""

from __future__ import annotations

import math

import pytest
import torch
from detectron2.layers import ShapeSpec
from torch import nn

from d2prune.errors import PruneError
from d2prune.modeling.fcos import FCOSHead
from d2prune.modeling.fcos.head import PerLevelNorm, build_tower
from tests.each import each
from tests.modeling.small_models import LEVELS_550, RT, build, small_cfg


def head(*pairs, levels=5, channels=32):
    return FCOSHead(small_cfg(*pairs), [ShapeSpec(channels=channels)] * levels)


def pyramid(levels=5, channels=32, size=32):
    return [torch.randn(2, channels, size >> i, size >> i) for i in range(levels)]


def test_five_lists_in_level_order():
    features = pyramid()
    top = nn.Conv2d(32, 7, 1)
    logits, distances, ctrness, tops, towers = head()(features, top, yield_bbox_towers=True)
    for maps, channels in ((logits, 5), (distances, 4), (ctrness, 1), (tops, 7), (towers, 32)):
        assert [m.shape for m in maps] == [(2, channels, *f.shape[2:]) for f in features]
    assert all((d >= 0).all() for d in each(distances))
    assert head()(features)[3:] == ([], [])


def test_class_bias_starts_at_the_prior():
    assert torch.allclose(head().cls_logits.bias, torch.tensor(-math.log(99.0)))


def test_scales_multiply_the_distances_of_their_level():
    scaled = head("MODEL.FCOS.USE_SCALE", True).eval()
    nn.init.ones_(scaled.bbox_pred.bias)
    before = scaled(pyramid_ := pyramid())[1]
    nn.init.constant_(scaled.scales[1].scale, 3.0)
    after = scaled(pyramid_)[1]
    torch.testing.assert_close(after[1], 3 * before[1])
    torch.testing.assert_close(after[0], before[0])


@pytest.mark.parametrize("norm", ["BN", "SyncBN"])
def test_each_level_has_its_own_batch_norm(norm):
    module = head("MODEL.FCOS.NORM", norm, *RT, levels=3).train()
    lists = [m for m in module.modules() if isinstance(m, PerLevelNorm)]
    assert [len(m) for m in lists] == [3, 3]
    features = [f + 10 * level for level, f in enumerate(pyramid(3))]
    module(features)
    counts = [int(bn.num_batches_tracked) for m in lists for bn in m]
    assert counts == [1] * 6
    means = [bn.running_mean for bn in lists[0]]
    assert not torch.equal(means[0], means[1])


def test_levels_are_counted_anew_by_every_call():
    module = head("MODEL.FCOS.NORM", "BN", *RT, levels=3).train()
    features = pyramid(3)
    module(features)
    module.eval()
    whole = module(features)
    module(features[:2])  # a call with fewer levels must leave nothing shifted
    for one, two in each(zip(whole, module(features), strict=True)):
        assert [a for a, b in zip(one, two, strict=True) if not torch.equal(a, b)] == []


@pytest.mark.parametrize(
    ("norm", "expected"),
    [
        ("GN", [nn.Conv2d, nn.GroupNorm, nn.ReLU]),
        ("NaiveGN", [nn.Conv2d, nn.GroupNorm, nn.ReLU]),
        ("BN", [nn.Conv2d, PerLevelNorm, nn.ReLU]),
        ("none", [nn.Conv2d, nn.ReLU]),
    ],
)
def test_tower_layout(norm, expected):
    tower = build_tower(2, 32, norm, 3)
    assert [type(m) for m in tower] == expected * 2
    assert all(m.bias is not None for m in each(m for m in tower if isinstance(m, nn.Conv2d)))


def test_empty_tower_is_identity():
    x = torch.randn(1, 4, 2, 2)
    assert build_tower(0, 4, "GN", 3)(x, 0) is x


@pytest.mark.parametrize(
    ("pairs", "channels", "key"),
    [
        (("MODEL.FCOS.NORM", "LN"), 32, "MODEL.FCOS.NORM"),
        ((), 40, "MODEL.FPN.OUT_CHANNELS"),
    ],
)
def test_bad_norms_are_named(pairs, channels, key):
    with pytest.raises(PruneError, match=key):
        head(*pairs, channels=channels)


def test_deformable_needs_the_compiled_operators():
    try:
        from detectron2 import _C  # noqa: F401
    except ImportError:
        with pytest.raises(PruneError, match="MODEL.FCOS.USE_DEFORMABLE"):
            head("MODEL.FCOS.USE_DEFORMABLE", True)
    else:
        last = [head("MODEL.FCOS.USE_DEFORMABLE", True).cls_tower[0]]
        assert hasattr(last[0], "offset")


@pytest.mark.parametrize("pairs", [RT, LEVELS_550])
def test_shared_towers_leave_the_others_empty(pairs):
    module = build(*pairs).proposal_generator.fcos_head
    assert len(module.cls_tower) == len(module.bbox_tower) == 0
    assert len(module.share_tower) == 6
