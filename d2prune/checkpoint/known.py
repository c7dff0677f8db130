"""The classes and functions that a checkpoint may name, each in a form that only builds plain data.

What a file gets by a name is never the class or function itself: a file can set attributes.
"""

from __future__ import annotations

import math
import pickle
from collections import Counter, OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

_NUMBERS = {"b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8", "c8", "c16"}
_PLAIN = (None, None, None, -1, -1, 0)  # a dtype's state behind its byte order: no fields, no flags
_LEAVES = (str, bytes, int, float, complex, type(None), torch.dtype, torch.device, torch.Size, frozenset)


class Skipped:
    """The stand-in for an unknown class or function and for all that is made of it.

    Attributes:
        what: its dotted path in the file, or what it stands for.
        why: what does not happen to it.
    """

    __slots__ = ("what", "why")

    def __init__(self, what: str, why: str = "is not executed") -> None:
        self.what, self.why = " ".join(what.split())[:200], why


class Unbuilt(Skipped):
    """An object before its state, by which it is replaced.

    Attributes:
        places: its indices in the unpickler's memo.
    """

    __slots__ = ("places",)

    def __init__(self, what: str) -> None:
        super().__init__(what, "is not whole")
        self.places: list[int] = []

    def built(self, state: Any) -> object:
        """Return the object that ``state`` describes; raise UnpicklingError if there is none."""
        raise NotImplementedError


class _Dtype(Unbuilt):
    """A numpy dtype; its byte order is part of its state."""

    __slots__ = ("text",)

    def __init__(self, text: str) -> None:
        super().__init__(f"numpy.dtype {text}")
        self.text = text

    def built(self, state: Any) -> np.dtype[Any]:
        if not isinstance(state, tuple) or len(state) != 8 or state[1] not in ("<", ">", "|", "="):
            raise pickle.UnpicklingError(f"the state of a {self.what} is malformed")
        if any(type(a) is not type(b) or a != b for a, b in zip(state[2:], _PLAIN, strict=True)):
            raise pickle.UnpicklingError(f"the state of a {self.what} has fields or flags")
        return np.dtype(state[1] + self.text)


class _Array(Unbuilt):
    """A numpy array; shape, dtype and bytes are its state."""

    __slots__ = ()

    def built(self, state: Any) -> object:
        if not isinstance(state, tuple) or len(state) not in (4, 5):
            raise pickle.UnpicklingError("the state of a numpy array is malformed")
        return _array(*state[-4:])


def _array(shape: Any, dtype: Any, by_columns: Any, data: Any) -> object:
    """Return a numeric array of its own memory in the machine's byte order; a stand-in for any other."""
    if isinstance(dtype, Skipped) and not isinstance(dtype, Unbuilt):
        return Skipped(f"numpy.ndarray ({dtype.what})", dtype.why)
    if isinstance(data, str):
        data = data.encode("latin1")  # written by Python 2
    if not isinstance(dtype, np.dtype) or not isinstance(data, bytes) or not _is_shape(shape):
        raise pickle.UnpicklingError("the state of a numpy array is malformed")
    if math.prod(shape) * dtype.itemsize != len(data):
        raise pickle.UnpicklingError(f"a numpy array of shape {shape} has {len(data)} bytes")
    flat = np.frombuffer(data, dtype) if data else np.empty(0, dtype)
    whole = flat.reshape(shape, order="F" if by_columns else "C")
    return whole.astype(dtype.newbyteorder("="), order="K", copy=True)


def _is_shape(shape: Any) -> bool:
    whole = isinstance(shape, tuple) and all(type(n) is int for n in shape)
    return whole and len(shape) <= 32 and all(0 <= n < 2**63 for n in shape)


def _scalar(dtype: Any, data: Any) -> object:
    array = _array((), dtype, False, data)
    return array[()] if isinstance(array, np.ndarray) else array


def _dtype(text: Any, *rest: object) -> Skipped:
    if isinstance(text, str) and text in _NUMBERS:
        return _Dtype(text)
    return Skipped(f"numpy.dtype {text!r}", "is not read: it is no kind of number")


