"""Blending: the softmax over bases, the loss, and empty batches."""

from __future__ import annotations

import pytest
import torch
from detectron2.structures import Boxes, Instances

from d2prune.errors import PruneError
from d2prune.modeling.blendmask import Blender
from tests.each import each
from tests.modeling.small_models import instances, small_cfg


def blender(bases=3, attention=5, resolution=14, interpolation="bilinear"):
    return Blender(
        small_cfg(
            "MODEL.BASIS_MODULE.NUM_BASES", bases,
            "MODEL.BLENDMASK.ATTN_SIZE", attention,
            "MODEL.BLENDMASK.BOTTOM_RESOLUTION", resolution,
            "MODEL.BLENDMASK.TOP_INTERP", interpolation,
        )
    )  # fmt: skip


def positives(blend, rows):
    found = Instances((0, 0))
    found.gt_inds = torch.tensor(rows, dtype=torch.long)
    found.gt_ctrs = torch.ones(len(rows))
    found.top_feats = torch.randn(len(rows), blend.num_coefficients, requires_grad=True)
    return found


@pytest.mark.parametrize("interpolation", ["bilinear", "nearest", "bicubic"])
def test_a_strong_coefficient_selects_its_base(interpolation):
    blend = blender(interpolation=interpolation)
    rois = torch.randn(2, 3, 14, 14)
    maps = torch.zeros(2, 3, 25)
    maps[0, 1] = maps[1, 2] = 1000.0  # base-major
    out = blend.blend(rois, maps.flatten(1))
    torch.testing.assert_close(out, torch.stack((rois[0, 1], rois[1, 2])))


def test_equal_coefficients_take_the_mean():
    blend = blender()
    rois = torch.randn(2, 3, 14, 14)
    torch.testing.assert_close(blend.blend(rois, torch.zeros(2, blend.num_coefficients)), rois.mean(dim=1))


def test_masks_are_set_per_image():
    blend = blender()
    batch = []
    for n in (2, 0, 1):
        found = Instances((64, 64))
        found.pred_boxes = Boxes(torch.tensor([[4.0, 4.0, 40.0, 48.0]] * n).reshape(-1, 4))
        found.top_feat = torch.randn(n, blend.num_coefficients)
        batch.append(found)
    blend.add_masks([torch.randn(3, 3, 16, 16)], batch)
    assert [f.pred_masks.shape for f in batch] == [(2, 1, 14, 14), (0, 1, 14, 14), (1, 1, 14, 14)]
    assert all(((f.pred_masks >= 0) & (f.pred_masks <= 1)).all() for f in each(batch))


def test_loss_is_small_for_the_right_mask_and_large_for_its_complement():
    blend = blender(bases=1)
    gt = instances([[0, 0, 128, 96]], [0])
    gt.gt_masks.tensor[:, :, 64:] = False
    bases = torch.full((1, 1, 24, 32), -8.0)
    bases[..., :16] = 8.0
    found = positives(blend, [0, 0])
    right = blend.losses([bases], found, torch.tensor(2.0), [gt])["loss_mask"]
    wrong = blend.losses([-bases], found, torch.tensor(2.0), [gt])["loss_mask"]
    assert right < 0.5 < 5 < wrong


def test_loss_without_positives_ties_bases_and_coefficients():
    blend = blender()
    bases = torch.full((1, 3, 8, 8), float("inf"), requires_grad=True)
    found = positives(blend, [])
    loss = blend.losses([bases], found, torch.tensor(1e-6), [instances([], [])])["loss_mask"]
    loss.backward()
    assert loss == 0 and (bases.grad == 0).all() and found.top_feats.grad is not None


def test_missing_masks_are_named():
    blend = blender()
    gt = instances([[0, 0, 60, 60]], [0])
    gt.remove("gt_masks")
    with pytest.raises(PruneError, match="gt_masks"):
        blend.losses([torch.randn(1, 3, 8, 8)], positives(blend, [0]), torch.tensor(1.0), [gt])
