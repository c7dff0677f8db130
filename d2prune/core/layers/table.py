"""The table of layer kinds: which dimension of which tensor is an axis, and what follows a cut.

A new kind of layer is one row, added here or, by users, with :func:`d2prune.register_layer`.
Tracing, scores, costs, surgery and coverage read nothing else of a layer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor, nn

from d2prune.core.layers.attention import is_foreign, narrow
from d2prune.core.types import Axis

Layer = Any  # torch types every attribute of a module as Tensor | Module
Places = Mapping[str, int]


@dataclass(frozen=True)
class LayerKind:
    """One row: what is known of a kind of layer.

    Attributes:
        out: tensors that hold output channels, by attribute name, each with its dimension that does;
            or a function that finds them on a layer. A grouped convolution's weight holds one axis
            once for all groups: there the dimension is a fraction of the width.
        inp: the same of input channels; empty for a layer that keeps channels apart, as norms do.
        sizes: by axis, attributes that repeat its width, which a cut brings up to date.
        groups: attribute that counts groups and shrinks with the channels; "" where none does.
        per: the axis that tells how often a kernel is applied, so that MACs can be counted: as often
            as the input, or the result, has positions; None where nothing is multiplied.
        begins: whether its output channels begin here, rather than being carried through.
        scored: the tensor whose norms say how much a channel matters; "" is an axis' first.
        chosen: tells which layers of its class the row is about.
        open: tells which of these can be cut; the others stay whole.
        after_cut: brings up to date what else repeats a width.
    """

    out: Places | Callable[[Layer], Places]
    inp: Places = field(default_factory=dict)
    sizes: Mapping[Axis, tuple[str, ...]] = field(default_factory=dict)
    groups: str = ""
    per: Axis | None = None
    begins: bool = False
    scored: str = ""
    chosen: Callable[[Layer], bool] = lambda layer: True
    open: Callable[[Layer], bool] = lambda layer: "weight" in layer._parameters  # else it is computed
    after_cut: Callable[[Layer], object] = lambda layer: None

    def named(self, layer: Layer, axis: Axis) -> Places:
        """By name, the dimension of each tensor that may hold an axis of ``layer``."""
        if axis == "in":
            return self.inp
        return self.out(layer) if callable(self.out) else self.out


def kind_of(layer: object) -> LayerKind:
    """The row of the nearest class of ``layer``; the last is :data:`UNKNOWN`."""
    rows = (row for cls in type(layer).__mro__ for row in ROWS.get(cls, ()))
    return next(row for row in rows if row.chosen(layer))


def _is_depthwise(conv: Layer) -> bool:
    return bool(1 < conv.groups == conv.in_channels == conv.out_channels)


def _is_channel_norm(layer: nn.Module) -> bool:
    """BatchNorm and its like, frozen or not: every tensor is a scalar or holds one value a channel.

    Known by their shape, so that Detectron2's and torchvision's frozen norms need not be imported. A
    norm may hold modules without tensors of their own (timm's hold their activation).
    """
    if any(True for child in layer.children() for _ in (*child.parameters(), *child.buffers())):
        return False
    width, own = _norm_width(layer), own_tensors(layer).values()
    return width is not None and all(t.numel() == 1 or t.shape == (width,) for t in own)


def _norm_width(layer: nn.Module) -> int | None:
    width, mean = getattr(layer, "num_features", None), layer._buffers.get("running_mean")
    if isinstance(width, int):
        return width
    return mean.numel() if mean is not None else None


def _norm_places(layer: nn.Module) -> Places:
    width = _norm_width(layer)
    return {name: 0 for name, tensor in own_tensors(layer).items() if tensor.shape == (width,)}


def own_tensors(layer: nn.Module) -> dict[str, Tensor]:
    """A layer's own parameters and buffers by name, without those that are None."""
    return {n: t for n, t in (*layer._parameters.items(), *layer._buffers.items()) if t is not None}


def parameter_dim(parameter: Tensor) -> int:
    """The channel dimension of a bare parameter: the last that is not 1."""
    return max((i for i, size in enumerate(parameter.shape) if size > 1), default=0)


def _reshape_norm(layer: Layer) -> None:
    layer.normalized_shape = tuple(layer.weight.shape)


CONVOLUTION = LayerKind(
    out={"weight": 0, "bias": 0},
    inp={"weight": 1},
    sizes={"out": ("out_channels",), "in": ("in_channels",)},
    per="out",  # a fused one's result is the norm's or the activation's: same shape, same count
    begins=True,
)
DEPTHWISE = replace(
    CONVOLUTION,
    inp={},
    sizes={"out": ("out_channels", "in_channels")},
    groups="groups",
    begins=False,
    chosen=_is_depthwise,
)
TRANSPOSED = replace(CONVOLUTION, out={"weight": 1, "bias": 0}, inp={"weight": 0}, per="in")
LINEAR = replace(CONVOLUTION, sizes={"out": ("out_features",), "in": ("in_features",)}, per="in")
GROUP_NORM = LayerKind(out={"weight": 0, "bias": 0}, sizes={"out": ("num_channels",)}, groups="num_groups")
LAYER_NORM = LayerKind(out={"weight": -1, "bias": -1}, after_cut=_reshape_norm)
RMS_NORM = LayerKind(out={"weight": -1}, after_cut=_reshape_norm)
# One slope for all channels is none of any channel.
PRELU = LayerKind(
    out={"weight": 0},
    sizes={"out": ("num_parameters",)},
    open=lambda layer: "weight" in layer._parameters and layer.num_parameters > 1,
)
EMBEDDING = LayerKind(out={"weight": 1}, sizes={"out": ("embedding_dim",)}, begins=True)
# Queries, keys and values of one width each; else there is no in_proj_weight, and no row.
ATTENTION = LayerKind(
    out={"in_proj_weight": 0, "in_proj_bias": 0},
    inp={"in_proj_weight": 1},
    per="in",
    begins=True,
    chosen=lambda layer: getattr(layer, "in_proj_weight", None) is not None,
    open=lambda layer: not is_foreign(layer),
    after_cut=narrow,
)
CHANNEL_NORM = LayerKind(
    out=_norm_places,
    sizes={"out": ("num_features",)},
    scored="weight",
    chosen=_is_channel_norm,
    open=lambda layer: True,
)
BARE = LayerKind(
    out=lambda parameter: {"": parameter_dim(parameter)}, scored="none", open=lambda parameter: True
)
UNKNOWN = LayerKind(out={}, open=lambda layer: False)

ROWS: dict[type, tuple[LayerKind, ...]] = {
    **dict.fromkeys((nn.Conv1d, nn.Conv2d, nn.Conv3d), (DEPTHWISE, CONVOLUTION)),
    **dict.fromkeys(
        (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
        (replace(DEPTHWISE, per="in"), TRANSPOSED),
    ),
    nn.Linear: (LINEAR,),
    nn.GroupNorm: (GROUP_NORM,),
    nn.LayerNorm: (LAYER_NORM,),
    nn.RMSNorm: (RMS_NORM,),
    nn.PReLU: (PRELU,),
    nn.Embedding: (EMBEDDING,),
    nn.MultiheadAttention: (ATTENTION,),
    nn.Module: (CHANNEL_NORM,),  # of any class that no other row is about
    Tensor: (BARE,),  # a parameter outside of layers
    object: (UNKNOWN,),
}
