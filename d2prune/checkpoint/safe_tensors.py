"""Weights and spec as a safetensors file: nothing in it can run, and other programs read it, too.

The format (https://github.com/huggingface/safetensors) holds tensors by name and texts; the spec is the text
``prune_spec``. It has no place for ``struct`` or an optimizer, and no checksums.
"""

from __future__ import annotations

import json
import os
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from d2prune.core.cut.spec_rows import plain_json
from d2prune.errors import PruneError
from d2prune.files import atomic_write

SUFFIX = ".safetensors"
_SPEC = "prune_spec"


def is_safetensors(path: str | os.PathLike[str]) -> bool:
    """Return whether a path is of this format, by its suffix."""
    return os.fspath(path).endswith(SUFFIX)


def write_safetensors(
    weights: dict[str, Tensor], spec: dict[str, Any] | None, path: str | os.PathLike[str]
) -> None:
    """Write a state dict and a spec, whole or not at all; a tensor of two names is stored twice.

    Raises:
        PruneError: if the file can't be written, or a tensor is of a kind that the format does not know.
    """
    metadata = {"format": "pt"} if spec is None else {"format": "pt", _SPEC: json.dumps(spec)}
    with atomic_write(path, "wb") as file:
        try:
            save_file(_apart(weights), file.name, metadata)
        except (SafetensorError, ValueError, KeyError) as error:
            raise PruneError(f"'{path}' can't be written: {error}") from error


def _apart(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors on the CPU, none of which shares memory with another."""
    found, seen = {}, set()
    for name, tensor in weights.items():
        plain = tensor.detach().cpu().contiguous()
        memory = plain.untyped_storage().data_ptr()
        found[name] = plain.clone() if memory in seen else plain
        seen.add(memory)
    return found


def read_safetensors(path: str | os.PathLike[str], tensors: bool = True) -> dict[str, Any]:
    """Read ``model`` and, where the file has one, ``prune_spec``, on the CPU.

    Args:
        path: the file, which must exist.
        tensors: whether to read the tensors; else ``model`` is empty.

    Raises:
        PruneError: if the file is damaged, or its spec is no JSON.
    """
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(_SPEC)
            weights = {name: file.get_tensor(name) for name in file.keys()} if tensors else {}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise PruneError(f"'{path}' is not a readable safetensors file: {error}") from error
    data: dict[str, Any] = {"model": weights}
    if text is not None:
        try:
            data[_SPEC] = plain_json(text)
        except ValueError as error:
            raise PruneError(f"'{path}': its '{_SPEC}' is not a pruning spec: {error}") from error
    return data
