"""From raw pixels to a backbone's features, as Detectron2's meta-architectures go there."""

from __future__ import annotations

from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor, nn


def padded(model: nn.Module, images: Tensor) -> Tensor:
    """Normalizes (N, 3, H, W) raw pixels, and pads to the multiple that the backbone's levels need.

    Squares, to which some backbones pad besides, are left out: they only make a proof slow.
    """
    normalized = (images - model.pixel_mean) / model.pixel_std
    step = int(model.backbone.size_divisibility) or 1
    below, right = (-size % step for size in images.shape[-2:])
    return F.pad(normalized, (0, right, 0, below))


def features_of(model: nn.Module, images: Tensor) -> Mapping[str, Tensor]:
    """The backbone's feature maps of raw images, by name."""
    return model.backbone(padded(model, images))
