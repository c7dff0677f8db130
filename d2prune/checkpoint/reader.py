"""Reading checkpoints of any kind as tensors and plain data, without executing code that a file names.

torch's own weights-only reader refuses a file that holds one unknown class. Checkpoints of pruned
forks hold a whole module under "struct": here such objects are skipped, and the rest is read.
"""

from __future__ import annotations

import logging
import os
import pickle
import struct
import zipfile
from types import SimpleNamespace
from typing import IO, Any

import torch

from d2prune.checkpoint.container import check_container
from d2prune.checkpoint.known import Skipped, plain_keys
from d2prune.checkpoint.refusals import missing
from d2prune.checkpoint.safe_tensors import is_safetensors, read_safetensors
from d2prune.checkpoint.unpickler import Unpickler
from d2prune.core.cut.spec import PruneSpec
from d2prune.errors import PruneError

logger = logging.getLogger(__name__)

# Everything that torch, zipfile and pickle were seen to raise on damaged files.
_DAMAGE = (
    RuntimeError, EOFError, OSError, pickle.UnpicklingError, zipfile.BadZipFile, struct.error, ValueError,
    TypeError, KeyError, IndexError, AttributeError, ImportError, AssertionError, OverflowError, MemoryError,
)  # fmt: skip


def kind_of(value: object) -> str:
    """Return the type of a value from a file in words; for a skipped class its dotted path in the file."""
    if isinstance(value, Skipped):
        return f"a {value.what}, which {value.why}"
    return f"a {type(value).__name__}"


def read_checkpoint(path: str | os.PathLike[str], *, mmap: bool = False) -> dict[str, Any]:
    """Read a .pth or .safetensors file: state dict, spec, optimizer and other plain data, on the CPU.

    A bare state dict is returned as ``{"model": state_dict}``. ``struct``, and every entry of an unknown
    class, is left out.

    Args:
        path: a file written by ``torch.save``, in any of its formats, or one that ends with .safetensors.
        mmap: whether to leave tensors on disk until they are used, if the format allows it. Their
            checksums are not compared then.

    Raises:
        PruneError: if there is no such file, or it is damaged or no checkpoint.
    """
    skipped: set[str] = set()
    if is_safetensors(path):
        data = _guarded(path, lambda: read_safetensors(path, tensors=not mmap))
    else:
        data = _guarded(path, lambda: _load(path, skipped, mmap))
    return _entries(path, data, skipped)


def _load(path: str | os.PathLike[str], skipped: set[str], mmap: bool) -> Any:
    members = check_container(path, tensors=not mmap)

    class OfFile(Unpickler):
        sizes = members

    OfFile.skipped, OfFile.claimed = skipped, {}

    def load(file: IO[bytes], **kwargs: Any) -> Any:
        value = OfFile(file, **kwargs).load()
        _check_listed(value, OfFile.claimed)
        return value

    module = SimpleNamespace(Unpickler=OfFile, load=load, __name__=__name__)
    mapped = (mmap and members is not None) or None
    return torch.load(path, map_location="cpu", pickle_module=module, weights_only=False, mmap=mapped)


def _check_listed(value: Any, claimed: dict[object, int]) -> None:
    """Check the list of storages behind the data of torch's older format: torch fills only those in it."""
    if claimed and not (isinstance(value, list) and claimed.keys() <= set(plain_keys(value))):
        raise pickle.UnpicklingError("tensors are named that the file does not hold")


def read_pickle(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a .pkl file of Detectron or Detectron2's model zoo: numpy arrays and plain data.

    Raises:
        PruneError: as :func:`read_checkpoint` does.
    """
    skipped: set[str] = set()

    def load() -> Any:
        with open(path, "rb") as file:
            unpickler = Unpickler(file, encoding="latin1")
            unpickler.skipped = skipped
            return unpickler.load()

    return _entries(path, _guarded(path, load), skipped, bare_name=None)


def read_spec(path: str | os.PathLike[str]) -> PruneSpec | None:
    """Read the spec in a checkpoint, without tensors if the format allows it; return None if it has none."""
    if os.fspath(path).endswith(".pkl"):
        return None
    return spec_in(path, read_checkpoint(path, mmap=True))


def spec_in(path: str | os.PathLike[str], checkpoint: dict[str, Any]) -> PruneSpec | None:
    """Return the spec among a checkpoint's entries; None if it has none.

    Args:
        path: the file, for messages.
        checkpoint: what :func:`read_checkpoint` returned.

    Raises:
        PruneError: naming the file, if the spec is malformed.
    """
    if "prune_spec" not in checkpoint:
        return None
    try:
        return PruneSpec.from_dict(checkpoint["prune_spec"])
    except PruneError as error:
        raise PruneError(f"'{path}': {error}") from error


def _guarded(path: str | os.PathLike[str], load: Any) -> Any:
    if not os.path.isfile(path):
        raise missing(path)
    try:
        return load()
    except PruneError:
        raise
    except _DAMAGE as error:
        first = str(error).strip().splitlines()[0][:300] if str(error).strip() else ""
        raise PruneError(
            f"'{path}' is not a readable checkpoint (damaged or truncated?): {type(error).__name__}: {first}"
        ) from error


def _entries(
    path: str | os.PathLike[str], data: Any, skipped: set[str], bare_name: str | None = "model"
) -> dict[str, Any]:
    if not isinstance(data, dict):
        raise PruneError(f"'{path}' is not a readable checkpoint: it holds {kind_of(data)}, not a dict")
    skipped = skipped - {"d2prune.checkpoint.struct.rebuild_struct"}  # expected, in every file of ours
    left_out = [key for key, value in data.items() if isinstance(value, Skipped)]
    if skipped:
        logger.info(
            "'%s': skipped, not executed: %s%s",
            path,
            ", ".join(sorted(skipped)[:5]),
            f" and {len(skipped) - 5} more" if len(skipped) > 5 else "",
        )
    if "prune_spec" in data and not isinstance(data["prune_spec"], dict):
        raise PruneError(f"'{path}': 'prune_spec' is {kind_of(data['prune_spec'])}; expected a dict")
    for key in left_out:
        del data[key]
    return data if bare_name is None or "model" in data else {bare_name: data}
