"""The products of layers' inputs and weights, seen while a model runs, and the rows that they multiply."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from d2prune.core.layers.attention import narrow
from d2prune.core.layers.kinds import module_at, places

CONVOLUTIONS: Mapping[Any, int] = {F.conv1d: 1, F.conv2d: 2, F.conv3d: 3}
TRANSPOSED: Mapping[Any, int] = {F.conv_transpose1d: 1, F.conv_transpose2d: 2, F.conv_transpose3d: 3}


@dataclass(frozen=True)
class Geometry:
    """How a kernel is applied to its input; all sizes empty for a linear layer.

    Attributes:
        kernel, stride, padding, dilation: one number per dimension of space.
        groups: of the convolution.
        transposed: whether the convolution is transposed; the other sizes are then left out.
    """

    kernel: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    groups: int = 1
    transposed: bool = False

    @property
    def taps(self) -> int:
        """Number of places of the kernel."""
        return math.prod(self.kernel)


See = Callable[[str, Tensor, Geometry, Tensor], Tensor]
"""``see(layer, given, geometry, output)`` returns the output that the model goes on with."""


class Products(TorchFunctionMode):
    """A mode that shows every convolution and linear product with the weight of one of ``layers``.

    It looks at functions, not at modules, so that layers which run their norm inside their own forward,
    or whose weight a module uses itself, are seen as others are.
    """

    def __init__(self, layers: Mapping[str, nn.Module], see: See) -> None:
        super().__init__()
        held = {name: places(layer, "in") for name, layer in layers.items()}
        self._names = {id(found[0].tensor): name for name, found in held.items() if found}
        self._see = see

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if len(args) > 1 and (name := self._names.get(id(args[1]))) and isinstance(out, Tensor):
            geometry = _geometry(func, args, kwargs)
            if geometry is not None:
                return self._see(name, args[0], geometry, out)
        return out


def layers_at(model: nn.Module, names: Iterable[str]) -> dict[str, nn.Module]:
    """Return the modules at these paths of ``model``, whose attention layers now call their projections."""
    for module in model.modules():
        if type(module) is nn.MultiheadAttention and module._qkv_same_embed_dim:
            narrow(module)
    return {name: module_at(model, name) for name in names}


def _geometry(func: Any, args: Any, kwargs: Mapping[str, Any]) -> Geometry | None:
    """Return the geometry of a call; None if it is no product that moments can be taken of."""
    if func is F.linear:
        return Geometry()
    if func not in CONVOLUTIONS and func not in TRANSPOSED:
        return None
    kernel = tuple(args[1].shape[2:])
    if func in TRANSPOSED:
        names = ["bias", "stride", "padding", "output_padding", "groups", "dilation"]
        given = dict(zip(names, args[2:], strict=False)) | dict(kwargs)
        return Geometry(kernel, groups=given.get("groups", 1), transposed=True)
    names = ["bias", "stride", "padding", "dilation", "groups"]
    given = dict(zip(names, args[2:], strict=False)) | dict(kwargs)
    stride, dilation = (_spread(given.get(key, 1), kernel) for key in ("stride", "dilation"))
    padding = given.get("padding", 0)
    if padding == "same":
        reach = [(k - 1) * d for k, d in zip(kernel, dilation, strict=True)]
        if any(pixels % 2 for pixels in reach):
            return None  # padded more on one side
        padding = [pixels // 2 for pixels in reach]
    padding = _spread(0 if padding == "valid" else padding, kernel)
    return Geometry(kernel, stride, padding, dilation, given.get("groups", 1))


def _spread(value: Any, kernel: Sequence[int]) -> tuple[int, ...]:
    """Return one number per dimension of space."""
    given = (value,) if isinstance(value, int) else tuple(value)
    return given * len(kernel) if len(given) == 1 else given


def patches(given: Tensor, geometry: Geometry) -> Tensor:
    """Return what a kernel sees at each position of (N, C, *space): a view (N, *positions, C, *kernel)."""
    dims = len(geometry.kernel)
    sides = [side for pad in reversed(geometry.padding) for side in (pad, pad)]
    windows = F.pad(given, sides) if any(sides) else given
    for i, (kernel, stride, dilation) in enumerate(
        zip(geometry.kernel, geometry.stride, geometry.dilation, strict=True)
    ):
        windows = windows.unfold(2 + i, (kernel - 1) * dilation + 1, stride)
    steps = [slice(None, None, dilation) for dilation in geometry.dilation]
    where: Any = (..., *steps)
    windows = windows[where]
    return windows.permute(0, *range(2, 2 + dims), 1, *range(2 + dims, 2 + 2 * dims))
