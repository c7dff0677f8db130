"""Detectron2's backbones tell their widths as integers; after a cut these must be told again."""

from __future__ import annotations

from detectron2.layers import CNNBlockBase
from detectron2.modeling import MViT, SimpleFeaturePyramid, ViT
from detectron2.modeling.backbone import FPN, ResNet
from detectron2.modeling.backbone.regnet import AnyNet
from torch import nn


def refresh_shapes(model: nn.Module) -> None:
    """Brings ``output_shape()`` of every backbone of Detectron2 in ``model`` up to date, and their blocks."""
    for module in model.modules():
        if isinstance(module, CNNBlockBase):
            _refresh_block(module)
    for module in model.modules():
        if isinstance(module, FPN):
            _refresh_fpn(module)
        elif isinstance(module, ResNet):
            _refresh_stages(module, dict(zip(module.stage_names, module.stages, strict=True)))
        elif isinstance(module, AnyNet):
            _refresh_stages(module, {name: stage for stage, name in module.stages_and_names})
        elif isinstance(module, (MViT, SimpleFeaturePyramid, ViT)):
            _refresh_transformer(module)


def _refresh_block(block: nn.Module) -> None:
    # Blocks register a shortcut first and what makes their output last.
    convs = [m for m in block.modules() if isinstance(m, nn.Conv2d)]
    if convs:
        block.in_channels, block.out_channels = convs[0].in_channels, convs[-1].out_channels


def _refresh_stages(backbone: nn.Module, stages: dict[str, nn.Module]) -> None:
    backbone._out_feature_channels["stem"] = backbone.stem.out_channels
    for name, stage in stages.items():
        backbone._out_feature_channels[name] = list(stage.children())[-1].out_channels


def _refresh_fpn(fpn: nn.Module) -> None:
    width = 0
    for name in fpn._out_features:
        own = getattr(fpn, f"fpn_output{name.removeprefix('p')}", None)
        layer = own or getattr(fpn.top_block, name, None)
        if layer is not None:  # else pooled from the level before
            width = layer.out_channels
        fpn._out_feature_channels[name] = width


def _refresh_transformer(backbone: nn.Module) -> None:
    channels = backbone._out_feature_channels
    if isinstance(backbone, SimpleFeaturePyramid):
        for name in channels:  # the top block pools: all levels are as wide as the convolutions
            channels[name] = backbone.stages[-1][-1].out_channels
    elif isinstance(backbone, ViT):
        channels.update(dict.fromkeys(channels, backbone.patch_embed.proj.out_channels))
    else:
        for name in channels:
            channels[name] = getattr(backbone, f"{name}_norm").weight.shape[0]
