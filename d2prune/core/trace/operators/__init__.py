"""What each operator does to labels: one handler per kind of operator, in a table by name.

Names are those of PyTorch's dispatcher (``aten.convolution``): below autograd and below composite
functions, so attention, einsum or a fused layer of any library comes down to the few kinds here.
An operator that is missing in the table keeps all labels that go into it, and says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from d2prune.core.trace.operators import combining, elementwise, moving, products
from d2prune.core.trace.operators.call import Handler, Labels, tensors_in

__all__ = ["Labels", "follow", "tensors_in"]

_KINDS: dict[Handler, str] = {
    elementwise.same: "clone detach alias _to_copy contiguous lift_fresh zeros_like ones_like empty_like "
    "full_like rand_like dropout feature_dropout",
    elementwise.constant: "new_zeros new_ones new_empty new_full _local_scalar_dense equal is_nonzero size",
    moving.view: "view _unsafe_view reshape _reshape_alias",
    moving.strided: "as_strided",
    moving.move: "permute transpose t expand squeeze unsqueeze flip roll index index_select repeat unfold "
    "gather diagonal rot90 tril triu",
    moving.part: "slice split split_with_sizes select unbind chunk narrow",
    moving.pad: "constant_pad_nd",
    moving.pixel_shuffle: "pixel_shuffle",
    moving.pixel_unshuffle: "pixel_unshuffle",
    moving.im2col: "im2col",
    moving.cat: "cat stack",
    combining.reduce: "mean sum amax amin max min var var_mean std prod any all argmax argmin logsumexp norm "
    "linalg_vector_norm median",
    combining.mix: "_softmax _log_softmax _safe_softmax cumsum",
    combining.choose: "topk sort",
    combining.by_channel: "max_pool2d_with_indices max_pool3d_with_indices avg_pool1d avg_pool2d avg_pool3d "
    "adaptive_max_pool2d _adaptive_avg_pool2d _adaptive_avg_pool3d upsample_nearest1d upsample_nearest2d "
    "upsample_nearest3d _upsample_nearest_exact2d upsample_linear1d upsample_bilinear2d upsample_bicubic2d "
    "_upsample_bilinear2d_aa _upsample_bicubic2d_aa upsample_trilinear3d grid_sampler_2d grid_sampler_3d "
    "reflection_pad1d reflection_pad2d replication_pad1d replication_pad2d",
    combining.batch_norm: "native_batch_norm _native_batch_norm_legit_no_training _native_batch_norm_legit "
    "cudnn_batch_norm miopen_batch_norm",
    combining.group_norm: "native_group_norm",
    combining.layer_norm: "native_layer_norm",
    products.product: "mm addmm bmm baddbmm",
    products.convolution: "convolution _convolution convolution_overrideable",
    products.embedding: "embedding",
    elementwise.write: "copy fill zero index_put masked_scatter",
    elementwise.pointwise: "hardswish _prelu_kernel hardsigmoid hardtanh gelu threshold normal uniform "
    "bernoulli native_dropout where masked_fill",
}
HANDLERS: dict[str, Handler] = {f"aten::{n}": h for h, names in _KINDS.items() for n in names.split()}
HANDLERS["torchvision::roi_align"] = combining.by_channel


def follow(labels: Labels, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], out: Any) -> None:
    """Writes down the labels of what ``func(*args, **kwargs)`` returned."""
    names = [argument.name for argument in func._schema.arguments]
    bound = {**dict(zip(names, args, strict=False)), **kwargs}
    if not any(labels.of(t) for t in tensors_in(bound)):
        return
    _handler(func)(labels, func, bound, out)


def _handler(func: Any) -> Handler:
    name = func._schema.name
    base = name.rstrip("_") if func._schema.is_mutable else name
    if base in HANDLERS:
        return HANDLERS[base]
    return elementwise.pointwise if _is_pointwise(func, base) else elementwise.unknown


def _is_pointwise(func: Any, base: str) -> bool:
    """In-place forms are not tagged where their pure form is."""
    space, _, leaf = base.partition("::")
    packet = getattr(getattr(torch.ops, space), leaf, None)
    overloads = [getattr(packet, o) for o in packet.overloads()] if packet is not None else []
    return any(torch.Tag.pointwise in f.tags for f in (func, *overloads))
