"""LSKNet, a backbone for aerial images, written from the paper (arXiv 2303.09030).

A block's attention chooses, at every place, between a small and a large receptive field: two depthwise
convolutions in a row are two kernels, and a map for each says how much of it counts. Parameters have the
published checkpoints' names.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.layers import FrozenBatchNorm2d, ShapeSpec, get_norm
from detectron2.modeling.backbone import FPN, Backbone
from detectron2.modeling.backbone.fpn import LastLevelMaxPool
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from d2prune.errors import PruneError

STAGES = ("stage1", "stage2", "stage3", "stage4")
STRIDES = (4, 8, 16, 32)


class SelectiveGate(nn.Module):
    """A gate that weighs a near and a far view of each place, and multiplies the input by their mixture.

    Args:
        dim: channels of input and output.
        branch: channels that each view is reduced to.
    """

    def __init__(self, dim: int, branch: int) -> None:
        super().__init__()
        self.conv0 = nn.Conv2d(dim, dim, 5, padding=2, groups=dim)
        self.conv_spatial = nn.Conv2d(dim, dim, 7, padding=9, groups=dim, dilation=3)
        self.conv1 = nn.Conv2d(dim, branch, 1)
        self.conv2 = nn.Conv2d(dim, branch, 1)
        self.conv_squeeze = nn.Conv2d(2, 2, 7, padding=3)
        self.conv = nn.Conv2d(branch, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, dim, H, W) to the same shape; the paper's LSK module."""
        small = self.conv0(x)
        near, far = self.conv1(small), self.conv2(self.conv_spatial(small))
        views = torch.cat([near, far], dim=1)
        summary = torch.cat([views.mean(1, keepdim=True), views.amax(1, keepdim=True)], dim=1)
        weights = self.conv_squeeze(summary).sigmoid()
        return x * self.conv(near * weights[:, :1] + far * weights[:, 1:])


class Attention(nn.Module):
    """The gate between two projections, with a shortcut of its own."""

    def __init__(self, dim: int, branch: int) -> None:
        super().__init__()
        self.proj_1 = nn.Conv2d(dim, dim, 1)
        self.spatial_gating_unit = SelectiveGate(dim, branch)
        self.proj_2 = nn.Conv2d(dim, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, dim, H, W) to the same shape."""
        return x + self.proj_2(self.spatial_gating_unit(F.gelu(self.proj_1(x))))


class DepthwiseConv(nn.Module):
    """A module around one convolution, for the parameter names of the published checkpoints."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, dim, H, W) to the same shape."""
        return self.dwconv(x)


class MLP(nn.Module):
    """Two pointwise convolutions with a depthwise one between."""

    def __init__(self, dim: int, hidden: int, drop: float) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(dim, hidden, 1)
        self.dwconv = DepthwiseConv(hidden)
        self.fc2 = nn.Conv2d(hidden, dim, 1)
        self.drop = nn.Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, dim, H, W) to the same shape."""
        return self.drop(self.fc2(self.drop(F.gelu(self.dwconv(self.fc1(x))))))


class Block(nn.Module):
    """Attention and MLP, each on a normed input, scaled by channel, and added."""

    def __init__(self, dim: int, hidden: int, branch: int, drop: float, drop_path: float, norm: str) -> None:
        super().__init__()
        self.norm1, self.norm2 = get_norm(norm, dim), get_norm(norm, dim)
        self.attn = Attention(dim, branch)
        self.mlp = MLP(dim, hidden, drop)
        self.drop_path = StochasticDepth(drop_path, "row")
        self.layer_scale_1 = nn.Parameter(torch.full((dim,), 1e-2))
        self.layer_scale_2 = nn.Parameter(torch.full((dim,), 1e-2))

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, dim, H, W) to the same shape."""
        x = x + self.drop_path(self.layer_scale_1[:, None, None] * self.attn(self.norm1(x)))
        return x + self.drop_path(self.layer_scale_2[:, None, None] * self.mlp(self.norm2(x)))


