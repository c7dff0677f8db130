"""The FCOS head: towers shared by all levels, three predictors, and an optional top module."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.layers import ModulatedDeformConv, NaiveSyncBatchNorm, ShapeSpec
from torch import Tensor, nn

from d2prune.errors import PruneError

_GROUPS = 32
HeadOutput = tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor], list[Tensor]]


class Scale(nn.Module):
    """A learnable factor of shape (1,)."""

    def __init__(self, init: float = 1.0) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((1,), init))

    def forward(self, x: Tensor) -> Tensor:
        """Multiply ``x`` of any shape by the factor."""
        return x * self.scale


class PerLevelNorm(nn.ModuleList):
    """The norms, one per pyramid level, behind a convolution that all levels share."""

    def forward(self, x: Tensor, level: int) -> Tensor:
        """Normalise ``x`` ``(N, C, H, W)`` with the statistics of its level."""
        return self[level](x)


class ModulatedConv(nn.Module):
    """3x3 modulated deformable convolution (arXiv 1811.11168) that predicts its own offsets."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.offset = nn.Conv2d(channels, 27, kernel_size=3, padding=1)  # 9 x, 9 y, 9 masks
        try:
            self.conv = ModulatedDeformConv(channels, channels, 3, padding=1, bias=False)
        except ImportError as error:
            raise PruneError(
                "MODEL.FCOS.USE_DEFORMABLE is True; expected False, because this Detectron2 was "
                f"installed without its compiled operators ({error})"
            ) from error

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, C, H, W)`` to the same shape."""
        offset_x, offset_y, mask = torch.chunk(self.offset(x), 3, dim=1)
        return self.conv(x, torch.cat((offset_x, offset_y), dim=1), mask.sigmoid())


class Tower(nn.Sequential):
    """Convolutions, each followed by its norm and a relu; empty means identity."""

    def forward(self, x: Tensor, level: int) -> Tensor:  # type: ignore[override]
        """Map ``(N, C, H, W)`` of pyramid level ``level`` to the same shape."""
        for module in self:
            x = module(x, level) if isinstance(module, PerLevelNorm) else module(x)
        return x


def _group_norm(channels: int, _: int) -> nn.Module:
    if channels % _GROUPS:
        raise PruneError(
            f"MODEL.FPN.OUT_CHANNELS is {channels}; expected a multiple of {_GROUPS} with "
            "MODEL.FCOS.NORM 'GN', or another MODEL.FCOS.NORM"
        )
    return nn.GroupNorm(_GROUPS, channels)


def _per_level(norm: Callable[[int], nn.Module]) -> Callable[[int, int], nn.Module]:
    return lambda channels, levels: PerLevelNorm(norm(channels) for _ in range(levels))


# (channels, levels) -> module. NaiveGN is the same arithmetic as GN, spelled out in AdelaiDet.
_NORMS: dict[str, Callable[[int, int], nn.Module] | None] = {
    "GN": _group_norm,
    "NaiveGN": _group_norm,
    "BN": _per_level(nn.BatchNorm2d),
    "SyncBN": _per_level(NaiveSyncBatchNorm),
    "none": None,
    "": None,
}


def build_tower(num_convs: int, channels: int, norm: str, num_levels: int, deformable: bool = False) -> Tower:
    """Build a tower of 3x3 convolutions; with ``deformable`` the last one is a modulated one.

    Raises:
        PruneError: for an unknown ``norm``.
    """
    if norm not in _NORMS:
        names = ", ".join(name for name in _NORMS if name)
        raise PruneError(f"MODEL.FCOS.NORM is {norm!r}; expected one of: {names}")
    make_norm = _NORMS[norm]
    layers: list[nn.Module] = []
    for index in range(num_convs):
        if deformable and index == num_convs - 1:
            layers.append(ModulatedConv(channels))
        else:
            layers.append(_conv3x3(channels, channels))
        if make_norm is not None:
            layers.append(make_norm(channels, num_levels))
        layers.append(nn.ReLU())
    return Tower(*layers)


def _conv3x3(in_channels: int, out_channels: int) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1)


class FCOSHead(nn.Module):
    """The head that predicts class logits, box distances and centre-ness at every location and level."""

    @configurable
    def __init__(
        self,
        *,
        channels: int,
        num_classes: int,
        num_levels: int,
        num_convs: tuple[int, int, int],
        norm: str = "GN",
        use_scale: bool = True,
        deformable: bool = False,
        prior_prob: float = 0.01,
    ) -> None:
        """Build the towers and predictors.

        Args:
            channels: of every input feature.
            num_classes: foreground classes.
            num_levels: pyramid levels the head will be called with.
            num_convs: in the shared, the class and the box tower.
            norm: GN, NaiveGN, BN, SyncBN (both one per level) or none.
            use_scale: whether each level's distances get a learnable factor.
            deformable: whether the class and box towers end in a deformable convolution.
            prior_prob: foreground probability that the class bias starts from.

        Raises:
            PruneError: for an unknown norm, or one that does not fit the channels.
        """
        super().__init__()
        share, cls, box = num_convs
        self.cls_tower = build_tower(cls, channels, norm, num_levels, deformable)
        self.bbox_tower = build_tower(box, channels, norm, num_levels, deformable)
        self.share_tower = build_tower(share, channels, norm, num_levels)
        self.cls_logits = _conv3x3(channels, num_classes)
        self.bbox_pred = _conv3x3(channels, 4)
        self.ctrness = _conv3x3(channels, 1)
        self.scales = nn.ModuleList(Scale() for _ in range(num_levels)) if use_scale else None
        self._initialise(prior_prob)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: list[ShapeSpec]) -> dict[str, Any]:
        """Read MODEL.FCOS; ``input_shape`` holds one ShapeSpec per level."""
        fcos = cfg.MODEL.FCOS
        channels = {shape.channels for shape in input_shape}
        if len(channels) != 1:
            raise PruneError(f"MODEL.FCOS.IN_FEATURES have {sorted(channels)} channels; expected one number")
        return {
            "channels": channels.pop(),
            "num_classes": fcos.NUM_CLASSES,
            "num_levels": len(input_shape),
            "num_convs": (fcos.NUM_SHARE_CONVS, fcos.NUM_CLS_CONVS, fcos.NUM_BOX_CONVS),
            "norm": fcos.NORM,
            "use_scale": fcos.USE_SCALE,
            "deformable": fcos.USE_DEFORMABLE,
            "prior_prob": fcos.PRIOR_PROB,
        }

    def _initialise(self, prior_prob: float) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.01)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        # Focal loss (arXiv 1708.02002), section 3.3: start out predicting background.
        assert self.cls_logits.bias is not None
        nn.init.constant_(self.cls_logits.bias, -math.log((1 - prior_prob) / prior_prob))

    def forward(
        self,
        features: list[Tensor],
        top_module: nn.Module | None = None,
        yield_bbox_towers: bool = False,
    ) -> HeadOutput:
        """Run the head over all levels.

        Args:
            features: one ``(N, C, H_l, W_l)`` per level, in order.
            top_module: applied to the box tower's output.
            yield_bbox_towers: whether the last list is filled.

        Returns:
            Five lists over levels: class logits ``(N, K, H_l, W_l)``; distances left, top, right,
            bottom ``(N, 4, H_l, W_l)``, >= 0, in strides; centre-ness logits ``(N, 1, H_l, W_l)``;
            top features (empty without ``top_module``); box tower outputs (or empty).
        """
        logits, distances, ctrness, top_feats, towers = [], [], [], [], []
        for level, feature in enumerate(features):
            shared = self.share_tower(feature, level)
            box = self.bbox_tower(shared, level)
            logits.append(self.cls_logits(self.cls_tower(shared, level)))
            ctrness.append(self.ctrness(box))
            distance = self.bbox_pred(box)
            if self.scales is not None:
                distance = self.scales[level](distance)
            distances.append(F.relu(distance))
            if top_module is not None:
                top_feats.append(top_module(box))
            if yield_bbox_towers:
                towers.append(box)
        return logits, distances, ctrness, top_feats, towers