def _reconstruct(kind: Any, *rest: object) -> Skipped:
    return _Array("numpy.ndarray") if kind is _NDARRAY else Skipped("numpy.ndarray's subclass")


def _encode(text: Any, encoding: Any) -> bytes:
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError("_codecs.encode is known with latin1 only")
    return text.encode("latin1")  # how pickle's protocol 2 writes bytes


def _tensor(storage: Any, *place: Any) -> Tensor | Skipped:
    if isinstance(storage, Skipped):
        return Skipped("torch.Tensor", "is not read")
    if not isinstance(storage, torch.storage.TypedStorage):
        raise pickle.UnpicklingError("a tensor without a storage")
    tensor: Tensor = torch._utils._rebuild_tensor(storage, *place)
    return tensor


def _tensor_v2(
    storage: Any, offset: Any, size: Any, stride: Any, requires_grad: Any, hooks: Any, metadata: Any = None
) -> Tensor | Skipped:
    if metadata:
        raise pickle.UnpicklingError("a tensor with metadata, such as a conjugate view")
    tensor = _tensor(storage, offset, size, stride)
    return tensor.requires_grad_(requires_grad is True) if isinstance(tensor, Tensor) else tensor


def _parameter(data: Any, requires_grad: Any, *rest: object) -> Tensor | Skipped:
    if isinstance(data, Skipped):
        return data
    if not isinstance(data, Tensor):
        raise pickle.UnpicklingError("a parameter without a tensor")
    return nn.Parameter(data, requires_grad is True)


def plain_keys(keys: Any) -> Any:
    """Return keys of a dict, or items of a set, as they are.

    Raises:
        pickle.UnpicklingError: if one is not plain. To hash deeply nested tuples overflows C's stack.
    """
    flat = [part for key in keys for part in (key if type(key) is tuple else (key,))]
    for key in flat:
        if not isinstance(key, (*_LEAVES, Skipped, Tensor, np.generic)):
            raise pickle.UnpicklingError(f"a {type(key).__name__} as a key")
    return keys


def _pairs(items: Any = ()) -> OrderedDict[Any, Any]:
    plain_keys(items if isinstance(items, dict) else [key for key, _ in items])
    return OrderedDict(items)


def _size(sizes: Any = ()) -> torch.Size:
    return torch.Size(sizes)


class Known:
    """A name that a file may call: the function that is called instead."""

    __slots__ = ("make",)

    def __init__(self, make: Callable[..., object]) -> None:
        self.make = make


_NDARRAY = Known(lambda *rest: Skipped("numpy.ndarray"))
_BUILTINS = {
    "set": Known(lambda items=(): set(plain_keys(items))),
    "frozenset": Known(lambda items=(): frozenset(plain_keys(items))),
    "bytes": Known(lambda: b""),  # how protocol 2 writes none
    "complex": Known(lambda real, imaginary=0.0: complex(real, imaginary)),
}
_MULTIARRAY = {"_reconstruct": Known(_reconstruct), "scalar": Known(_scalar)}
KNOWN = {
    "collections": {"OrderedDict": Known(_pairs), "Counter": Known(lambda items=(): Counter(_pairs(items)))},
    "builtins": _BUILTINS,
    "__builtin__": _BUILTINS,  # their name in pickle's protocol 2, which torch.save writes
    "_codecs": {"encode": Known(_encode)},
    "torch": {"Size": Known(_size), "device": Known(lambda *parts: torch.device(*parts))},
    "torch._utils": {
        "_rebuild_tensor": Known(_tensor),
        "_rebuild_tensor_v2": Known(_tensor_v2),
        "_rebuild_parameter": Known(_parameter),
        "_rebuild_parameter_with_state": Known(_parameter),
    },
    "numpy": {"ndarray": _NDARRAY, "dtype": Known(_dtype)},
    "numpy.core.multiarray": _MULTIARRAY,
    "numpy._core.multiarray": _MULTIARRAY,
}
