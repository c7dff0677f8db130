"""The basis module: a small decoder on the FPN (BlendMask, arXiv 2001.00309, section 3.1)."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec, get_norm
from detectron2.utils.registry import Registry
from torch import Tensor, nn

from d2prune.errors import PruneError

BASIS_MODULE_REGISTRY = Registry("BASIS_MODULE")
BASIS_MODULE_REGISTRY.__doc__ = "Basis modules, called as `module(cfg, input_shape)`."


def build_basis_module(cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> nn.Module:
    """Build MODEL.BASIS_MODULE.NAME for the backbone's ``input_shape``."""
    name = cfg.MODEL.BASIS_MODULE.NAME
    if name not in BASIS_MODULE_REGISTRY:
        known = ", ".join(name for name, _ in BASIS_MODULE_REGISTRY)
        raise PruneError(f"MODEL.BASIS_MODULE.NAME is {name!r}; expected one of: {known}")
    return BASIS_MODULE_REGISTRY.get(name)(cfg, input_shape)


def _conv_block(in_channels: int, out_channels: int, norm: str | None) -> nn.Sequential:
    """Build 3x3 convolution, norm and relu. An empty norm name means neither norm nor bias."""
    conv = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=norm is None)
    nn.init.kaiming_uniform_(conv.weight, a=1)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
    layer = get_norm(norm, out_channels)
    layers = [conv, nn.ReLU()] if layer is None else [conv, layer, nn.ReLU()]
    return nn.Sequential(*layers)


def _seg_head(in_channels: int, channels: int, num_classes: int) -> nn.Sequential:
    """Build the head for semantic logits incl. background; it uses BatchNorm whatever the rest uses."""
    return nn.Sequential(
        nn.Conv2d(in_channels, channels, 3, padding=1, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
        nn.Conv2d(channels, channels, 3, padding=1, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
        nn.Conv2d(channels, num_classes + 1, 1),
    )


class ProtoNet(nn.Module):
    """A decoder that predicts B bases, which all instances of an image share.

    ``loss_on`` may be switched off after building; the semantic head then stays unused.
    """

    @configurable
    def __init__(
        self,
        *,
        in_features: list[str],
        in_channels: list[int],
        channels: int,
        num_bases: int,
        num_convs: int,
        norm: str | None = "SyncBN",
        loss_on: bool = False,
        loss_weight: float = 0.3,
        num_classes: int = 80,
        common_stride: int = 8,
        seg_feature: str = "p3",
        seg_in_channels: int = 256,
    ) -> None:
        """Build the decoder.

        Args:
            in_features: names of the pyramid levels that are summed; the first gives the size.
            in_channels: of each in-feature.
            channels: of all hidden layers.
            num_bases: B.
            num_convs: blocks before the upsampling.
            norm: of the blocks, any that Detectron2's get_norm takes.
            loss_on: whether training has the auxiliary semantic loss.
            loss_weight: of that loss.
            num_classes: foreground classes of that loss.
            common_stride: stride in pixels at which that loss is taken.
            seg_feature: the pyramid level of that stride, which the loss reads.
            seg_in_channels: its channels.
        """
        super().__init__()
        self.in_features = list(in_features)
        self.loss_on = loss_on
        self.loss_weight = loss_weight
        self.common_stride = common_stride
        self.seg_feature = seg_feature
        self.refine = nn.ModuleList(_conv_block(c, channels, norm) for c in in_channels)
        self.tower = nn.Sequential(
            *(_conv_block(channels, channels, norm) for _ in range(num_convs)),
            nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False),
            _conv_block(channels, channels, norm),
            nn.Conv2d(channels, num_bases, 1),
        )
        self.seg_head = _seg_head(seg_in_channels, channels, num_classes) if loss_on else None

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        """Read MODEL.BASIS_MODULE for the backbone's ``input_shape``."""
        basis = cfg.MODEL.BASIS_MODULE
        missing = [name for name in basis.IN_FEATURES if name not in input_shape]
        if missing:
            raise PruneError(
                f"MODEL.BASIS_MODULE.IN_FEATURES names {missing}; the backbone gives {list(input_shape)}"
            )
        seg_feature = _feature_of_stride(basis, input_shape)
        return {
            "in_features": basis.IN_FEATURES,
            "in_channels": [input_shape[name].channels for name in basis.IN_FEATURES],
            "channels": basis.CONVS_DIM,
            "num_bases": basis.NUM_BASES,
            "num_convs": basis.NUM_CONVS,
            "norm": basis.NORM,
            "loss_on": basis.LOSS_ON,
            "loss_weight": basis.LOSS_WEIGHT,
            "num_classes": basis.NUM_CLASSES,
            "common_stride": basis.COMMON_STRIDE,
            "seg_feature": seg_feature,
            "seg_in_channels": input_shape[seg_feature].channels,
        }

    def forward(
        self, features: dict[str, Tensor], targets: Tensor | None = None
    ) -> tuple[dict[str, list[Tensor]], dict[str, Tensor]]:
        """Predict the bases.

        Args:
            features: the backbone's, ``(N, C, H_l, W_l)`` by name.
            targets: ``(N, H, W)`` long, 0 background and class + 1; needed in training with
                ``loss_on``, otherwise ignored.

        Returns:
            ``({"bases": [tensor]}, losses)``: the tensor is ``(N, B, 2 H_0, 2 W_0)`` without an
            activation, 0 being the first in-feature; the losses are empty in evaluation.
        """
        summed = self.refine[0](features[self.in_features[0]])
        for name, refine in zip(self.in_features[1:], list(self.refine)[1:], strict=True):
            coarse = refine(features[name])
            summed = summed + F.interpolate(
                coarse, size=summed.shape[-2:], mode="bilinear", align_corners=False
            )
        losses = {}
        if self.training and self.loss_on:
            losses["loss_basis_sem"] = self._semantic_loss(features[self.seg_feature], targets)
        return {"bases": [self.tower(summed)]}, losses

    def _semantic_loss(self, feature: Tensor, targets: Tensor | None) -> Tensor:
        if targets is None:
            raise PruneError(
                "MODEL.BASIS_MODULE.LOSS_ON is True, but the batch has no 'basis_sem'; "
                "give it, or instances with 'gt_masks', or set LOSS_ON False"
            )
        assert self.seg_head is not None, "loss_on was set on a ProtoNet built without it"
        logits = self.seg_head(feature)
        # Nearest-neighbour: the top left pixel of each cell; padding counts as background.
        wanted = targets[:, :: self.common_stride, :: self.common_stride]
        if wanted.max() >= logits.shape[1]:
            raise PruneError(
                f"basis_sem has class {int(wanted.max()) - 1}; expected 0 to "
                f"{logits.shape[1] - 2}, or a larger MODEL.BASIS_MODULE.NUM_CLASSES"
            )
        return self.loss_weight * F.cross_entropy(logits, wanted)


def _feature_of_stride(basis: CfgNode, input_shape: dict[str, ShapeSpec]) -> str:
    for name, shape in input_shape.items():
        if shape.stride == basis.COMMON_STRIDE:
            return name
    if not basis.LOSS_ON:
        return basis.IN_FEATURES[0]
    strides = sorted({shape.stride for shape in input_shape.values() if shape.stride})
    raise PruneError(f"MODEL.BASIS_MODULE.COMMON_STRIDE is {basis.COMMON_STRIDE}; expected one of: {strides}")
