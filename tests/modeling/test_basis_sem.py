"""The semantic map made from instance masks."""

from __future__ import annotations

import pytest
import torch
from detectron2.structures import PolygonMasks

from d2prune.errors import PruneError
from d2prune.modeling import basis_sem_from_instances
from tests.modeling.small_models import instances

BOXES = [[10, 12, 60, 70], [50, 20, 120, 90]]


def test_later_instances_cover_earlier_ones():
    painted = basis_sem_from_instances(instances(BOXES, [1, 4]), (96, 128))
    assert painted.dtype == torch.long and painted.shape == (96, 128)
    assert painted[15, 15] == 2 and painted[40, 55] == 5 and painted[0, 0] == 0
    assert sorted(painted.unique().tolist()) == [0, 2, 5]


def test_polygons_and_bitmasks_agree():
    gt = instances(BOXES, [1, 4])
    bits = basis_sem_from_instances(gt, (96, 128))
    gt.gt_masks = PolygonMasks(
        [[[float(v) for v in (x0, y0, x1, y0, x1, y1, x0, y1)]] for x0, y0, x1, y1 in BOXES]
    )
    assert (basis_sem_from_instances(gt, (96, 128)) != bits).float().mean() < 0.02


def test_no_instances_is_background():
    assert not basis_sem_from_instances(instances([], []), (8, 9)).any()


def test_missing_masks_and_wrong_sizes_are_errors():
    gt = instances(BOXES, [1, 4])
    with pytest.raises(PruneError, match="gt_masks are"):
        basis_sem_from_instances(gt, (40, 40))
    gt.remove("gt_masks")
    with pytest.raises(PruneError, match="MODEL.MASK_ON"):
        basis_sem_from_instances(gt, (96, 128))
