"""AdelaiDet's SOLOv2."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from d2prune.adapters.base import Adapter, register_adapter
from d2prune.adapters.images import features_of


@register_adapter("adet.modeling.solov2.solov2.SOLOv2")
class SOLOv2Adapter(Adapter):
    """The adapter of SOLOv2: classes and mask kernels by level, and the mask features to convolve with them.

    Kernels and mask features have equally many channels (Wang et al., arXiv 2003.10152): both are outputs.
    """

    def dense(self, model: nn.Module, images: Tensor, training_branches: bool) -> Mapping[str, Tensor]:
        """See :meth:`Adapter.dense`."""
        features = features_of(model, images)
        levels = model.split_feats([features[name] for name in model.instance_in_features])
        pairs = [_predictions(model.ins_head, *pair) for pair in zip(levels, model.num_grids, strict=True)]
        outputs = {f"level{i}/{name}": t for i, pair in enumerate(pairs, 1) for name, t in pair.items()}
        return outputs | {"masks": model.mask_head([features[name] for name in model.mask_in_features])}


def _predictions(head: nn.Module, level: Tensor, grid: int) -> dict[str, Tensor]:
    """Return classes and kernels at ``grid`` x ``grid`` places of one level.

    The head's own ``forward`` adds coordinates and slices them off for the classes; here these do not get
    any, because channels that are sliced by position would have to stay.
    """
    plain, placed = (
        F.interpolate(x, size=(grid, grid), mode="bilinear") for x in (level, _with_coordinates(level))
    )
    classes, kernels = head.cate_tower(plain), head.kernel_tower(placed)
    return {"classes": head.cate_pred(classes), "kernels": head.kernel_pred(kernels)}


def _with_coordinates(level: Tensor) -> Tensor:
    """Return (N, C + 2, H, W): x and y, -1..1, after the C channels of ``level``."""
    number, _, height, width = level.shape
    y, x = (torch.linspace(-1, 1, n, device=level.device, dtype=level.dtype) for n in (height, width))
    grid = torch.stack([x.expand(height, -1), y[:, None].expand(-1, width)])
    return torch.cat([level, grid.expand(number, -1, -1, -1)], dim=1)
