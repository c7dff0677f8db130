"""Raw images, and their way to a backbone's features as in Detectron2's meta-architectures."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Size = tuple[int, int]

PROOF_SIZE: Size = (192, 256)
"""Height and width of the image that graphs are traced and proofs made on: both a multiple of 64,
unequal so that swapped axes show, and small enough for float64 on a CPU."""

TEST_SIZE: Size = (800, 1344)
"""Detectron2's default test size (800, 1333), padded to 32: what costs are counted on by default."""


def random_images(size: Size, count: int = 1) -> Tensor:
    """Return (count, 3, H, W) noise of 0..255, the same each time."""
    generator = torch.Generator().manual_seed(0)
    return torch.rand(count, 3, *size, generator=generator) * 255


def normalized(model: nn.Module, images: Tensor) -> Tensor:
    """Return (N, 3, H, W) raw pixels minus the model's mean, divided by its standard deviation."""
    if hasattr(model, "normalizer"):
        # AdelaiDet hides mean and std in a lambda: float32, on the device the model was built for.
        # Counting on meta needs no values, other dtypes a cast.
        return images if images.is_meta else model.normalizer(images).to(images.dtype)
    return (images - model.pixel_mean) / model.pixel_std


def padding_step(model: nn.Module) -> int:
    """Return the pixels that height and width are padded to a multiple of; 1 if the backbone needs none."""
    backbone = getattr(model, "backbone", None)
    step = getattr(backbone, "size_divisibility", 0)
    return int(getattr(backbone, "padding_constraints", {}).get("size_divisibility", step)) or 1


def padded(model: nn.Module, images: Tensor) -> Tensor:
    """Normalize (N, 3, H, W) raw pixels, and pad them to the multiple that the backbone's levels need.

    The padding to squares that some backbones ask for is left out: it only makes proofs slow.
    """
    step = padding_step(model)
    below, right = (-size % step for size in images.shape[-2:])
    return F.pad(normalized(model, images), (0, right, 0, below))


def features_of(model: nn.Module, images: Tensor) -> Mapping[str, Tensor]:
    """Return the backbone's feature maps of raw images, by name."""
    return model.backbone(padded(model, images))
