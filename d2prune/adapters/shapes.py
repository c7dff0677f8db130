"""Detectron2's backbones tell their widths as integers; after a cut these must be told again."""

from __future__ import annotations

from detectron2.modeling.backbone import FPN, ResNet
from torch import nn


def refresh_shapes(backbone: nn.Module) -> None:
    """Brings ``output_shape()`` of an FPN, or of a ResNet, up to date; others are left as they are."""
    if isinstance(backbone, FPN):
        for name in backbone._out_feature_channels:
            level = name.removeprefix("p")
            layer = getattr(backbone, f"fpn_output{level}", None) or getattr(backbone.top_block, name, None)
            if layer is not None:
                backbone._out_feature_channels[name] = layer.out_channels
        refresh_shapes(backbone.bottom_up)
    elif isinstance(backbone, ResNet):
        backbone.stem.out_channels = backbone.stem.conv1.out_channels
        backbone._out_feature_channels["stem"] = backbone.stem.out_channels
        for name, stage in zip(backbone.stage_names, backbone.stages, strict=True):
            for block in stage:
                convs = [block.conv1, block.conv2, getattr(block, "conv3", block.conv2)]
                block.in_channels, block.out_channels = convs[0].in_channels, convs[-1].out_channels
            backbone._out_feature_channels[name] = stage[-1].out_channels
