"""What the core knows of single layers: their widths, and how to take channels out of them.

One handler per kind of layer, in a table; an unknown layer is reported (its channels stay), never
guessed. FrozenBatchNorm2d and its like are known by their shape: one-dimensional tensors of
``num_features``, so Detectron2 need not be imported.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from d2prune.core.layers.attention import is_foreign
from d2prune.core.layers.registered import layout_of, register_layer, tensors_on
from d2prune.core.types import Axis
from d2prune.errors import PruneError

Layer = Any  # torch types every attribute of a module as Tensor | Module
ConvNd = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def is_depthwise(layer: nn.Module) -> bool:
    """True for a convolution with one input and one output channel per group."""
    return isinstance(layer, ConvNd) and 1 < layer.groups == layer.in_channels == layer.out_channels


def is_layer(layer: object) -> bool:
    """True where :func:`cut` can take channels out."""
    if isinstance(layer, nn.Module) and layout_of(layer) is not None:
        return bool(tensors_on(layer, "out")) and not is_foreign(layer)
    if isinstance(layer, nn.PReLU) and layer.num_parameters == 1:
        return False  # one slope for all channels: nothing to take out
    if isinstance(layer, (*ConvNd, nn.Linear)) and "weight" not in layer._parameters:
        return False  # its weight is computed (weight_norm and the like): slices would not last
    return isinstance(layer, Tensor) or _handler(layer) is not None


def has_inputs(layer: object) -> bool:
    """True where a layer's input channels are others than its output channels."""
    layout = layout_of(layer)
    return bool(layout.inp) if layout is not None else isinstance(layer, (*ConvNd, nn.Linear))


def axis_width(layer: nn.Module, axis: Axis) -> int:
    """Number of channels on an axis of a layer."""
    if layout_of(layer) is not None:
        tensor, dim = tensors_on(layer, axis)[0]
        return tensor.shape[dim]
    if isinstance(layer, ConvNd):
        return layer.out_channels if axis == "out" else layer.in_channels
    if isinstance(layer, nn.Linear):
        return layer.out_features if axis == "out" else layer.in_features
    if isinstance(layer, nn.GroupNorm):
        return layer.num_channels
    if isinstance(layer, nn.LayerNorm):
        return int(layer.normalized_shape[-1])
    if isinstance(layer, nn.PReLU):
        return layer.num_parameters
    width = _norm_width(layer)
    assert width is not None, "is_layer() is checked before"
    return width


@dataclass(frozen=True)
class Keep:
    """What stays of one layer: sorted channel positions per axis; None leaves the axis whole.

    ``groups`` is what a GroupNorm's num_groups or a depthwise convolution's groups become.
    """

    out: tuple[int, ...] | None = None
    inp: tuple[int, ...] | None = None
    groups: int | None = None


def cut(layer: nn.Module, keep: Keep) -> None:
    """Shrinks ``layer`` in place to the channels of ``keep``.

    Raises:
        PruneError: if the layer's kind is unknown.
    """
    handler = _handler(layer)
    if handler is None:
        raise PruneError(f"can't take channels out of a {type(layer).__name__}")
    handler(layer, keep)


def select(layer: nn.Module, name: str, dim: int, kept: Sequence[int] | None) -> None:
    """Replaces the parameter or buffer ``name`` by its slices ``kept`` along ``dim``."""
    tensor = getattr(layer, name)
    if tensor is None or kept is None:
        return
    index = torch.as_tensor(kept, dtype=torch.long, device=tensor.device)
    sliced = tensor.detach().index_select(dim, index)
    if isinstance(tensor, nn.Parameter):
        sliced = nn.Parameter(sliced, requires_grad=tensor.requires_grad)
    setattr(layer, name, sliced)