class PatchEmbed(nn.Module):
    """A strided convolution and a norm."""

    def __init__(self, inputs: int, dim: int, kernel: int, stride: int, norm: str) -> None:
        super().__init__()
        self.proj = nn.Conv2d(inputs, dim, kernel, stride, padding=kernel // 2)
        self.norm = get_norm(norm, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, inputs, H, W) to (N, dim, ceil(H / stride), ceil(W / stride))."""
        return self.norm(self.proj(x))


class LSKNet(Backbone):
    """Four stages: ``patch_embed{i}``, ``block{i}``, and ``norm{i}``, a LayerNorm over channels.

    Args:
        dims: channels of each stage.
        depths: blocks of each stage.
        mlp_ratios: width of the MLPs, in multiples of ``dims``.
        branch_divisors: ``dims`` divided by this, rounded down, is the width of a gate's branches.
        drop: dropout in the MLPs, as a probability.
        drop_path: probability that the last block is left out of a training step; linear from 0.
        norm: name of a norm that Detectron2 knows.
        out_features: which stages are returned.
        in_channels: channels of the images.
    """

    def __init__(
        self,
        dims: Sequence[int] = (64, 128, 320, 512),
        depths: Sequence[int] = (2, 2, 4, 2),
        mlp_ratios: Sequence[float] = (8, 8, 4, 4),
        branch_divisors: Sequence[int] = (2, 2, 2, 2),
        drop: float = 0.1,
        drop_path: float = 0.1,
        norm: str = "SyncBN",
        out_features: Sequence[str] = STAGES,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        last = max(1, sum(depths) - 1)
        rates = (drop_path * number / last for number in range(sum(depths)))
        for i, (dim, depth) in enumerate(zip(dims, depths, strict=True), 1):
            kernel, stride = (7, 4) if i == 1 else (3, 2)
            hidden, branch = int(dim * mlp_ratios[i - 1]), dim // branch_divisors[i - 1]
            blocks = [Block(dim, hidden, branch, drop, next(rates), norm) for _ in range(depth)]
            self.add_module(f"patch_embed{i}", PatchEmbed(in_channels, dim, kernel, stride, norm))
            self.add_module(f"block{i}", nn.ModuleList(blocks))
            self.add_module(f"norm{i}", nn.LayerNorm(dim, eps=1e-6))
            in_channels = dim
        self._out_features = list(out_features)
        self._out_feature_channels = dict(zip(STAGES, dims, strict=True))
        self._out_feature_strides = dict(zip(STAGES, STRIDES, strict=True))
        self.apply(_initialize)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Map (N, 3, H, W) to the stages of ``out_features``, (N, C, H / stride, W / stride) each."""
        found = {}
        for i, name in enumerate(STAGES, 1):
            x = self.get_submodule(f"patch_embed{i}")(x)
            for block in self.get_submodule(f"block{i}"):
                x = block(x)
            x = self.get_submodule(f"norm{i}")(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2).contiguous()
            found[name] = x
        return {name: found[name] for name in self._out_features}

    def freeze(self, stages: int) -> LSKNet:
        """Freeze the parameters of the first ``stages``, and their norms' statistics."""
        for i in range(1, stages + 1):
            for part in ("patch_embed", "block", "norm"):
                module = self.get_submodule(f"{part}{i}").requires_grad_(False)
                setattr(self, f"{part}{i}", FrozenBatchNorm2d.convert_frozen_batchnorm(module))
        return self


def _initialize(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        fan_out = module.weight[:, 0].numel() // module.groups
        nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))
        nn.init.zeros_(module.bias)


def build_lsknet_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> LSKNet:
    """Build the LSKNet of MODEL.LSKNET; MODEL.BACKBONE.FREEZE_AT counts stages.

    Raises:
        PruneError: for a list that has not one value a stage, or an unknown stage.
    """
    keys = cfg.MODEL.LSKNET
    _check(keys, cfg.MODEL.BACKBONE.FREEZE_AT)
    model = LSKNet(
        keys.EMBED_DIMS, keys.DEPTHS, keys.MLP_RATIOS, keys.BRANCH_DIVISORS, keys.DROP_RATE,
        keys.DROP_PATH_RATE, keys.NORM, keys.OUT_FEATURES, input_shape.channels,
    )  # fmt: skip
    return model.freeze(cfg.MODEL.BACKBONE.FREEZE_AT)


def build_lsknet_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """Build Detectron2's FPN on LSKNet: P2 to P5, and P6 by max-pooling."""
    keys = cfg.MODEL.FPN
    bottom_up = build_lsknet_backbone(cfg, input_shape)
    top = LastLevelMaxPool()
    return FPN(bottom_up, keys.IN_FEATURES, keys.OUT_CHANNELS, keys.NORM, top, keys.FUSE_TYPE)


def _check(keys: CfgNode, freeze_at: int) -> None:
    for name in ("EMBED_DIMS", "DEPTHS", "MLP_RATIOS", "BRANCH_DIVISORS"):
        if len(keys[name]) != len(STAGES) or min(keys[name]) <= 0:
            raise PruneError(f"MODEL.LSKNET.{name} is {keys[name]}; expected four positive numbers")
    unknown = [name for name in keys.OUT_FEATURES if name not in STAGES]
    if unknown or not keys.OUT_FEATURES:
        raise PruneError(
            f"MODEL.LSKNET.OUT_FEATURES is {keys.OUT_FEATURES}; expected some of: {', '.join(STAGES)}"
        )
    if not 0 <= freeze_at <= len(STAGES):
        raise PruneError(f"MODEL.BACKBONE.FREEZE_AT is {freeze_at}; expected 0 to 4 stages of LSKNet")
