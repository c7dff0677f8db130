"""Updates, after a cut, of the widths that backbones report as integers."""

from __future__ import annotations

import logging

import torch
from detectron2.layers import CNNBlockBase
from detectron2.modeling.backbone import FPN, Backbone, ResNet
from detectron2.modeling.backbone.regnet import AnyNet
from torch import nn

from d2prune.adapters.images import PROOF_SIZE
from d2prune.core.copies import on_meta
from d2prune.errors import MISFITS, PruneError, told

logger = logging.getLogger(__name__)


def refresh_shapes(model: nn.Module) -> None:
    """Update ``output_shape()`` of every backbone in ``model``, and other integers that repeat a width."""
    for module in model.modules():
        if isinstance(module, CNNBlockBase):
            _refresh_block(module)
        elif type(module).__name__ == "SingleBiFPN":  # AdelaiDet's
            _refresh_bifpn(module)
    for module in model.modules():
        if isinstance(module, FPN):
            _refresh_fpn(module)
        elif isinstance(module, ResNet):
            _refresh_stages(module, dict(zip(module.stage_names, module.stages, strict=True)))
        elif isinstance(module, AnyNet):
            _refresh_stages(module, {name: stage for stage, name in module.stages_and_names})
        elif isinstance(module, Backbone) and hasattr(module, "_out_feature_channels"):
            _ask(module)


def _refresh_block(block: nn.Module) -> None:
    # Blocks register a shortcut first, and the convolution that makes their output last.
    convs = [m for m in block.modules() if isinstance(m, nn.Conv2d)]
    if convs:
        block.in_channels, block.out_channels = convs[0].in_channels, convs[-1].out_channels


def _refresh_bifpn(level: nn.Module) -> None:
    """Update a BiFPN's width; raise PruneError if a lateral layer reads as many, as it is then skipped."""
    outputs = [m for n, m in level.named_children() if n.startswith("outputs_")]
    level.out_channels = outputs[0].out_channels
    for name, lateral in level.named_children():
        if name.startswith("lateral_") and lateral.in_channels == level.out_channels:
            raise PruneError(
                f"a BiFPN of width {level.out_channels} would pass by its layer '{name}', which reads as "
                "many channels: choose another AMOUNT or ROUND_TO, or keep one of the two whole with "
                "MODEL.PRUNING.PROTECT"
            )


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


def _ask(backbone: nn.Module) -> None:
    """Update any other backbone's widths by a run on the meta device, where nothing is computed."""
    ghost = on_meta(backbone).eval()
    # Modules need not be registered in the order of their use; what reads images reads few channels.
    asked = sorted({m.in_channels for m in ghost.modules() if isinstance(m, nn.Conv2d)} or {3})
    failures = []
    for inputs in asked:
        try:
            with torch.no_grad():
                features = ghost(torch.empty(1, inputs, *PROOF_SIZE, device="meta"))
            backbone._out_feature_channels.update({name: f.shape[1] for name, f in features.items()})
            return
        except MISFITS as error:
            failures.append(told(error))
    logger.warning("output_shape() of %s may tell old widths: %s", type(backbone).__name__, failures[0])
