"""The arithmetic of proofs: float64 throughout, and sums in reverse order to measure rounding."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

aten = torch.ops.aten
# Products: where their factors stand among the arguments, and along which dimensions they are summed.
_SUMS = {aten.mm: (0, 1, 0), aten.addmm: (1, 1, 0), aten.bmm: (0, 2, 1), aten.baddbmm: (1, 2, 1)}


@contextmanager
def in_float64() -> Iterator[None]:
    """Keep a float64 model in float64 even where its code makes float32 constants or casts to float32."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with _Float64():
            yield
    finally:
        torch.set_default_dtype(before)


class _Float64(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        args = tuple(_wide(value) for value in args)
        kwargs = {name: _wide(value) for name, value in (kwargs or {}).items()}
        func = torch.Tensor.double if func is torch.Tensor.float else func
        try:
            return func(*args, **kwargs)
        except RuntimeError:
            # Constants may have been made in float32 before. A tensor written to must not become a copy.
            name = getattr(func, "__name__", "")
            writes = name == "__setitem__" or (name.endswith("_") and not name.endswith("__"))
            dtypes = {v.dtype for v in tree_leaves((args, kwargs)) if isinstance(v, Tensor)}
            if writes or "out" in kwargs or not {torch.float32, torch.float64} <= dtypes:
                raise
            args, kwargs = tree_map(_widened, (args, kwargs))
            return func(*args, **kwargs)


def _wide(value: Any) -> Any:
    return torch.float64 if value is torch.float32 else value


def _widened(value: Any) -> Any:
    return value.double() if isinstance(value, Tensor) and value.dtype == torch.float32 else value


class ReversedSums(TorchDispatchMode):
    """A mode in which convolutions and matrix products sum over channels from the last to the first.

    The results differ by rounding only, which shows how large a model's rounding errors are.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        operator, args = func._overloadpacket, list(args)
        if operator in _SUMS:
            first, *dims = _SUMS[operator]
        elif operator is aten.convolution and args[8] == 1:
            first, dims = 0, [1, 0 if args[6] else 1]
        else:
            return func(*args, **(kwargs or {}))
        args[first : first + 2] = [t.flip(d) for t, d in zip(args[first : first + 2], dims, strict=True)]
        return func(*args, **(kwargs or {}))