def zero_inputs(layer: nn.Module, positions: Sequence[int]) -> None:
    """Zeroes the input columns ``positions`` of a convolution or linear layer, in place.

    A depthwise convolution keeps channels apart, so it is its consumers' columns that count.
    """
    if layout_of(layer) is not None:
        _zero(tensors_on(layer, "in"), positions)
    elif isinstance(layer, nn.Linear):
        layer.weight.data[:, list(positions)] = 0
    elif isinstance(layer, ConvNd) and layer.transposed:
        layer.weight.data[list(positions)] = 0
    elif isinstance(layer, ConvNd) and not is_depthwise(layer):
        inputs, outputs = layer.in_channels // layer.groups, layer.out_channels // layer.groups
        for p in positions:
            group = p // inputs
            layer.weight.data[group * outputs : (group + 1) * outputs, p % inputs] = 0


def zero_outputs(layer: nn.Module | Tensor, positions: Sequence[int]) -> None:
    """Zeroes all that a layer, or a bare parameter, adds to its channels ``positions``, in place."""
    if isinstance(layer, Tensor):
        return _zero([(layer, parameter_dim(layer))], positions)
    if layout_of(layer) is not None:
        return _zero(tensors_on(layer, "out"), positions)
    transposed = isinstance(layer, ConvNd) and layer.transposed
    for name, tensor in layer.named_parameters(recurse=False):
        dim = 1 if transposed and name == "weight" and not is_depthwise(layer) else 0
        _zero([(tensor, dim)], [p % tensor.shape[dim] for p in positions])


def _zero(tensors: Iterable[tuple[Tensor, int]], positions: Sequence[int]) -> None:
    for tensor, dim in tensors:
        tensor.data.index_fill_(dim, torch.tensor(positions, device=tensor.device), 0)


