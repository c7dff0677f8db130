"""What each operator does to labels: one handler per kind of operator, in a table by name.

Names are those of PyTorch's dispatcher (``aten.convolution``): below autograd and below composite
functions, so attention, einsum or a fused layer of any library comes down to the few kinds here.
An operator that is missing in the table keeps all labels that go into it, and says so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from d2prune.core.labels import Book, Sheets, Sized, along, merge, settle, spread, support


class Labels(Protocol):
    """Where the labels of tensors are written down."""

    book: Book

    def of(self, tensor: Tensor | None) -> Sheets:
        """The tensor's sheets."""

    def set(self, tensor: Tensor, sheets: Sheets) -> None:
        """Write them down."""


Bound = Mapping[str, Any]  # an operator's arguments by name
Handler = Callable[[Labels, Any, Bound, Any], None]


def follow(labels: Labels, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], out: Any) -> None:
    """Writes down the labels of what ``func(*args, **kwargs)`` returned."""
    names = [argument.name for argument in func._schema.arguments]
    bound = {**dict(zip(names, args, strict=False)), **kwargs}
    if not any(labels.of(t) for t in _tensors(bound)):
        return
    _handler(func)(labels, func, bound, out)


def _handler(func: Any) -> Handler:
    name = func._schema.name
    base = name.rstrip("_") if func._schema.is_mutable else name
    if base in HANDLERS:
        return HANDLERS[base]
    return _pointwise if _is_pointwise(func, base) else _unknown


def _is_pointwise(func: Any, base: str) -> bool:
    """In-place forms are not tagged where their pure form is."""
    space, _, leaf = base.partition("::")
    packet = getattr(getattr(torch.ops, space), leaf, None)
    overloads = [getattr(packet, o) for o in packet.overloads()] if packet is not None else []
    return any(torch.Tag.pointwise in f.tags for f in (func, *overloads))


def _tensors(value: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]


def _sized(labels: Labels, tensor: Tensor) -> Sized:
    """A tensor's shape and sheets; what was expanded counts as broadcast: it follows any width."""
    strides = tensor.stride() if tensor.layout == torch.strided else tensor.shape
    size = [1 if stride == 0 else n for n, stride in zip(tensor.shape, strides, strict=True)]
    return torch.Size(size), labels.of(tensor)


def _kept(labels: Labels, sheets: Sheets, why: str) -> None:
    for sheet in sheets:
        labels.book.keep(sheet, why)


def _unknown(labels: Labels, func: Any, bound: Bound, out: Any) -> None:
    for tensor in _tensors(bound):
        _kept(labels, labels.of(tensor), f"go through {func._schema.name}, which d2prune does not know")


def _pointwise(labels: Labels, func: Any, bound: Bound, out: Any) -> None:
    parts = [_sized(labels, tensor) for tensor in _tensors(bound)]
    for result in _tensors(out):
        labels.set(result, merge(labels.book, parts, result.shape))


def _same(labels: Labels, func: Any, bound: Bound, out: Any) -> None:
    """The result has the shape of the argument "self", element by element."""
    labels.set(out, labels.of(bound["self"]))


def _constant(labels: Labels, func: Any, bound: Bound, out: Any) -> None:
    """The result holds nothing of the arguments."""


def _write(labels: Labels, func: Any, bound: Bound, out: Any) -> None:
    """A copy into a tensor, or a part of it: it is the whole that has labels, or none of it."""
    target, source = bound["self"], _tensors([v for k, v in bound.items() if k != "self"])
    if target.storage_offset() == 0 and target._base is None and not labels.of(target):
        labels.set(target, merge(labels.book, [_sized(labels, t) for t in source], target.shape))
    else:
        merge(labels.book, [_sized(labels, t) for t in (target, *source)], target.shape)


# ---------------------------------------------------------------- moving elements about


def _moved(labels: Labels, x: Tensor, results: Sequence[Tensor], move: Callable[[Tensor], Any]) -> None:
    """Moves every sheet of ``x``, at its full size, as ``x`` was moved into ``results``."""
    sheets: list[list[Tensor]] = [[] for _ in results]
    for sheet in labels.of(x):
        parts = move(sheet.expand(x.shape))
        for kept, part in zip(sheets, [parts] if isinstance(parts, Tensor) else parts, strict=True):
            if part.numel() and part.any() and (settled := settle(labels.book, part)) is not None:
                kept.append(settled)
    for result, kept in zip(results, sheets, strict=True):
        labels.set(result, tuple(kept))


