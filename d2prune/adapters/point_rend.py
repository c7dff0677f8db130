"""PointRend's heads: a coarse prediction, refined point by point from fine features.

PointRend chooses the points to refine by uncertainty; here they are a grid, because every point reads the
same channels. Detectron2's project is not imported, as it needs OpenCV.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from d2prune.adapters.rois import sample

TRACED_POINTS = 16


def mask_outputs(
    head: nn.Module, features: Mapping[str, Tensor], boxes: Tensor, counting: bool
) -> dict[str, Tensor]:
    """Return the outputs of a PointRendMaskHead or ImplicitPointRendMaskHead on boxes (R, 5)."""
    scales = head._feature_scales

    def pooled(names: list[str], height: int, width: int) -> Tensor:
        read = [sample(features[name], boxes, scales[name], (height, width)) for name in names]
        return torch.cat(read, dim=1) if len(read) > 1 else read[0]

    coarse_head = head.parameter_head if hasattr(head, "parameter_head") else head.coarse_head
    coarse = coarse_head(pooled(head.roi_pooler_in_features, head.roi_pooler_size, head.roi_pooler_size))
    if hasattr(head, "parameter_head"):
        # Its outputs are the weights of the point head, laid out for all channels of these features.
        return {"parameters": coarse, **{f"fine/{f}": features[f] for f in head.mask_point_in_features}}
    if not head.mask_point_on:
        return {"mask": coarse}
    steps, side = head.mask_point_subdivision_steps, head.mask_point_subdivision_init_resolution
    count = side**2 + steps * head.mask_point_subdivision_num_points if counting else TRACED_POINTS
    fine = pooled(head.mask_point_in_features, count, 1).squeeze(-1)
    return {"mask": coarse, "points": head.point_head(fine, _points(coarse, count))}


def semantic_outputs(head: nn.Module, features: Mapping[str, Tensor], counting: bool) -> dict[str, Tensor]:
    """Return the outputs of a PointRendSemSegHead."""
    coarse = head.coarse_sem_seg_head.layers(features)
    count = head.subdivision_steps * head.subdivision_num_points if counting else TRACED_POINTS
    read = [_points(features[name], count) for name in head.in_features]
    fine = torch.cat(read, dim=1) if len(read) > 1 else read[0]
    return {"sem_seg": coarse, "points": head.point_head(fine, _points(coarse, count))}


def _points(maps: Tensor, count: int) -> Tensor:
    """Return (N, C, count) values of (N, C, H, W), read at as many points."""
    return F.interpolate(maps, size=(count, 1), mode="bilinear", align_corners=False).squeeze(-1)
