"""The table of operators: for each rule, the full names of the operators that follow it.

Names are those of PyTorch's dispatcher, below autograd and below composite functions, so attention,
einsum or a fused layer of any library is covered by the few rules here. Operators that PyTorch tags as
pointwise need no entry; any other missing operator keeps all labels that go into it, with that reason.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch

from d2prune.core.trace.operators import combining, elementwise, moving, products
from d2prune.core.trace.operators.call import Handler
from d2prune.errors import PruneError

NAMED: dict[str, Handler] = {
    "pointwise": elementwise.pointwise,
    "same": elementwise.same,
    "constant": elementwise.constant,
    "view": moving.view,
    "moves elements": moving.move,
    "by channel": combining.by_channel,
    "reduces": combining.reduce,
    "mixes": combining.mix,
}
"""Rules that :func:`register_operator` knows by name; docs/tracing.md describes them."""

_ROWS: dict[Handler, str] = {
    elementwise.same: "aten.clone aten.detach aten.alias aten._to_copy aten.contiguous aten.lift_fresh "
    "aten.zeros_like aten.ones_like aten.empty_like aten.full_like aten.rand_like aten.dropout "
    "aten.feature_dropout",
    elementwise.constant: "aten.new_zeros aten.new_ones aten.new_empty aten.new_full "
    "aten._local_scalar_dense aten.equal aten.is_nonzero aten.size",
    elementwise.write: "aten.copy aten.fill aten.zero aten.index_put aten.masked_scatter",
    elementwise.pointwise: "aten.hardswish aten._prelu_kernel aten.hardsigmoid aten.hardtanh aten.gelu "
    "aten.threshold aten.normal aten.uniform aten.bernoulli aten.native_dropout aten.where aten.masked_fill",
    moving.view: "aten.view aten._unsafe_view aten.reshape aten._reshape_alias",
    moving.strided: "aten.as_strided",
    moving.move: "aten.permute aten.transpose aten.t aten.expand aten.squeeze aten.unsqueeze aten.flip "
    "aten.roll aten.index aten.index_select aten.repeat aten.unfold aten.gather aten.diagonal aten.rot90 "
    "aten.tril aten.triu",
    moving.part: "aten.slice aten.split aten.split_with_sizes aten.select aten.unbind aten.chunk aten.narrow",
    moving.pad: "aten.constant_pad_nd",
    moving.blocks: "aten.pixel_shuffle aten.pixel_unshuffle aten.im2col",
    moving.cat: "aten.cat aten.stack",
    combining.reduce: "aten.mean aten.sum aten.amax aten.amin aten.max aten.min aten.var aten.var_mean "
    "aten.std aten.prod aten.any aten.all aten.argmax aten.argmin aten.logsumexp aten.norm "
    "aten.linalg_vector_norm aten.median",
    combining.mix: "aten._softmax aten._log_softmax aten._safe_softmax aten.cumsum",
    combining.choose: "aten.topk aten.sort",
    combining.by_channel: "aten.max_pool2d_with_indices aten.max_pool3d_with_indices aten.avg_pool1d "
    "aten.avg_pool2d aten.avg_pool3d aten.adaptive_max_pool2d aten._adaptive_avg_pool2d "
    "aten._adaptive_avg_pool3d aten.upsample_nearest1d aten.upsample_nearest2d aten.upsample_nearest3d "
    "aten._upsample_nearest_exact2d aten.upsample_linear1d aten.upsample_bilinear2d "
    "aten.upsample_bicubic2d aten._upsample_bilinear2d_aa aten._upsample_bicubic2d_aa "
    "aten.upsample_trilinear3d aten.grid_sampler_2d aten.grid_sampler_3d aten.reflection_pad1d "
    "aten.reflection_pad2d aten.replication_pad1d aten.replication_pad2d torchvision.roi_align",
    combining.batch_norm: "aten.native_batch_norm aten._native_batch_norm_legit_no_training "
    "aten._native_batch_norm_legit aten.cudnn_batch_norm aten.miopen_batch_norm",
    combining.group_norm: "aten.native_group_norm",
    combining.layer_norm: "aten.native_layer_norm",
    products.product: "aten.mm aten.addmm aten.bmm aten.baddbmm",
    products.convolution: "aten.convolution aten._convolution aten.convolution_overrideable",
    products.embedding: "aten.embedding",
}


def _full(name: str) -> str:
    """Return ``aten.permute`` as PyTorch's schemas write it: ``aten::permute``."""
    return name if "::" in name else name.replace(".", "::", 1)


HANDLERS: dict[str, Handler] = {_full(n): rule for rule, names in _ROWS.items() for n in names.split()}


def register_operator(names: str | Sequence[str], rule: str | Handler) -> None:
    """Teach d2prune how an operator passes channels on.

        d2prune.register_operator("mylib::scale", "pointwise")

    The latest registration of a name wins. A wrong rule gives a pruned model that the proof refuses.

    Args:
        names: one or several operators that are defined, as "mylib::scale" or "mylib.scale": those of
            ``torch.library.custom_op``, of an extension, or PyTorch's own.
        rule: the name of a rule (docs/tracing.md lists them), or a function ``(labels, func, bound, out)``
            of the :class:`Labels` to read and set, the operator, its arguments by name and its result.

    Raises:
        PruneError: if no such operator is defined, or there is no such rule.
    """
    every = [names] if isinstance(names, str) else names
    if not isinstance(every, Sequence) or not every:
        raise PruneError(
            f"register_operator got {names!r}; expected a name such as 'mylib::scale', or several"
        )
    handler = NAMED.get(rule) if isinstance(rule, str) else rule
    if handler is None or not _takes_four(handler):
        raise PruneError(
            f"register_operator({names!r}) got the rule {rule!r}; expected one of: {', '.join(NAMED)}; or a "
            "function (labels, func, bound, out)"
        )
    for name in every:
        if not isinstance(name, str) or packet_of(_full(name)) is None:
            raise PruneError(
                f"register_operator got {name!r}, which is not defined; expected an operator's full name, "
                "such as 'mylib::scale', after the import that defines it"
            )
    HANDLERS.update(dict.fromkeys(map(_full, every), handler))


def _takes_four(handler: Any) -> bool:
    try:
        inspect.signature(handler).bind(*range(4))
    except TypeError:
        return False
    return True


def handler_of(func: Any) -> Handler:
    """Return the rule of an operator; ``add_`` has that of ``add``."""
    name = func._schema.name
    pure = name.rstrip("_") if func._schema.is_mutable else name
    if name in HANDLERS or pure in HANDLERS:
        return HANDLERS[name if name in HANDLERS else pure]
    # In-place forms are not tagged where their pure form is.
    packet = packet_of(pure)
    overloads = [getattr(packet, o) for o in packet.overloads()] if packet is not None else []
    tagged = any(torch.Tag.pointwise in f.tags for f in (func, *overloads))
    return elementwise.pointwise if tagged else elementwise.unknown


def packet_of(name: str) -> Any:
    """Return the overload packet of the operator called ``name``; None if it is not defined."""
    space, _, leaf = name.partition("::")
    return getattr(getattr(torch.ops, space), leaf, None) if space and leaf else None
