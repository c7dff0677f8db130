"""The basis module: shapes, norms, and when it has a loss."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from detectron2.layers import ShapeSpec
from torch import nn

from d2prune.errors import PruneError
from d2prune.modeling.blendmask import ProtoNet, build_basis_module
from tests.modeling.small_models import small_cfg

SHAPES = {f"p{i}": ShapeSpec(channels=32, stride=2**i) for i in range(3, 8)}


def protonet(*pairs):
    return ProtoNet(small_cfg(*pairs), SHAPES)


def features():
    return {f"p{i}": torch.randn(2, 32, 128 >> i, 64 >> i) for i in range(3, 8)}


@pytest.mark.parametrize(("bases", "convs"), [(4, 3), (5, 2), (1, 0)])
def test_bases_have_twice_the_size_of_p3(bases, convs):
    module = protonet("MODEL.BASIS_MODULE.NUM_BASES", bases, "MODEL.BASIS_MODULE.NUM_CONVS", convs)
    out, losses = module.eval()(features())
    assert [b.shape for b in out["bases"]] == [(2, bases, 32, 16)]
    assert losses == {}
    assert isinstance(module.tower[convs], nn.Upsample)


def test_loss_is_training_only_and_can_be_switched_off():
    module, maps = protonet(), features()
    targets = torch.randint(0, 6, (2, 128, 64))
    assert set(module.train()(maps, targets)[1]) == {"loss_basis_sem"}
    assert module.eval()(maps, targets)[1] == {}
    module.loss_on = False
    assert module.train()(maps, None)[1] == {}
    assert protonet("MODEL.BASIS_MODULE.LOSS_ON", False).seg_head is None


def test_loss_samples_the_first_pixel_of_each_cell():
    module, maps = protonet().train(), features()
    targets = torch.randint(0, 6, (2, 128, 64))
    loss = module(maps, targets)[1]["loss_basis_sem"]
    nearest = F.interpolate(targets[:, None].float(), scale_factor=1 / 8)[:, 0].long()
    torch.testing.assert_close(loss, 0.3 * F.cross_entropy(module.seg_head(maps["p3"]), nearest))
    noise = torch.randint(0, 6, (2, 128, 64))
    noise[:, ::8, ::8] = targets[:, ::8, ::8]
    torch.testing.assert_close(module(maps, noise)[1]["loss_basis_sem"], loss)


def test_missing_targets_are_an_error():
    with pytest.raises(PruneError, match="MODEL.BASIS_MODULE.LOSS_ON"):
        protonet().train()(features())


def test_classes_the_loss_lacks_are_an_error():
    with pytest.raises(PruneError, match="class 5; expected 0 to 4, or a larger MODEL.BASIS_MOD"):
        protonet().train()(features(), torch.full((2, 128, 64), 6))


@pytest.mark.parametrize(
    ("norm", "layer"), [("BN", nn.BatchNorm2d), ("SyncBN", nn.SyncBatchNorm), ("GN", nn.GroupNorm)]
)
def test_norms(norm, layer):
    module = protonet("MODEL.BASIS_MODULE.NORM", norm, "MODEL.BASIS_MODULE.CONVS_DIM", 32)
    assert isinstance(module.refine[0][1], layer) and module.refine[0][0].bias is None
    assert type(module.seg_head[1]) is nn.BatchNorm2d
    module.train()(features(), torch.zeros(2, 128, 64, dtype=torch.long))


def test_empty_norm_means_neither_norm_nor_bias():
    module = protonet("MODEL.BASIS_MODULE.NORM", "")
    assert [type(m) for m in module.refine[0]] == [nn.Conv2d, nn.ReLU]
    assert module.refine[0][0].bias is None


@pytest.mark.parametrize(("key", "value"), [("NAME", "Foo"), ("IN_FEATURES", ["p2"]), ("COMMON_STRIDE", 5)])
def test_bad_values_are_named(key, value):
    with pytest.raises(PruneError, match=f"MODEL.BASIS_MODULE.{key}"):
        build_basis_module(small_cfg(f"MODEL.BASIS_MODULE.{key}", value), SHAPES)
