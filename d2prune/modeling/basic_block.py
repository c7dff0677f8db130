"""ResNet-18/34's block with its norms beside its convolutions, under Detectron2's parameter names."""

from __future__ import annotations

from typing import Any, TypeVar

import torch.nn.functional as F
from detectron2.layers import CNNBlockBase, Conv2d, get_norm
from detectron2.modeling.backbone import resnet
from fvcore.nn import weight_init
from torch import Tensor, nn

from .norm_names import rename_separate_norms

Model = TypeVar("Model", bound=nn.Module)


class BasicBlock(CNNBlockBase):
    """Detectron2's ``BasicBlock`` with ``norm1``, ``norm2`` and ``norm3`` as modules of their own.

    Convolution and norm are two calls, so a tracer sees both. ``norm1`` *is* ``conv1.norm``: it is
    registered there, so parameters, checkpoints and pruning specs keep Detectron2's names, while
    ``conv1`` is a plain convolution that does not run it. State dicts that name the norms
    ``norm1.*`` load too.
    """

    def __init__(self, in_channels: int, out_channels: int, *, stride: int = 1, norm: Any = "BN") -> None:
        """Build the block; see ``detectron2.modeling.backbone.resnet.BasicBlock`` for the arguments."""
        super().__init__(in_channels, out_channels, stride)

        def conv(inputs: int, kernel: int, stride: int) -> nn.Conv2d:
            layer = nn.Conv2d(inputs, out_channels, kernel, stride, kernel // 2, bias=False)
            weight_init.c2_msra_fill(layer)
            layer.norm = get_norm(norm, out_channels)
            return layer

        self.shortcut = conv(in_channels, 1, stride) if in_channels != out_channels else None
        self.conv1 = conv(in_channels, 3, stride)
        self.conv2 = conv(out_channels, 3, 1)
        self.register_load_state_dict_pre_hook(_read_either_naming)

    @property
    def norm1(self) -> nn.Module | None:
        """The norm of ``conv1``; None where the block was made without norms."""
        return self.conv1.norm

    @property
    def norm2(self) -> nn.Module | None:
        """The norm of ``conv2``; None as above."""
        return self.conv2.norm

    @property
    def norm3(self) -> nn.Module | None:
        """The norm of ``shortcut``; None without one."""
        return getattr(self.shortcut, "norm", None)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C_in, H, W) to (N, C_out, H / stride, W / stride)."""
        out = F.relu_(_normed(self.conv1, x))
        out = _normed(self.conv2, out)
        shortcut = x if self.shortcut is None else _normed(self.shortcut, x)
        return F.relu_(out + shortcut)


def _normed(conv: nn.Module, x: Tensor) -> Tensor:
    x = conv(x)
    return x if conv.norm is None else conv.norm(x)  # None with MODEL.RESNETS.NORM ""


def separate_norms(model: Model) -> Model:
    """Give every ``BasicBlock`` of Detectron2 in ``model`` separate norms, in place."""
    for block in model.modules():
        if type(block) is resnet.BasicBlock:
            block.__class__ = BasicBlock
            block.register_load_state_dict_pre_hook(_read_either_naming)
            _retype(block, Conv2d, nn.Conv2d)
    return model


def join_norms(model: Model) -> Model:
    """Undo :func:`separate_norms`, in place."""
    for block in model.modules():
        if type(block) is BasicBlock:
            block.__class__ = resnet.BasicBlock
            hooks = block._load_state_dict_pre_hooks
            for key in [k for k, hook in hooks.items() if hook.hook is _read_either_naming]:
                del hooks[key]
            _retype(block, nn.Conv2d, Conv2d)
    return model


def _retype(block: nn.Module, old: type[nn.Module], new: type[nn.Module]) -> None:
    for conv in (block.conv1, block.conv2, block.shortcut):
        if conv is not None and type(conv) is old:
            conv.activation = getattr(conv, "activation", None)
            conv.__class__ = new


def _read_either_naming(block: nn.Module, state_dict: dict[str, Tensor], prefix: str, *_: object) -> None:
    wanted = {prefix + name for name in block.state_dict()}
    rename_separate_norms(state_dict, wanted)