@contextmanager
def unfused_attention() -> Iterator[None]:
    """Keeps nn.MultiheadAttention from its one fused operator, which nothing counts or follows."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def groups_after(layer: nn.Module, kept: int) -> int | None:
    """Groups of a GroupNorm or depthwise convolution once it has ``kept`` channels; else None."""
    if isinstance(layer, nn.GroupNorm):
        return kept * layer.num_groups // layer.num_channels
    return kept if is_depthwise(layer) else None


def parameter_dim(parameter: Tensor) -> int:
    """The channel dimension of a bare parameter: the last that is not 1."""
    return max(i for i, size in enumerate(parameter.shape) if size > 1)


def module_at(model: nn.Module, name: str) -> Any:
    """The module, or bare parameter or buffer, called ``name`` ("" is the model); else AttributeError."""
    parent, _, leaf = name.rpartition(".")
    return getattr(model.get_submodule(parent), leaf) if leaf else model


def widths_of(model: nn.Module, name: str) -> tuple[int | None, int | None]:
    """(out, in) widths of the layer called ``name``; None for an axis that it does not have."""
    target = module_at(model, name)
    if isinstance(target, Tensor):
        return int(target.shape[parameter_dim(target)]), None
    if not is_layer(target):
        raise AttributeError(f"{name} is no layer that holds channels")
    return axis_width(target, "out"), axis_width(target, "in") if has_inputs(target) else None


def _cut_conv(layer: Layer, keep: Keep) -> None:
    out_dim, in_dim = (1, 0) if layer.transposed else (0, 1)
    if is_depthwise(layer):
        kept = keep.out if keep.out is not None else keep.inp
        select(layer, "weight", 0, kept)
        select(layer, "bias", 0, kept)
        layer.in_channels = layer.out_channels = layer.weight.shape[0]
        layer.groups = keep.groups
        return
    select(layer, "weight", out_dim, _fitting(keep.out, layer.weight.shape[out_dim]))
    select(layer, "weight", in_dim, _fitting(keep.inp, layer.weight.shape[in_dim]))
    select(layer, "bias", 0, keep.out)
    layer.in_channels = len(keep.inp) if keep.inp is not None else layer.in_channels
    layer.out_channels = len(keep.out) if keep.out is not None else layer.out_channels


def _fitting(kept: Sequence[int] | None, size: int) -> list[int] | None:
    """Grouped convolutions hold one axis once, for all groups, which are cut alike."""
    return None if kept is None else [i for i in kept if i < size]


def _cut_linear(layer: Layer, keep: Keep) -> None:
    select(layer, "weight", 0, keep.out)
    select(layer, "bias", 0, keep.out)
    select(layer, "weight", 1, keep.inp)
    layer.out_features, layer.in_features = layer.weight.shape


def _cut_norm(layer: Layer, keep: Keep) -> None:
    if keep.out is None:
        return
    width = _norm_width(layer)
    for name, tensor in [*layer._parameters.items(), *layer._buffers.items()]:
        if tensor is not None and tensor.shape == (width,):
            select(layer, name, 0, keep.out)
    if hasattr(layer, "num_features"):  # torchvision's frozen norm does without
        layer.num_features = len(keep.out)


def _cut_groupnorm(layer: Layer, keep: Keep) -> None:
    if keep.out is None:
        return
    select(layer, "weight", 0, keep.out)
    select(layer, "bias", 0, keep.out)
    # Exact only because whole groups go: each remaining group still normalises the same channels.
    layer.num_groups, layer.num_channels = keep.groups, len(keep.out)


def _cut_layernorm(layer: Layer, keep: Keep) -> None:
    if keep.out is None:
        return
    select(layer, "weight", -1, keep.out)
    select(layer, "bias", -1, keep.out)
    layer.normalized_shape = (*layer.normalized_shape[:-1], len(keep.out))


def _cut_registered(layer: Layer, keep: Keep) -> None:
    layout = layout_of(layer)
    assert layout is not None, "_handler() chose by it"
    for places, kept in ((layout.out, keep.out), (layout.inp, keep.inp)):
        for name, dim in places.items():
            select(layer, name, dim, kept)
    layout.after_cut(layer)


def _cut_prelu(layer: Layer, keep: Keep) -> None:
    if keep.out is not None and layer.num_parameters > 1:
        select(layer, "weight", 0, keep.out)
        layer.num_parameters = len(keep.out)


_HANDLERS: dict[type[nn.Module] | tuple[type[nn.Module], ...], Callable[[Layer, Keep], None]] = {
    ConvNd: _cut_conv,
    nn.Linear: _cut_linear,
    nn.GroupNorm: _cut_groupnorm,
    nn.LayerNorm: _cut_layernorm,
    nn.PReLU: _cut_prelu,
}


def _handler(layer: object) -> Callable[[Layer, Keep], None] | None:
    if layout_of(layer) is not None:
        return _cut_registered
    for kind, handler in _HANDLERS.items():
        if isinstance(layer, kind):
            return handler
    return _cut_norm if _is_channel_norm(layer) else None


def _is_channel_norm(layer: object) -> bool:
    """BatchNorm and its like, frozen or not: every tensor is a scalar or holds one value a channel.

    A norm may hold modules without tensors of their own (timm's hold their activation).
    """
    if not isinstance(layer, nn.Module) or any(_tensors(child) for child in layer.children()):
        return False
    width = _norm_width(layer)
    tensors = [t for t in (*layer._parameters.values(), *layer._buffers.values()) if t is not None]
    return width is not None and all(t.numel() == 1 or t.shape == (width,) for t in tensors)


def _tensors(layer: nn.Module) -> bool:
    return any(True for _ in (*layer.parameters(), *layer.buffers()))


def _norm_width(layer: nn.Module) -> int | None:
    width, mean = getattr(layer, "num_features", None), layer._buffers.get("running_mean")
    if isinstance(width, int):
        return width
    return mean.numel() if mean is not None else None


def _narrow_rmsnorm(layer: Layer) -> None:
    layer.normalized_shape = tuple(layer.weight.shape)


def _narrow_embedding(layer: Layer) -> None:
    layer.embedding_dim = layer.weight.shape[1]


register_layer(nn.RMSNorm, out={"weight": -1}, after_cut=_narrow_rmsnorm)
register_layer(nn.Embedding, out={"weight": 1}, after_cut=_narrow_embedding)
