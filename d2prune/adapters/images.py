"""From raw pixels to a backbone's features, as Detectron2's meta-architectures go there."""

from __future__ import annotations

from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor, nn


def padded(model: nn.Module, images: Tensor) -> Tensor:
    """Normalizes (N, 3, H, W) raw pixels and pads them, at the right and below, to what the backbone takes."""
    normalized = (images - model.pixel_mean) / model.pixel_std
    height, width = images.shape[-2:]
    square = model.backbone.padding_constraints.get("square_size", 0)
    step = max(model.backbone.size_divisibility, 1)
    target = [max(square, -(-size // step) * step) for size in (height, width)]
    return F.pad(normalized, (0, target[1] - width, 0, target[0] - height))


def features_of(model: nn.Module, images: Tensor) -> Mapping[str, Tensor]:
    """The backbone's feature maps of raw images, by name."""
    return model.backbone(padded(model, images))
