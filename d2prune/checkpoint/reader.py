"""Reading checkpoints of any kind as tensors and plain data, without executing code that a file names.

torch's own weights-only reader refuses a file that holds one unknown class. Checkpoints of pruned
forks hold a whole module under "struct": here such objects are skipped, and the rest is read.
"""

from __future__ import annotations

import logging
import os
import pickle
import struct
import warnings
import zipfile
from types import SimpleNamespace
from typing import IO, Any

import torch

from d2prune.checkpoint.refusals import missing
from d2prune.core.cut.spec import PruneSpec
from d2prune.errors import PruneError

logger = logging.getLogger(__name__)

_BUILTINS = {"set", "frozenset", "complex", "bytearray", "slice"}
_ALLOWED = {
    "collections": {"OrderedDict", "Counter"},
    "builtins": _BUILTINS,
    "__builtin__": _BUILTINS,  # their name in pickle's protocol 2, which torch.save writes
    "_codecs": {"encode"},
    "torch": {"Size", "device"},
    "torch._utils": {
        "_rebuild_tensor",
        "_rebuild_tensor_v2",
        "_rebuild_parameter",
        "_rebuild_parameter_with_state",
    },
    "numpy": {"ndarray", "dtype"},
    "numpy.core.multiarray": {"_reconstruct", "scalar"},
    "numpy._core.multiarray": {"_reconstruct", "scalar"},
}
# Everything that torch, zipfile and pickle were seen to raise on damaged files.
_DAMAGE = (
    RuntimeError, EOFError, OSError, pickle.UnpicklingError, zipfile.BadZipFile, struct.error, ValueError,
    TypeError, KeyError, IndexError, AttributeError, ImportError, AssertionError, OverflowError, MemoryError,
)  # fmt: skip


class _Skipped:
    """The stand-in for an unknown class or function; it accepts every call and ignores it."""

    what = ""  # its dotted path
    dump_patches = False  # torch's reader of the legacy format asks every module's class

    def __new__(cls, *args: object, **kwargs: object) -> _Skipped:
        return super().__new__(cls)

    def __init__(self, *args: object, **kwargs: object) -> None:
        pass

    def __call__(self, *args: object, **kwargs: object) -> _Skipped:
        return self

    def __setstate__(self, state: object) -> None:
        pass

    def __setitem__(self, key: object, value: object) -> None:
        pass

    def append(self, item: object) -> None:
        """Ignore an item for a list subclass."""

    def extend(self, items: object) -> None:
        """Ignore items for a list subclass."""

    def add(self, item: object) -> None:
        """Ignore an item for a set subclass."""


class _Unpickler(pickle.Unpickler):
    """An unpickler that builds only classes in ``_ALLOWED``, and records all others in ``skipped``."""

    skipped: set[str]

    def find_class(self, module: str, name: str) -> Any:
        if name in _ALLOWED.get(module, ()) or _is_dtype(module, name):
            return super().find_class(module, name)
        self.skipped.add(f"{module}.{name}")
        return type("_Skipped", (_Skipped,), {"what": f"{module}.{name}"})


def _is_dtype(module: str, name: str) -> bool:
    if module == "torch":
        return isinstance(getattr(torch, name, None), torch.dtype)
    return module == "numpy.dtypes" and name.endswith("DType") and name.isidentifier()


def kind_of(value: object) -> str:
    """Return the type of a value from a file in words; for a skipped class its dotted path in the file."""
    if isinstance(value, _Skipped):
        return f"a {value.what}, which is not executed"
    return f"a {type(value).__name__}"


def read_checkpoint(path: str | os.PathLike[str], *, mmap: bool = False) -> dict[str, Any]:
    """Read a .pth file: state dict, spec, optimizer and other plain data, on the CPU.

    A bare state dict is returned as ``{"model": state_dict}``. ``struct``, and every entry of an unknown
    class, is left out.

    Args:
        path: a file written by ``torch.save``, in any of its formats.
        mmap: whether to leave tensors on disk until they are used, if the format allows it.

    Raises:
        PruneError: if there is no such file, or it is damaged or no checkpoint.
    """
    skipped: set[str] = set()

    class Unpickler(_Unpickler):
        pass

    Unpickler.skipped = skipped

    def load(file: IO[bytes], **kwargs: Any) -> Any:
        return Unpickler(file, **kwargs).load()

    module = SimpleNamespace(Unpickler=Unpickler, load=load, __name__="d2prune.checkpoint.reader")
    data = _guarded(
        path,
        lambda: torch.load(
            path, map_location="cpu", pickle_module=module, weights_only=False, mmap=mmap or None
        ),
    )
    return _entries(path, data, skipped)


def read_pickle(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a .pkl file of Detectron or Detectron2's model zoo: numpy arrays and plain data.

    Raises:
        PruneError: as :func:`read_checkpoint` does.
    """
    skipped: set[str] = set()

    def load() -> Any:
        with open(path, "rb") as file:
            unpickler = _Unpickler(file, encoding="latin1")
            unpickler.skipped = skipped
            return unpickler.load()

    return _entries(path, _guarded(path, load), skipped, bare_name=None)


def read_spec(path: str | os.PathLike[str]) -> PruneSpec | None:
    """Read the spec in a checkpoint, without tensors if the format allows it; return None if it has none."""
    if os.fspath(path).endswith(".pkl"):
        return None
    mmap = zipfile.is_zipfile(path) if os.path.isfile(path) else False
    data = read_checkpoint(path, mmap=mmap).get("prune_spec")
    return PruneSpec.from_dict(data) if data is not None else None


def _guarded(path: str | os.PathLike[str], load: Any) -> Any:
    if not os.path.isfile(path):
        raise missing(path)
    try:
        with warnings.catch_warnings():  # the legacy format compares sources, with _Skipped's own
            warnings.simplefilter("ignore", torch.serialization.SourceChangeWarning)
            return load()
    except _DAMAGE as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else ""
        raise PruneError(
            f"'{path}' is not a readable checkpoint (damaged or truncated?): {type(error).__name__}: {first}"
        ) from error


def _entries(
    path: str | os.PathLike[str], data: Any, skipped: set[str], bare_name: str | None = "model"
) -> dict[str, Any]:
    if not isinstance(data, dict):
        raise PruneError(f"'{path}' is not a readable checkpoint: it holds {kind_of(data)}, not a dict")
    skipped = skipped - {"d2prune.checkpoint.struct.rebuild_struct"}  # expected, in every file of ours
    left_out = [key for key, value in data.items() if isinstance(value, _Skipped)]
    if skipped:
        logger.info(
            "'%s': skipped, not executed: %s%s",
            path,
            ", ".join(sorted(skipped)[:5]),
            f" and {len(skipped) - 5} more" if len(skipped) > 5 else "",
        )
    data = {key: value for key, value in data.items() if key not in left_out}
    return data if bare_name is None or "model" in data else {bare_name: data}
