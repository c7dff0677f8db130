"""The table of layer kinds: which dimension of which tensor is an axis, and what a cut must update.

A new kind of layer is one row, added here or, by users, with :func:`d2prune.register_layer`.
Tracing, scores, costs, surgery and coverage know layers by this table alone.
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
    """One row of the table: a kind of layer.

    Attributes:
        out: tensors that hold output channels, by attribute name, each with its dimension that does;
            or a function that finds them on a layer. A grouped convolution's weight holds one axis
            once for all groups: there the dimension is a fraction of the width.
        inp: the same for input channels; empty for a layer that works on each channel alone, as norms do.
        sizes: by axis, attributes that repeat its width, which a cut updates.
        groups: attribute that counts groups and shrinks with the channels; "" if there is none.
        per: whether the kernel is applied once per position of the input ("in") or of the result
            ("out"), for counting MACs; None if nothing is multiplied.
        begins: whether its output channels begin here, rather than being passed through.
        scored: the tensor that criteria score channels by; "" is the first of the axis.
        chosen: returns whether the row is about this layer of its class.
        open: returns whether this layer can be cut; other layers stay whole.
        after_cut: updates whatever else repeats a width.
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
        """Return, by name, the dimension of each tensor that may hold an axis of ``layer``."""
        if axis == "in":
            return self.inp
        return self.out(layer) if callable(self.out) else self.out


def kind_of(layer: object) -> LayerKind:
    """Return the row of the nearest class of ``layer``; :data:`UNKNOWN` if no other row fits."""
    rows = (row for cls in type(layer).__mro__ for row in ROWS.get(cls, ()))
    return next(row for row in rows if row.chosen(layer))


def _is_depthwise(conv: Layer) -> bool:
    return bool(1 < conv.groups == conv.in_channels == conv.out_channels)


def _is_channel_norm(layer: nn.Module) -> bool:
    """Return whether ``layer`` is a BatchNorm or alike: each tensor is a scalar or has one value per channel.

    It goes by shapes, so that Detectron2's and torchvision's frozen norms need not be imported. A
    norm may hold modules without tensors of their own (timm's norms hold their activation).
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
    """Return a layer's own parameters and buffers by name, without those that are None."""
    return {n: t for n, t in (*layer._parameters.items(), *layer._buffers.items()) if t is not None}


def parameter_dim(parameter: Tensor) -> int:
    """Return the channel dimension of a bare parameter: the last whose size is not 1; else 0."""
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
# A single slope is shared by all channels, so it has no channel axis.
PRELU = LayerKind(
    out={"weight": 0},
    sizes={"out": ("num_parameters",)},
    open=lambda layer: "weight" in layer._parameters and layer.num_parameters > 1,
)
EMBEDDING = LayerKind(out={"weight": 1}, sizes={"out": ("embedding_dim",)}, begins=True)
# Only where queries, keys and values have one input width: otherwise there is no in_proj_weight.
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
    nn.Module: (CHANNEL_NORM,),  # of any class without a row of its own
    Tensor: (BARE,),  # a parameter outside of layers
    object: (UNKNOWN,),
}
