"""From raw pixels to a backbone's features, as Detectron2's meta-architectures go there."""

from __future__ import annotations

from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor, nn


def normalized(model: nn.Module, images: Tensor) -> Tensor:
    """(N, 3, H, W) raw pixels less the model's mean, by its standard deviation."""
    if hasattr(model, "normalizer"):
        # AdelaiDet hides mean and std in a lambda: float32, on the device the model was built for.
        # Counting on meta needs no values, other dtypes a cast.
        return images if images.is_meta else model.normalizer(images).to(images.dtype)
    return (images - model.pixel_mean) / model.pixel_std


def padded(model: nn.Module, images: Tensor) -> Tensor:
    """Normalizes (N, 3, H, W) raw pixels, and pads to the multiple that the backbone's levels need.

    Squares, to which some backbones pad besides, are left out: they only make a proof slow.
    """
    step = int(model.backbone.size_divisibility) or 1
    below, right = (-size % step for size in images.shape[-2:])
    return F.pad(normalized(model, images), (0, right, 0, below))


def features_of(model: nn.Module, images: Tensor) -> Mapping[str, Tensor]:
    """The backbone's feature maps of raw images, by name."""
    return model.backbone(padded(model, images))