def _move(labels: Labels, func: Any, bound: Bound, out: Any) -> None:
    rest = {k: v for k, v in bound.items() if k != "self"}
    _moved(labels, bound["self"], _tensors([out]), lambda sheet: func(sheet, **rest))


def _view(labels: Labels, func: Any, bound: Bound, out: Tensor) -> None:
    _moved(labels, bound["self"], [out], lambda sheet: sheet.reshape(out.shape))


def _pad(labels: Labels, func: Any, bound: Bound, out: Tensor) -> None:
    _moved(labels, bound["self"], [out], lambda sheet: func(sheet, bound["pad"], 0))


def _part(labels: Labels, func: Any, bound: Bound, out: Any) -> None:
    """Slices: equal parts of a labelled dimension lose the same positions, unequal ones nothing."""
    x, dim = bound["self"], bound.get("dim", 0) % bound["self"].dim()
    size = x.shape[dim]
    parts = {t.shape[dim] if t.dim() == x.dim() else 1 for t in _tensors([out])}
    for sheet in labels.of(x):
        if sheet.shape[dim] == 1 or parts == {size}:
            continue
        length = max(parts)
        aligned = size % length == 0 and parts == {length} and (bound.get("start") or 0) % length == 0
        if not aligned or length == 1 or bound.get("step", 1) != 1:
            labels.book.keep(sheet, "are taken apart by position")
            continue
        rows = sheet.movedim(dim, 0).reshape(size // length, length, -1)
        labels.book.tie(rows, rows[:1])
    _move(labels, func, bound, out)


def _pixel_shuffle(labels: Labels, func: Any, bound: Bound, out: Tensor) -> None:
    """r * r channels become one: the labels of these are tied."""
    _blocks(labels, bound["self"], out, int(bound["upscale_factor"]) ** 2, 1)


def _pixel_unshuffle(labels: Labels, func: Any, bound: Bound, out: Tensor) -> None:
    _blocks(labels, bound["self"], out, 1, int(bound["downscale_factor"]) ** 2)


def _im2col(labels: Labels, func: Any, bound: Bound, out: Tensor) -> None:
    height, width = bound["kernel_size"]
    _blocks(labels, bound["self"], out, 1, height * width)


def _blocks(labels: Labels, x: Tensor, out: Tensor, joined: int, repeated: int) -> None:
    """Every ``joined`` channels become one, and every one of those ``repeated``."""
    dim = x.dim() - 3
    for sheet in labels.of(x):
        if support(sheet) != (dim,):
            labels.book.keep(sheet, "lie along a dimension of the picture")
            continue
        rows = sheet.reshape(-1, joined)
        labels.book.tie(rows, rows[:, :1])
        values = rows[:, 0].repeat_interleave(repeated)
        labels.set(out, (spread(values, dim, out.dim(), sheet),))


def _cat(labels: Labels, func: Any, bound: Bound, out: Tensor) -> None:
    tensors = [t for t in bound["tensors"] if t.shape != (0,)]  # torch lets an empty one join
    dim = bound.get("dim", 0) % out.dim()
    if func._schema.name == "aten::stack":
        parts = [(t.unsqueeze(dim).shape, tuple(s.unsqueeze(dim) for s in labels.of(t))) for t in tensors]
    else:
        parts = [_sized(labels, t) for t in tensors]
    across = [tuple(s for s in sheets if dim not in support(s)) for _, sheets in parts]
    joined = list(merge(labels.book, [(_one(size, dim), s) for (size, _), s in zip(parts, across, strict=True)],
                        _one(out.shape, dim)))  # fmt: skip
    pieces = [_piece(labels, size, sheets, dim) for size, sheets in parts]
    shape = torch.broadcast_shapes(*(_one(p.shape, dim) for p in pieces))
    whole = torch.cat([p.expand([*shape[:dim], p.shape[dim], *shape[dim + 1 :]]) for p in pieces], dim)
    if whole.any() and (settled := settle(labels.book, whole)) is not None:
        joined.append(settled)
    labels.set(out, tuple(joined))


def _one(size: Sequence[int], dim: int) -> torch.Size:
    return torch.Size([*size[:dim], 1, *size[dim + 1 :]])


def _piece(labels: Labels, size: Sequence[int], sheets: Sheets, dim: int) -> Tensor:
    """The sheet that varies along ``dim``, whole in that dimension; zeros without one."""
    found = [s for s in sheets if dim in support(s)]
    _kept(labels, tuple(found[1:]), "are two sorts of channels in one dimension")
    if found:
        return found[0]
    shape = [1] * len(size)
    shape[dim] = size[dim]
    device = next((s.device for s in sheets), None)
    return torch.zeros(shape, dtype=torch.long, device=device)


# ---------------------------------------------------------------- combining elements


def _dims(bound: Bound, x: Tensor) -> set[int]:
    given = bound.get("dim")
    every = given is None or (isinstance(given, (list, tuple)) and not given)
    dims = range(x.dim()) if every else [given] if isinstance(given, int) else given
    return {d % x.dim() for d in dims} if x.dim() else set()


def _reduce(labels: Labels, func: Any, bound: Bound, out: Any) -> None:
    """Sums, means, maxima: labels along what is reduced are mixed, others stay."""
    x = bound["self"]
    dims = _dims(bound, x)
    left = []
    for sheet in labels.of(x):
        if dims & set(support(sheet)):
            labels.book.mix(sheet, f"are mixed by {func._schema.name}")
        elif support(sheet):
            left.append(sheet)
    for result in _tensors([out]):
        kept = [s if result.dim() == x.dim() else _without(s, dims) for s in left]
        labels.set(result, tuple(kept))


def _without(sheet: Tensor, dims: set[int]) -> Tensor:
    return sheet.reshape([size for dim, size in enumerate(sheet.shape) if dim not in dims])


def _mix(labels: Labels, func: Any, bound: Bound, out: Any) -> None:
    """Softmax and its like: the shape stays, every element depends on all along one dimension."""
    x = bound["self"]
    for sheet in labels.of(x):
        if _dims(bound, x) & set(support(sheet)):
            labels.book.mix(sheet, f"are mixed by {func._schema.name}")
    for result in _tensors([out]):
        labels.set(result, labels.of(x) if result.shape == x.shape else ())


def _choose(labels: Labels, func: Any, bound: Bound, out: Any) -> None:
    """Top-k and sorting along a dimension without labels moves what carries labels in others."""
    x, dim = bound["self"], bound.get("dim", -1) % bound["self"].dim()
    free = tuple(s for s in labels.of(x) if dim not in support(s))
    _kept(labels, tuple(s for s in labels.of(x) if dim in support(s)), f"are sorted by {func._schema.name}")
    for result in _tensors([out]):
        labels.set(result, free)


def _by_channel(labels: Labels, func: Any, bound: Bound, out: Any) -> None:
    """Pooling, resampling and the like work on each channel alone; dimension 1 has the channels."""
    x = next(t for t in _tensors(bound) if labels.of(t))
    values = along(labels.of(x), 1)
    others = tuple(s for s in labels.of(x) if support(s) != (1,))
    _kept(labels, others, f"lie along a dimension that {func._schema.name} resamples")
    for result in _tensors([out]):
        if values is not None and result.dim() == x.dim() and result.shape[1] == x.shape[1]:
            labels.set(result, (spread(values, 1, result.dim(), values),))


def _batch_norm(labels: Labels, func: Any, bound: Bound, out: Any) -> None:
    x = bound["input"]
    shape = _channels_only(x)
    rows = [bound.get(name) for name in ("weight", "bias", "running_mean", "running_var")]
    parts = [(shape, tuple(s.reshape(shape) for s in labels.of(t))) for t in rows if t is not None]
    labels.set(_tensors([out])[0], merge(labels.book, [_sized(labels, x), *parts], x.shape))


def _channels_only(x: Tensor) -> torch.Size:
    return torch.Size([x.shape[1] if d == 1 else 1 for d in range(x.dim())])


def _group_norm(labels: Labels, func: Any, bound: Bound, out: Any) -> None:
    """Channels of one normalisation group share a mean: they go together."""
    x, groups = bound["input"], bound["group"]
    shape = _channels_only(x)
    rows = [bound.get(name) for name in ("weight", "bias")]
    parts = [(shape, tuple(s.reshape(shape) for s in labels.of(t))) for t in rows if t is not None]
    sheets = merge(labels.book, [_sized(labels, x), *parts], x.shape)
    values = along(sheets, 1)
    if values is not None:
        labels.book.tie(values.reshape(groups, -1), values.reshape(groups, -1)[:, :1])
    labels.set(_tensors([out])[0], sheets)


def _layer_norm(labels: Labels, func: Any, bound: Bound, out: Any) -> None:
    x = bound["input"]
    parts = [_sized(labels, t) for n in ("weight", "bias") if (t := bound.get(n)) is not None]
    sheets = merge(labels.book, [_sized(labels, x), *parts], x.shape)
    first = x.dim() - len(bound["normalized_shape"])
    for sheet in sheets:
        if any(dim >= first for dim in support(sheet)):
            labels.book.mix(sheet, "are normalised together (LayerNorm)")
    labels.set(_tensors([out])[0], sheets)


# ---------------------------------------------------------------- products with weights


def _product(labels: Labels, func: Any, bound: Bound, out: Tensor) -> None:
    """(…, M, K) times (…, K, N): labels along K are tied; those along M, N and before stay."""
    one, two = bound.get("mat1", bound.get("batch1", bound["self"])), _second(bound)
    result = _contract(labels, one, two)
    added = bound["self"] if one is not bound["self"] else None
    if added is not None:
        result = merge(labels.book, [(out.shape, result), _sized(labels, added)], out.shape)
    labels.set(out, result)


def _second(bound: Bound) -> Tensor:
    return next(bound[name] for name in ("mat2", "batch2") if name in bound)


def _contract(labels: Labels, one: Tensor, two: Tensor) -> Sheets:
    rows = [s.transpose(-1, -2) for s in labels.of(one) if s.shape[-1] > 1]  # K before M
    columns = [s for s in labels.of(two) if s.shape[-2] > 1]
    for sheet in (*rows, *columns):
        if sheet.shape[-1] > 1:
            labels.book.keep(sheet, "are multiplied along two dimensions at once")
    if rows and columns:
        labels.book.multiply(rows[0], columns[0])
    elif rows or columns:
        labels.book.keep((rows or columns)[0], "are multiplied with values that do not shrink with them")
    _kept(labels, tuple([*rows[1:], *columns[1:]]), "are two sorts of channels in one dimension")
    left = tuple(s for s in labels.of(one) if s.shape[-1] == 1)
    right = tuple(s for s in labels.of(two) if s.shape[-2] == 1)
    parts = [
        (torch.Size([*one.shape[:-1], 1]), left),
        (torch.Size([*two.shape[:-2], 1, two.shape[-1]]), right),
    ]
    return merge(labels.book, parts, torch.broadcast_shapes(*(size for size, _ in parts)))


def _convolution(labels: Labels, func: Any, bound: Bound, out: Tensor) -> None:
    x, weight, groups = bound["input"], bound["weight"], bound["groups"]
    book = labels.book
    given = along(labels.of(x), 1)
    others = tuple(s for s in labels.of(x) if support(s) != (1,))
    _kept(labels, others, "lie along a dimension that a convolution slides over")
    first, second = along(labels.of(weight), 0), along(labels.of(weight), 1)
    out_labels, in_labels = (second, first) if bound["transposed"] else (first, second)
    if groups > 1 and groups == x.shape[1] == out.shape[1]:
        made = _tied_or_kept(book, given, first)
    else:
        made = _grouped(book, given, in_labels, out_labels, groups, bound["transposed"])
    parts: list[Sized] = [(_channels_only(out), () if made is None else (spread(made, 1, out.dim(), made),))]
    if (bias := bound.get("bias")) is not None:
        shape = _channels_only(out)
        parts.append((shape, tuple(s.reshape(shape) for s in labels.of(bias))))
    labels.set(out, merge(book, parts, out.shape))


def _tied_or_kept(book: Book, one: Tensor | None, two: Tensor | None) -> Tensor | None:
    if one is not None and two is not None:
        book.tie(one, two)
        return two
    for labels in (one, two):
        if labels is not None:
            book.keep(labels, "are multiplied with values that do not shrink with them")
    return None


def _grouped(
    book: Book,
    given: Tensor | None,
    in_labels: Tensor | None,
    out_labels: Tensor | None,
    groups: int,
    transposed: bool,
) -> Tensor | None:
    """Every group loses the same positions, so that groups stay equal; one group is an ordinary one."""
    if given is not None and groups > 1:
        rows = given.reshape(groups, -1)
        book.tie(rows, rows[:1])
    if in_labels is not None and not transposed:
        in_labels = in_labels.repeat(groups)
    _tied_or_kept(book, given, in_labels)
    if out_labels is not None and groups > 1:
        out_labels = out_labels.repeat(groups) if transposed else out_labels
        rows = out_labels.reshape(groups, -1)
        book.tie(rows, rows[:1])
    return out_labels


def _embedding(labels: Labels, func: Any, bound: Bound, out: Tensor) -> None:
    """Rows of the table are picked by number, so they stay; its columns are channels."""
    table = bound["weight"]
    values = along(labels.of(table), 1)
    _kept(labels, tuple(s for s in labels.of(table) if support(s) != (1,)), "are picked by number")
    if values is not None:
        labels.set(out, (spread(values, out.dim() - 1, out.dim(), values),))


_KINDS: dict[Handler, str] = {
    _same: "clone detach alias _to_copy contiguous lift_fresh zeros_like ones_like empty_like full_like "
    "rand_like dropout feature_dropout",
    _constant: "new_zeros new_ones new_empty new_full _local_scalar_dense equal is_nonzero size",
    _view: "view _unsafe_view reshape _reshape_alias",
    _move: "permute transpose t expand squeeze unsqueeze flip roll index index_select repeat unfold gather "
    "diagonal rot90 numpy_T movedim tril triu",
    _part: "slice split split_with_sizes select unbind chunk narrow",
    _pad: "constant_pad_nd",
    _pixel_shuffle: "pixel_shuffle",
    _pixel_unshuffle: "pixel_unshuffle",
    _im2col: "im2col",
    _cat: "cat stack",
    _reduce: "mean sum amax amin max min var var_mean std prod any all argmax argmin logsumexp norm "
    "linalg_vector_norm median",
    _mix: "_softmax _log_softmax _safe_softmax cumsum",
    _choose: "topk sort",
    _by_channel: "max_pool2d_with_indices max_pool3d_with_indices avg_pool1d avg_pool2d avg_pool3d "
    "adaptive_max_pool2d _adaptive_avg_pool2d _adaptive_avg_pool3d upsample_nearest1d upsample_nearest2d "
    "upsample_nearest3d _upsample_nearest_exact2d upsample_linear1d upsample_bilinear2d upsample_bicubic2d "
    "_upsample_bilinear2d_aa _upsample_bicubic2d_aa upsample_trilinear3d grid_sampler_2d grid_sampler_3d "
    "reflection_pad1d reflection_pad2d replication_pad1d replication_pad2d",
    _batch_norm: "native_batch_norm _native_batch_norm_legit_no_training _native_batch_norm_legit "
    "cudnn_batch_norm miopen_batch_norm",
    _group_norm: "native_group_norm",
    _layer_norm: "native_layer_norm",
    _product: "mm addmm bmm baddbmm",
    _convolution: "convolution _convolution convolution_overrideable",
    _embedding: "embedding",
    _write: "copy fill zero index_put masked_scatter",
    _pointwise: "hardswish _prelu_kernel hardsigmoid hardtanh gelu threshold normal uniform bernoulli "
    "native_dropout where masked_fill",
}
HANDLERS: dict[str, Handler] = {f"aten::{n}": h for h, names in _KINDS.items() for n in names.split()}
HANDLERS["torchvision::roi_align"] = _by_channel
