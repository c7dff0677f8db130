"""FCOS's losses: focal, IoU and centre-ness (arXiv 1904.01355 section 3; quality 2006.09214)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from detectron2.structures import Instances
from detectron2.utils import comm
from fvcore.nn import sigmoid_focal_loss
from fvcore.nn.distributed import differentiable_all_reduce
from torch import Tensor

from .targets import Targets

LOC_LOSSES = ("iou", "linear_iou", "giou")
NORMALIZERS = ("fg", "moving_fg", "all")
QUALITIES = ("ctrness", "iou")


def ctrness_of(distances: Tensor) -> Tensor:
    """Return the centre-ness (P,) of distances (P, 4): arXiv 1904.01355, equation 3."""
    left, top, right, bottom = distances.unbind(dim=1)
    horizontal = torch.minimum(left, right) / torch.maximum(left, right)
    vertical = torch.minimum(top, bottom) / torch.maximum(top, bottom)
    return torch.sqrt(horizontal * vertical)


def iou_of(predicted: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Return IoU and GIoU (arXiv 1902.09630), both (P,), of boxes around one point.

    Both are distances (P, 4); the IoU has one square unit added above and below.
    """
    overlap = torch.minimum(predicted, target)
    hull = torch.maximum(predicted, target)
    inter, enclosing = _area(overlap), _area(hull)
    union = _area(predicted) + _area(target) - inter
    iou = (inter + 1) / (union + 1)
    return iou, iou - (enclosing - union) / enclosing


def _area(distances: Tensor) -> Tensor:
    left, top, right, bottom = distances.unbind(dim=1)
    return (left + right) * (top + bottom)


def mean_over_gpus(value: Tensor) -> Tensor:
    """Return the mean of a detached number over all processes; itself where there is one."""
    if comm.get_world_size() == 1:
        return value.detach()
    return differentiable_all_reduce(value.detach()) / comm.get_world_size()


