"""An unpickler for checkpoints: it builds tensors and plain data, and calls and changes nothing else.

It is Python's own, not C's, so that every opcode that calls, sets or allocates can be replaced. A checkpoint
has few opcodes: its bytes are tensors, which torch reads.
"""

from __future__ import annotations

import os
import pickle
import struct
from collections import OrderedDict
from collections.abc import Mapping
from typing import IO, Any

import torch

from d2prune.checkpoint.known import KNOWN, Known, Skipped, Unbuilt, plain_keys

# Opcodes that look up or receive objects from outside of the file.
_REMOVED = (pickle.EXT1, pickle.EXT2, pickle.EXT4, pickle.NEXT_BUFFER, pickle.READONLY_BUFFER)


_PythonsOwn: Any = pickle._Unpickler  # whose methods typeshed does not list


class _Bounded:
    """A file of which no more is read, nor reserved, than there is."""

    def __init__(self, file: IO[bytes]) -> None:
        here = file.tell()
        self.size = file.seek(0, os.SEEK_END)
        file.seek(here)
        self._file, self.readline = file, file.readline

    def read(self, size: int) -> bytes:
        if size > self.size:
            raise EOFError(f"{size} bytes are named in a file of {self.size}")
        return self._file.read(size)


class _Memo(dict[int, Any]):
    """The unpickler's memo, in which unbuilt objects know their places."""

    def __setitem__(self, index: int, value: Any) -> None:
        if isinstance(value, Unbuilt):
            value.places.append(index)
        super().__setitem__(index, value)


