"""The losses: the formulas on single boxes, and what must hold of any batch."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from detectron2.structures import Boxes, pairwise_iou
from torchvision.ops import sigmoid_focal_loss

from d2prune.modeling.fcos.losses import FCOSLoss, ctrness_of, iou_of, rows_at
from d2prune.modeling.fcos.targets import TargetAssigner, locations_on_grid
from tests.each import each
from tests.modeling.small_models import instances

CLASSES = 5


def predictions(num_images=2, top=0):
    shapes = [(num_images, 12, 16), (num_images, 6, 8)]

    def maps(channels):
        return [torch.randn(n, channels, h, w).requires_grad_() for n, h, w in shapes]

    distances = [(d.detach().abs() * 3).requires_grad_() for d in maps(4)]
    return maps(CLASSES), distances, maps(1), maps(top) if top else []


def targets(batch):
    logits = predictions(len(batch))[0]
    levels = [locations_on_grid(m, s) for m, s in zip(logits, (8, 16), strict=True)]
    return TargetAssigner((8, 16), (64,), CLASSES)(levels, batch)


@pytest.fixture
def batch():
    return [instances([[10, 12, 60, 70], [50, 20, 120, 90]], [1, 4]), instances([], [])]


def test_iou_is_that_of_the_boxes():
    one, two = torch.rand(6, 4) * 50 + 1, torch.rand(6, 4) * 50 + 1
    corners = [Boxes(torch.cat((100 - d[:, :2], 100 + d[:, 2:]), dim=1)) for d in (one, two)]
    exact = pairwise_iou(*corners).diag()
    iou, giou = iou_of(one, two)
    # The added square units matter less the larger the boxes are.
    torch.testing.assert_close(iou, exact, atol=5e-3, rtol=0)
    assert (giou <= iou).all()
    same_iou, same_giou = iou_of(one, one)
    torch.testing.assert_close(same_iou, torch.ones(6))
    torch.testing.assert_close(same_giou, torch.ones(6))


def test_ctrness_is_one_at_the_centre_and_falls():
    values = ctrness_of(torch.tensor([[3.0, 2, 3, 2], [1, 1, 4, 1], [1, 1, 4, 4]]))
    assert values.tolist() == pytest.approx([1, 0.5, 0.25])


def test_losses_are_the_formulas(batch):
    wanted = targets(batch)
    logits, distances, ctrness, _ = predictions()
    losses, results = FCOSLoss(CLASSES)(wanted, logits, distances, ctrness, [])
    flat, reg, ctr = (
        torch.cat([m.permute(0, 2, 3, 1).reshape(-1, m.shape[1]) for m in maps])
        for maps in (logits, distances, ctrness)
    )
    pos = wanted.positives
    one_hot = F.one_hot(wanted.labels, CLASSES + 1)[:, :CLASSES].float()
    cls = sigmoid_focal_loss(flat, one_hot, reduction="sum") / len(pos)
    centre = ctrness_of(wanted.distances[pos])
    giou = iou_of(reg[pos], wanted.distances[pos])[1]
    torch.testing.assert_close(losses["loss_fcos_cls"], cls)
    torch.testing.assert_close(losses["loss_fcos_loc"], ((1 - giou) * centre).sum() / centre.sum())
    torch.testing.assert_close(
        losses["loss_fcos_ctr"], F.binary_cross_entropy_with_logits(ctr[pos, 0], centre)
    )
    torch.testing.assert_close(results["loss_denorm"], centre.sum())


def test_rows_come_in_level_first_order():
    maps = [torch.randn(2, 3, 4, 5), torch.randn(2, 3, 2, 2)]
    flat = torch.cat([m.permute(0, 2, 3, 1).reshape(-1, 3) for m in maps])
    rows = torch.tensor([0, 7, 39, 40, 44, 47])
    assert torch.equal(rows_at(maps, rows), flat[rows])


def test_exact_boxes_cost_nothing(batch):
    wanted = targets(batch)
    logits, distances, ctrness, _ = predictions()
    flat = wanted.distances.clamp(min=0.1)
    sizes = [d.shape[0] * d.shape[2] * d.shape[3] for d in distances]
    exact = [
        part.reshape(d.shape[0], *d.shape[2:], 4).permute(0, 3, 1, 2)
        for part, d in zip(flat.split(sizes), distances, strict=True)
    ]
    for kind in ("iou", "linear_iou", "giou"):
        losses, _ = FCOSLoss(CLASSES, loc_loss=kind)(wanted, logits, exact, ctrness, [])
        assert losses["loss_fcos_loc"].item() == pytest.approx(0, abs=1e-6)


def test_loc_losses_differ_and_are_positive(batch):
    wanted, dense = targets(batch), predictions()
    values = {
        FCOSLoss(CLASSES, loc_loss=kind)(wanted, *dense)[0]["loss_fcos_loc"].item()
        for kind in ("iou", "linear_iou", "giou")
    }
    assert len(values) == 3 and min(values) > 0


def test_class_normalizers(batch):
    wanted, dense = targets(batch), predictions()
    pos, everything = len(wanted.positives), len(wanted.labels)
    by_fg = FCOSLoss(CLASSES)(wanted, *dense)[0]["loss_fcos_cls"]
    by_all = FCOSLoss(CLASSES, cls_normalizer="all")(wanted, *dense)[0]["loss_fcos_cls"]
    torch.testing.assert_close(by_fg * pos, by_all * everything)
    moving = FCOSLoss(CLASSES, cls_normalizer="moving_fg")
    for _ in range(2):
        loss = moving(wanted, *dense)[0]["loss_fcos_cls"]
    assert moving.moving_fg == pytest.approx(81 + 0.19 * pos)
    torch.testing.assert_close(loss * moving.moving_fg, by_fg * pos)


def test_weight_scales_the_class_loss(batch):
    wanted, dense = targets(batch), predictions()
    one = FCOSLoss(CLASSES)(wanted, *dense)[0]["loss_fcos_cls"]
    two = FCOSLoss(CLASSES, cls_weight=2.0)(wanted, *dense)[0]["loss_fcos_cls"]
    torch.testing.assert_close(two, 2 * one)


def test_iou_quality_learns_the_detached_iou(batch):
    wanted = targets(batch)
    logits, distances, ctrness, _ = predictions()
    losses, results = FCOSLoss(CLASSES, quality="iou")(wanted, logits, distances, ctrness, [])
    assert set(losses) == {"loss_fcos_cls", "loss_fcos_loc", "loss_fcos_iou"}
    assert set(results) == {"instances"}
    losses["loss_fcos_iou"].backward()
    assert distances[0].grad is None and ctrness[0].grad is not None


def test_no_positives_still_tie_every_map():
    wanted = targets([instances([], []), instances([], [])])
    logits, distances, ctrness, top = predictions(top=7)
    for quality in ("ctrness", "iou"):
        losses, results = FCOSLoss(CLASSES, quality=quality)(wanted, logits, distances, ctrness, top)
        total = sum(losses.values()) + results["instances"].top_feats.sum()
        grads = torch.autograd.grad(total, [*logits, *distances, *ctrness, *top])
        assert total.isfinite()
        assert all((g == 0).all() for g in each(grads[len(logits) :]))


def test_half_precision_predictions_are_compared_in_float(batch):
    wanted = targets(batch)
    dense = [[m.detach().half() for m in maps] for maps in predictions()]
    losses, _ = FCOSLoss(CLASSES)(wanted, *dense)
    assert losses["loss_fcos_loc"].dtype == losses["loss_fcos_ctr"].dtype == torch.float32
