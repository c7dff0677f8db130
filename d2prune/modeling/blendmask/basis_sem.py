"""The semantic map of instances' classes: the target of the bases' auxiliary loss."""

from __future__ import annotations

import torch
from detectron2.structures import BitMasks, Instances, PolygonMasks
from detectron2.structures.masks import polygons_to_bitmask
from torch import Tensor

from d2prune.errors import PruneError


def basis_sem_from_instances(instances: Instances, image_size: tuple[int, int]) -> Tensor:
    """Paint the instances' classes into one map.

    Args:
        instances: with ``gt_classes`` (G,) and ``gt_masks``: PolygonMasks, or BitMasks of
            ``image_size``.
        image_size: height and width in pixels.

    Returns:
        (H, W) long: 0 background, class + 1 elsewhere; later instances cover earlier ones.

    Raises:
        PruneError: when there are instances but no masks to paint.
    """
    classes = instances.gt_classes
    painted = torch.zeros(image_size, dtype=torch.long, device=classes.device)
    if len(instances) == 0:
        return painted
    if not instances.has("gt_masks"):
        raise PruneError(
            "the instances have no 'gt_masks', from which basis_sem is made; "
            "set MODEL.MASK_ON True, or MODEL.BASIS_MODULE.LOSS_ON False"
        )
    for label, mask in zip(classes, _bitmasks(instances.gt_masks, image_size), strict=True):
        painted[mask.to(painted.device)] = label + 1
    return painted


def _bitmasks(masks: PolygonMasks | BitMasks | Tensor, image_size: tuple[int, int]) -> list[Tensor]:
    if isinstance(masks, PolygonMasks):
        return [torch.from_numpy(polygons_to_bitmask(p, *image_size)) for p in masks.polygons]
    tensor = masks if isinstance(masks, Tensor) else masks.tensor
    if tuple(tensor.shape[1:]) != tuple(image_size):
        raise PruneError(f"gt_masks are {tuple(tensor.shape[1:])} pixels; expected the image's {image_size}")
    return list(tensor.bool())