class Unpickler(_PythonsOwn):
    """An unpickler that builds only what is in ``KNOWN``, and records all other names in ``skipped``.

    Attributes:
        skipped: dotted paths of unknown classes and functions.
        sizes: sizes of the zip file's members by name; None for other formats.
        claimed: in other formats, the bytes of each storage that was named, by its key.
    """

    skipped: set[str]
    sizes: Mapping[str, int] | None = None
    claimed: dict[object, int]
    memo: dict[int, Any]
    dispatch = {op: load for op, load in _PythonsOwn.dispatch.items() if bytes([op]) not in _REMOVED}

    def __init__(self, file: IO[bytes], **kwargs: Any) -> None:
        bounded = _Bounded(file)
        super().__init__(bounded, **kwargs)
        self.memo = _Memo()
        self.claimed = getattr(self, "claimed", {})  # a class for one file's pickles has one for all
        self._size = bounded.size

    def find_class(self, module: str, name: str) -> Any:
        """Return what stands for a name of the file, and import nothing.

        Args:
            module: the module's dotted path.
            name: the name in it.
        """
        known = KNOWN.get(module, {}).get(name)
        dtype = vars(torch).get(name) if module == "torch" else None
        if known is not None or isinstance(dtype, torch.dtype):
            return known or dtype
        self.skipped.add(f"{module}.{name}")
        return Skipped(f"{module}.{name}")

    def _instantiate(self, kind: Any, args: Any) -> None:
        self.append(_called(kind, tuple(args)))

    def _call(self) -> None:
        args = self.stack.pop()
        self.stack[-1] = _called(self.stack[-1], args)

    def _call_with_names(self) -> None:
        names = self.stack.pop()
        args = self.stack.pop()
        if names and isinstance(self.stack[-1], Known):
            raise pickle.UnpicklingError("a call with named arguments")
        self.stack[-1] = _called(self.stack[-1], args)

    def _build(self) -> None:
        """Give an object its state; none is taken by what is not made for it."""
        state, target = self.stack.pop(), self.stack[-1]
        if isinstance(target, Unbuilt):
            self.stack[-1] = target.built(state)
            for place in target.places:
                self.memo[place] = self.stack[-1]
            target.places.clear()
        elif isinstance(target, OrderedDict):
            _set_versions(target, state)
        elif not isinstance(target, Skipped):
            raise pickle.UnpicklingError(f"a state for a {type(target).__name__}")

    def _extend_list(self) -> None:
        items = self.pop_mark()
        self._onto(list).extend(items)

    def _append_item(self) -> None:
        item = self.stack.pop()
        self._onto(list).append(item)

    def _add_items(self) -> None:
        items = plain_keys(self.pop_mark())
        self._onto(set).update(items)

    def _set_item(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._onto(dict)[plain_keys((key,))[0]] = value

    def _set_items(self) -> None:
        items = self.pop_mark()
        keys, target = plain_keys(items[::2]), self._onto(dict)
        for key, value in zip(keys, items[1::2], strict=True):
            target[key] = value

    def _onto(self, kind: type) -> Any:
        """Return the object that takes items: the stack's last, or one to throw away for a stand-in."""
        target = self.stack[-1]
        if isinstance(target, Skipped):
            return kind()
        if not isinstance(target, kind):
            raise pickle.UnpicklingError(f"items for a {type(target).__name__}")
        return target

    def _read_bytearray(self) -> None:
        (size,) = struct.unpack("<Q", self.read(8))
        self.append(bytearray(self.read(size)))

    def _load_storage(self) -> None:
        saved = self.stack.pop()
        if not isinstance(saved, tuple) or not saved or not isinstance(saved[0], (str, bytes)):
            raise pickle.UnpicklingError("a storage's entry is malformed")
        if saved[0] in ("module", b"module"):  # a class, whose source torch's legacy format compares
            return self.append(_called(saved[1], ()))
        if len(saved) > 1 and isinstance(saved[1], Skipped):  # of 8-bit floats, say
            return self.append(saved[1])
        self._check_storage(*saved[1:5])
        self.append(self.persistent_load(saved))

    def _check_storage(self, kind: Any, key: Any, location: object, numel: Any) -> None:
        """Refuse a storage that is larger than what the file has for it: torch would allocate it."""
        if type(numel) is not int or numel < 0 or not isinstance(key, (str, int)):
            raise pickle.UnpicklingError("a storage's entry is malformed")
        size = numel * torch._utils._element_size(kind.dtype)
        if self.sizes is not None:
            held = self.sizes.get(f"data/{key!s}", -1)
        else:
            self.claimed[key] = size
            size, held = sum(self.claimed.values()), self._size
        if size > held:
            raise pickle.UnpicklingError(f"storage {key!r} has {held} bytes in the file, {size} are named")

    for _op, _load in {
        pickle.REDUCE: _call,
        pickle.NEWOBJ: _call,
        pickle.NEWOBJ_EX: _call_with_names,
        pickle.BUILD: _build,
        pickle.APPEND: _append_item,
        pickle.APPENDS: _extend_list,
        pickle.ADDITEMS: _add_items,
        pickle.SETITEM: _set_item,
        pickle.SETITEMS: _set_items,
        pickle.BYTEARRAY8: _read_bytearray,
        pickle.BINPERSID: _load_storage,
    }.items():
        dispatch[_op[0]] = _load
    del _op, _load


def _called(kind: Any, args: Any) -> Any:
    if isinstance(kind, Skipped):
        return kind
    if not isinstance(kind, Known) or not isinstance(args, tuple):
        raise pickle.UnpicklingError(f"a call of a {type(kind).__name__}")
    return kind.make(*args)


def _set_versions(weights: OrderedDict[str, Any], state: Any) -> None:
    """Attach the versions of a state dict's modules, by which modules tell old weights from new ones."""
    given = state.get("_metadata") if isinstance(state, dict) else None
    rows = given.items() if isinstance(given, dict) else ()
    versions = [
        (name, {"version": row["version"]})
        for name, row in rows
        if isinstance(name, str) and isinstance(row, dict) and type(row.get("version")) is int
    ]
    if given is not None:
        weights._metadata = OrderedDict(versions)  # type: ignore[attr-defined]
