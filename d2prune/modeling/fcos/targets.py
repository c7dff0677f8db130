"""FCOS's assignment of instances to locations, with centre sampling."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from detectron2.structures import Instances
from torch import Tensor

_FAR = 1e8  # pixels; above every distance


def locations_on_grid(feature: Tensor, stride: int) -> Tensor:
    """Return the (x, y) in pixels of the cells of (N, C, H, W), row by row, shape (H * W, 2).

    At least float32, however low the precision of ``feature``: half cannot count pixels above 2048.
    """
    height, width = feature.shape[-2:]
    dtype = torch.promote_types(feature.dtype, torch.float32)
    x = torch.arange(width, dtype=dtype, device=feature.device) * stride + stride // 2
    y = torch.arange(height, dtype=dtype, device=feature.device) * stride + stride // 2
    grid_y, grid_x = torch.meshgrid(y, x, indexing="ij")
    return torch.stack((grid_x.reshape(-1), grid_y.reshape(-1)), dim=1)


@dataclass(frozen=True)
class Targets:
    """The targets of the batch's M locations, ordered level-first: level, image, y, x.

    Attributes:
        labels: (M,) class, or the number of classes for background.
        distances: (M, 4) left, top, right, bottom to the box's sides, in strides.
        gt_inds: (M,) row in the batch-wide concatenation of instances; -1 in empty images.
        image_inds: (M,) image in the batch.
        levels: (M,) pyramid level, 0 the first in-feature.
        locations: (M, 2) x, y in pixels.
        positives: (P,) ascending rows of the locations that are not background.
    """

    labels: Tensor
    distances: Tensor
    gt_inds: Tensor
    image_inds: Tensor
    levels: Tensor
    locations: Tensor
    positives: Tensor


@dataclass(frozen=True)
class TargetAssigner:
    """The assignment of instances to locations (arXiv 1904.01355 section 3.2, centre sampling 2006.09214).

    Attributes:
        strides: of the levels, in pixels.
        sizes_of_interest: in pixels, the bounds between the levels' ranges of max(l, t, r, b).
        num_classes: foreground classes; background's label.
        center_radius: half side of the sampled square, in strides; None: the whole box.
    """

    strides: tuple[int, ...]
    sizes_of_interest: tuple[float, ...]
    num_classes: int
    center_radius: float | None = 1.5

    @torch.no_grad()
    def __call__(self, locations: list[Tensor], gt_instances: list[Instances]) -> Targets:
        """Assign a batch.

        Args:
            locations: (H_l * W_l, 2) per level.
            gt_instances: per image, with ``gt_boxes`` and ``gt_classes``; ``gt_bitmasks_full``
                (G, H, W), where present, moves the sampled square to the mask's centre of mass.
        """
        counts = [len(level) for level in locations]
        points = torch.cat(locations)
        strides, low, high = self._level_of_points(points, counts)
        assigned = []
        offset = 0
        for gt in gt_instances:
            assigned.append(self._one_image(points, strides, low, high, gt, offset))
            offset += len(gt)
        labels, distances, gt_inds = (torch.stack(parts) for parts in zip(*assigned, strict=True))
        images = torch.arange(len(gt_instances), device=points.device)[:, None]
        levels = _spread(range(len(counts)), counts, points).long()
        labels = _level_first(labels, counts)
        return Targets(
            labels=labels,
            distances=_level_first(distances / strides[:, None], counts),
            gt_inds=_level_first(gt_inds, counts),
            image_inds=_level_first(images.expand_as(gt_inds), counts),
            levels=_level_first(levels.expand_as(gt_inds), counts),
            locations=_level_first(points.expand(len(gt_instances), -1, -1), counts),
            positives=torch.nonzero(labels != self.num_classes)[:, 0],
        )

    def _level_of_points(self, points: Tensor, counts: list[int]) -> tuple[Tensor, Tensor, Tensor]:
        lows = (-1, *self.sizes_of_interest)
        highs = (*self.sizes_of_interest, _FAR)
        strides, low, high = (_spread(v, counts, points) for v in (self.strides, lows, highs))
        return strides, low, high

    def _one_image(
        self,
        points: Tensor,
        strides: Tensor,
        low: Tensor,
        high: Tensor,
        gt: Instances,
        offset: int,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return labels (L,), distances (L, 4) in pixels and gt_inds (L,) of L points."""
        labels = torch.full((len(points),), self.num_classes, device=points.device)
        if len(gt) == 0:
            return labels, points.new_zeros(len(points), 4), torch.full_like(labels, -1)
        boxes = gt.gt_boxes.tensor.to(points.dtype)
        distances = _distances(points, boxes[None])  # (L, G, 4)
        largest = distances.amax(dim=2)
        in_range = (largest >= low[:, None]) & (largest <= high[:, None])
        candidate = in_range & self._sampled(points, strides, boxes, gt, distances)
        # An ambiguous location learns the smallest box.
        area = gt.gt_boxes.area().to(points.dtype).expand(len(points), -1)
        chosen = area.masked_fill(~candidate, _FAR).argmin(dim=1)
        labels = torch.where(candidate.any(dim=1), gt.gt_classes[chosen], labels)
        return (
            labels,
            distances[torch.arange(len(points), device=points.device), chosen],
            chosen + offset,
        )

    def _sampled(
        self, points: Tensor, strides: Tensor, boxes: Tensor, gt: Instances, distances: Tensor
    ) -> Tensor:
        """Return (L, G): whether the point lies strictly inside the instance's sampled region."""
        if self.center_radius is None:
            return distances.amin(dim=2) > 0
        center = _centers(gt, boxes)
        reach = (self.center_radius * strides)[:, None, None]
        region = torch.cat(
            (
                torch.maximum(center - reach, boxes[:, :2]),
                torch.minimum(center + reach, boxes[:, 2:]),
            ),
            dim=2,
        )
        return _distances(points, region).amin(dim=2) > 0


def _distances(points: Tensor, boxes: Tensor) -> Tensor:
    """Return left, top, right, bottom distances (L, G, 4) from (L, 2) to (L or 1, G, 4)."""
    points = points[:, None]
    return torch.cat((points - boxes[..., :2], boxes[..., 2:] - points), dim=2)


def _centers(gt: Instances, boxes: Tensor) -> Tensor:
    """Return (G, 2): the boxes' centres, or the full masks' centres of mass where given."""
    if not gt.has("gt_bitmasks_full"):
        return (boxes[:, :2] + boxes[:, 2:]) / 2
    masks = gt.gt_bitmasks_full.to(boxes.dtype)
    x = torch.arange(masks.shape[2], dtype=boxes.dtype, device=boxes.device)
    y = torch.arange(masks.shape[1], dtype=boxes.dtype, device=boxes.device)
    mass = masks.sum(dim=(1, 2)).clamp(min=1e-6)
    moments = ((masks * x).sum(dim=(1, 2)), (masks * y[:, None]).sum(dim=(1, 2)))
    return torch.stack(moments, dim=1) / mass[:, None]


def _spread(values: range | tuple[float, ...], counts: list[int], like: Tensor) -> Tensor:
    """Repeat each level's value for each of its points."""
    return torch.cat([like.new_full((n,), float(v)) for v, n in zip(values, counts, strict=True)])


def _level_first(per_image: Tensor, counts: list[int]) -> Tensor:
    """Flatten (N, L, ...) to (N * L, ...) with the level outermost."""
    return torch.cat([level.flatten(0, 1) for level in per_image.split(counts, dim=1)])
