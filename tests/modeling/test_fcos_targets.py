"""The vectorised assignment against the rules written out with loops."""

from __future__ import annotations

import pytest
import torch

from d2prune.modeling.fcos.targets import TargetAssigner, locations_on_grid
from tests.each import each
from tests.modeling.small_models import instances

STRIDES = (8, 16, 32)
SIZES = (24, 48)


def grid(size=(96, 128)):
    maps = [torch.zeros(1, 1, size[0] // s, size[1] // s) for s in STRIDES]
    return [locations_on_grid(m, s) for m, s in zip(maps, STRIDES, strict=True)]


def by_loops(points, level, gt, radius):
    """(class, distances in strides, index) of each point of one level, following the paper."""
    low, high = ((-1, *SIZES)[level], (*SIZES, 1e8)[level])
    stride = STRIDES[level]
    for x, y in points.tolist():
        best = None
        for g, (x0, y0, x1, y1) in enumerate(gt.gt_boxes.tensor.tolist()):
            sides = (x - x0, y - y0, x1 - x, y1 - y)
            inside = min(sides) > 0
            if radius is not None:
                cx, cy, reach = (x0 + x1) / 2, (y0 + y1) / 2, radius * stride
                inside = max(x0, cx - reach) < x < min(x1, cx + reach)
                inside &= max(y0, cy - reach) < y < min(y1, cy + reach)
            area = (x1 - x0) * (y1 - y0)
            if inside and low <= max(sides) <= high and (best is None or area < best[0]):
                best = (area, int(gt.gt_classes[g]), [s / stride for s in sides], g)
        yield best


@pytest.mark.parametrize("radius", [None, 0.6, 1.5])
def test_assignment_follows_the_paper(radius):
    batch = [
        instances([[10, 12, 60, 70], [30, 20, 125, 95], [40, 40, 56, 60]], [1, 4, 0]),
        instances([], []),
        instances([[4, 4, 36, 40]], [2]),
    ]
    levels = grid()
    targets = TargetAssigner(STRIDES, SIZES, 5, radius)(levels, batch)
    row = 0
    for level, points in each(enumerate(levels)):
        for image, gt in enumerate(batch):
            offset = sum(len(g) for g in batch[:image])
            for k, best in each(enumerate(by_loops(points, level, gt, radius))):
                assert targets.image_inds[row] == image and targets.levels[row] == level
                assert targets.locations[row].tolist() == points[k].tolist()
                assert targets.labels[row] == (5 if best is None else best[1])
                if best is not None:
                    assert targets.distances[row].tolist() == pytest.approx(best[2])
                    assert targets.gt_inds[row] == best[3] + offset
                row += 1
    assert row == len(targets.labels)
    assert targets.positives.tolist() == (targets.labels != 5).nonzero()[:, 0].tolist()
    assert 0 < len(targets.positives) < row
    of_second = targets.gt_inds[targets.image_inds == 1]
    assert len(of_second) and (of_second == -1).all()


def test_size_range_includes_both_ends():
    box = instances([[20, 20, 68, 68]], [0])  # 24 px to the sides from the centre (44, 44)
    levels = [torch.tensor([[44.0, 44.0]])] * 3
    labels = TargetAssigner(STRIDES, SIZES, 5)(levels, [box]).labels
    assert labels.tolist() == [0, 0, 5]


def test_full_masks_move_the_sampled_square():
    gt = instances([[0, 0, 96, 96]], [3])
    mask = torch.zeros(1, 96, 128, dtype=torch.bool)
    mask[0, 60:76, 60:76] = True
    gt.gt_bitmasks_full = mask
    assigner = TargetAssigner((8,), (), 5)
    found = assigner(grid()[:1], [gt])
    offsets = (found.locations[found.positives] - 67.5).abs()
    assert len(offsets) and (offsets < 12).all()


def test_locations_are_cell_centres_in_row_order():
    points = locations_on_grid(torch.zeros(1, 1, 2, 3), 8)
    assert points.tolist() == [[4, 4], [12, 4], [20, 4], [4, 12], [12, 12], [20, 12]]
    assert locations_on_grid(torch.zeros(1, 1, 2, 2, dtype=torch.half), 8).dtype == torch.float32
