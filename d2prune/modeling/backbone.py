"""FPN backbones: ResNet-FPN with FCOS's extra levels, and ResNet-18/34 of any width.

Feature Pyramid Networks (arXiv 1612.03144); P6 and P7 as in FCOS (arXiv 1904.01355), from P5.
"""

from __future__ import annotations

import fvcore.nn.weight_init as weight_init
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling.backbone import FPN, Backbone, BasicStem, ResNet, build_resnet_backbone
from detectron2.modeling.backbone.fpn import LastLevelMaxPool
from detectron2.modeling.backbone.resnet import BasicBlock
from torch import Tensor, nn

from d2prune.errors import PruneError

_BASIC_BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}


class LastLevelP6(nn.Module):
    """The level P6: a strided 3x3 convolution of P5."""

    num_levels = 1
    in_feature = "p5"

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.p6 = nn.Conv2d(channels, channels, kernel_size=3, stride=2, padding=1)
        weight_init.c2_xavier_fill(self.p6)

    def forward(self, p5: Tensor) -> list[Tensor]:
        """Map P5 ``(N, C, H, W)`` to ``[P6]``, ``(N, C, ceil(H/2), ceil(W/2))``."""
        return [self.p6(p5)]


class LastLevelP6P7(LastLevelP6):
    """The levels P6, as above, and P7: a strided 3x3 convolution of relu(P6). P6 is returned without relu."""

    num_levels = 2

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.p7 = nn.Conv2d(channels, channels, kernel_size=3, stride=2, padding=1)
        weight_init.c2_xavier_fill(self.p7)

    def forward(self, p5: Tensor) -> list[Tensor]:
        """Map P5 ``(N, C, H, W)`` to ``[P6, P7]``, each half the size of the one before."""
        p6 = self.p6(p5)
        return [p6, self.p7(F.relu(p6))]


def build_fcos_resnet_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """Build ResNet-FPN with MODEL.FCOS.TOP_LEVELS extra levels.

    Raises:
        PruneError: for a variant of the bottom-up network that only AdelaiDet has.
    """
    _refuse_foreign_variants(cfg)
    return _fpn(cfg, build_resnet_backbone(cfg, input_shape), _top_block(cfg))


def build_fcos_narrow_resnet_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """Build an FPN with MODEL.FCOS.TOP_LEVELS extra levels on a ResNet-18 or -34 of any width."""
    _refuse_foreign_variants(cfg)
    return _fpn(cfg, build_narrow_resnet_backbone(cfg, input_shape), _top_block(cfg))


def build_narrow_resnet_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """Build Detectron2's ResNet-FPN (P6 by max-pooling) on a ResNet-18 or -34 of any width."""
    return _fpn(cfg, build_narrow_resnet_backbone(cfg, input_shape), LastLevelMaxPool())


def build_narrow_resnet_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> ResNet:
    """Build Detectron2's ResNet-18 or -34 without its assertion that RES2_OUT_CHANNELS is 64.

    Raises:
        PruneError: for another depth, or an option that BasicBlock does not have.
    """
    resnets = cfg.MODEL.RESNETS
    _refuse_what_basic_blocks_lack(resnets)
    stem = BasicStem(input_shape.channels, resnets.STEM_OUT_CHANNELS, resnets.NORM)
    stages = []
    in_channels, out_channels = resnets.STEM_OUT_CHANNELS, resnets.RES2_OUT_CHANNELS
    for index, num_blocks in enumerate(_BASIC_BLOCKS[resnets.DEPTH]):
        stages.append(
            ResNet.make_stage(
                BasicBlock,
                num_blocks,
                stride_per_block=[1 if index == 0 else 2] + [1] * (num_blocks - 1),
                in_channels=in_channels,
                out_channels=out_channels,
                norm=resnets.NORM,
            )
        )
        in_channels, out_channels = out_channels, 2 * out_channels
    freeze_at = cfg.MODEL.BACKBONE.FREEZE_AT
    return ResNet(stem, stages, out_features=resnets.OUT_FEATURES, freeze_at=freeze_at)


def _fpn(cfg: CfgNode, bottom_up: Backbone, top_block: nn.Module | None) -> FPN:
    fpn = cfg.MODEL.FPN
    return FPN(
        bottom_up=bottom_up,
        in_features=fpn.IN_FEATURES,
        out_channels=fpn.OUT_CHANNELS,
        norm=fpn.NORM,
        top_block=top_block,
        fuse_type=fpn.FUSE_TYPE,
    )


def _top_block(cfg: CfgNode) -> nn.Module | None:
    levels = cfg.MODEL.FCOS.TOP_LEVELS
    if levels not in (0, 1, 2):
        raise PruneError(f"MODEL.FCOS.TOP_LEVELS is {levels!r}; expected one of: 0, 1, 2")
    if levels and cfg.MODEL.FPN.IN_FEATURES[-1] != "res5":
        raise PruneError(
            f"MODEL.FCOS.TOP_LEVELS is {levels}, but P6 comes from P5 and "
            f"MODEL.FPN.IN_FEATURES is {list(cfg.MODEL.FPN.IN_FEATURES)}; end it with 'res5'"
        )
    blocks = (None, LastLevelP6, LastLevelP6P7)
    block = blocks[levels]
    return block(cfg.MODEL.FPN.OUT_CHANNELS) if block else None


def _refuse_foreign_variants(cfg: CfgNode) -> None:
    model = cfg.MODEL
    asked = {
        "MODEL.BACKBONE.ANTI_ALIAS": (model.BACKBONE.ANTI_ALIAS, False),
        "MODEL.MOBILENET": (model.MOBILENET, False),
        "MODEL.RESNETS.DEFORM_INTERVAL": (model.RESNETS.DEFORM_INTERVAL, 1),
    }
    for key, (value, allowed) in asked.items():
        if value > allowed:
            raise PruneError(
                f"{key} is {value!r}; expected {allowed!r}: it is not part of d2prune's own "
                "backbone; install AdelaiDet"
            )


def _refuse_what_basic_blocks_lack(resnets: CfgNode) -> None:
    wanted = {
        "DEPTH": (
            resnets.DEPTH in _BASIC_BLOCKS,
            "18 or 34 (deeper ones are narrow by themselves)",
        ),
        "NUM_GROUPS": (resnets.NUM_GROUPS == 1, "1"),
        "RES5_DILATION": (resnets.RES5_DILATION == 1, "1"),
        "DEFORM_ON_PER_STAGE": (not any(resnets.DEFORM_ON_PER_STAGE), "False for every stage"),
    }
    for key, (fine, allowed) in wanted.items():
        if not fine:
            raise PruneError(f"MODEL.RESNETS.{key} is {resnets[key]!r}; a narrow ResNet expects {allowed}")
