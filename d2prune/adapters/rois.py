"""Fixed boxes in place of chosen regions, pooled in the same way on every device and dtype.

A proof must not depend on a sort or a threshold, so heads that work on regions get boxes that depend
only on the image's size. Pooling of any kind works on each channel alone, so one kind serves for all,
and every box reads every level, so that no level is unused on a small image.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from detectron2.modeling.poolers import ROIPooler
from torch import Tensor
from torchvision.ops import roi_align

TRACED = 8
"""Boxes per image for tracing and proofs."""


def fixed_boxes(images: Tensor, count: int) -> Tensor:
    """Return ``count`` boxes of various sizes inside each image.

    Args:
        images: (N, C, H, W), which give the boxes' size, device and dtype.
        count: boxes per image.

    Returns:
        (N * count, 5): the image's index, x0, y0, x1, y1 in pixels.
    """
    number, _, height, width = images.shape
    order = torch.arange(count, device=images.device, dtype=images.dtype)
    x, y, w, h = (order * step % 1 for step in (0.618, 0.755, 0.570, 0.323))  # spread evenly over 0..1
    x0, y0 = x * width / 2, y * height / 2
    x1, y1 = x0 + (0.1 + 0.4 * w) * width, y0 + (0.1 + 0.4 * h) * height
    boxes = torch.stack([x0, y0, x1, y1], dim=1).repeat(number, 1)
    index = torch.arange(number, device=images.device, dtype=images.dtype).repeat_interleave(count)
    return torch.cat([index[:, None], boxes], dim=1)


def pool(pooler: ROIPooler, features: Sequence[Tensor], boxes: Tensor) -> Tensor:
    """Return (R, C, h, w): (N, C, H, W) features pooled in ``boxes`` (R, 5), summed over all levels."""
    levels = zip(pooler.level_poolers, features, strict=True)
    pooled = [sample(feature, boxes, level.spatial_scale, pooler.output_size) for level, feature in levels]
    return functools.reduce(torch.add, pooled)


def sample(feature: Tensor, boxes: Tensor, scale: float, size: Sequence[int]) -> Tensor:
    """Return (R, C, h, w): a feature map of stride 1 / ``scale`` at a grid of ``size`` (h, w) per box."""
    return roi_align(feature, boxes, size, scale, sampling_ratio=1, aligned=True)