def rows_at(maps: list[Tensor], flat: Tensor) -> Tensor:
    """Pick the rows (P, C) of per-level maps (N, C, H_l, W_l) at level-first indices (P,).

    ``flat`` ascends. An empty one still ties the result to every map, with zero gradients.
    """
    rows = []
    start = 0
    for feature in maps:
        pixels = feature.shape[2] * feature.shape[3]
        end = start + feature.shape[0] * pixels
        local = flat[(flat >= start) & (flat < end)] - start
        by_pixel = feature.flatten(2).transpose(1, 2)
        rows.append(by_pixel[local // pixels, local % pixels])
        start = end
    return torch.cat(rows)


def _flatten(maps: list[Tensor]) -> Tensor:
    """Turn per-level maps (N, C, H_l, W_l) into (M, C), level-first."""
    return torch.cat([m.permute(0, 2, 3, 1).flatten(0, 2) for m in maps])


@dataclass
class FCOSLoss:
    """FCOS's three losses.

    Attributes:
        num_classes: foreground classes.
        alpha, gamma: of the focal loss (arXiv 1708.02002).
        cls_normalizer: what the class loss is divided by: fg, moving_fg or all.
        cls_weight: of the class loss.
        loc_loss: iou, linear_iou or giou.
        quality: ctrness, or iou: what the third predictor learns.
        moving_fg: running mean of the number of positives, for "moving_fg"; not saved.
    """

    num_classes: int
    alpha: float = 0.25
    gamma: float = 2.0
    cls_normalizer: str = "fg"
    cls_weight: float = 1.0
    loc_loss: str = "giou"
    quality: str = "ctrness"
    moving_fg: float = 100.0

    def __call__(
        self,
        targets: Targets,
        logits: list[Tensor],
        distances: list[Tensor],
        ctrness: list[Tensor],
        top_feats: list[Tensor],
    ) -> tuple[dict[str, Tensor], dict[str, Instances | Tensor]]:
        """Return the losses, and the positive locations for later stages.

        Args:
            targets: of the batch.
            logits: ``(N, K, H_l, W_l)`` per level.
            distances: ``(N, 4, H_l, W_l)`` per level, in strides.
            ctrness: ``(N, 1, H_l, W_l)`` per level, logits.
            top_feats: ``(N, T, H_l, W_l)`` per level, or empty.

        Returns:
            The losses, and ``{"instances": the P positive locations}``; with quality "ctrness" also
            "loss_denorm", the mean over GPUs of the summed centre-ness. The instances have labels,
            gt_inds, im_inds, fpn_levels, locations, reg_targets, reg_pred, ctrness_pred, pos_inds,
            and where they exist top_feats and gt_ctrs.
        """
        found = _positives(targets, distances, ctrness, top_feats)
        count = found.reg_targets.new_tensor(float(len(found)))
        num_pos = mean_over_gpus(count).clamp(min=1.0)
        losses = {"loss_fcos_cls": self._class_loss(targets, logits, num_pos)}
        iou, giou = iou_of(found.reg_pred, found.reg_targets)
        loc = self._loc_loss(iou, giou)
        if self.quality == "iou":
            losses["loss_fcos_loc"] = loc.sum() / num_pos
            losses["loss_fcos_iou"] = _bce_sum(found.ctrness_pred, iou.detach()) / num_pos
            return losses, {"instances": found}
        found.gt_ctrs = ctrness_of(found.reg_targets)
        denorm = mean_over_gpus(found.gt_ctrs.sum()).clamp(min=1e-6)
        losses["loss_fcos_loc"] = (loc * found.gt_ctrs).sum() / denorm
        losses["loss_fcos_ctr"] = _bce_sum(found.ctrness_pred, found.gt_ctrs) / num_pos
        return losses, {"instances": found, "loss_denorm": denorm}

    def _class_loss(self, targets: Targets, logits: list[Tensor], num_pos: Tensor) -> Tensor:
        flat = _flatten(logits)
        wanted = torch.zeros_like(flat)
        wanted[targets.positives, targets.labels[targets.positives]] = 1
        loss = sigmoid_focal_loss(flat, wanted, self.alpha, self.gamma, reduction="sum")
        return self.cls_weight * loss / self._class_normalizer(num_pos, len(flat))

    def _class_normalizer(self, num_pos: Tensor, num_locations: int) -> Tensor | float:
        if self.cls_normalizer == "fg":
            return num_pos
        if self.cls_normalizer == "moving_fg":
            self.moving_fg = 0.9 * self.moving_fg + 0.1 * num_pos.item()
            return self.moving_fg
        return mean_over_gpus(num_pos.new_tensor(float(num_locations))).clamp(min=1.0)

    def _loc_loss(self, iou: Tensor, giou: Tensor) -> Tensor:
        if self.loc_loss == "iou":
            return -torch.log(iou)
        return 1 - (iou if self.loc_loss == "linear_iou" else giou)


def _bce_sum(logits: Tensor, wanted: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(logits, wanted, reduction="sum")


def _positives(
    targets: Targets, distances: list[Tensor], ctrness: list[Tensor], top_feats: list[Tensor]
) -> Instances:
    """Gather targets and predictions at the positive locations of the whole batch."""
    rows = targets.positives
    dtype = targets.distances.dtype  # at least float32, where predictions may be half
    found = Instances((0, 0))  # of no single image
    found.pos_inds = rows
    found.labels = targets.labels[rows]
    found.gt_inds = targets.gt_inds[rows]
    found.im_inds = targets.image_inds[rows]
    found.fpn_levels = targets.levels[rows]
    found.locations = targets.locations[rows]
    found.reg_targets = targets.distances[rows]
    found.reg_pred = rows_at(distances, rows).to(dtype)
    found.ctrness_pred = rows_at(ctrness, rows)[:, 0].to(dtype)
    if top_feats:
        found.top_feats = rows_at(top_feats, rows)
    return found
