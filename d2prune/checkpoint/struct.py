"""The whole module inside a checkpoint, under "struct", sharing its tensors with the state dict.

``torch.load(path, weights_only=False)["struct"]`` gives the module, as the forks that d2prune grew
from do. Under ``weights_only=True``, torch's default and Detectron2's, the entry reads as None: the
pickled code stays a row of bytes that nothing executes.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

try:
    from cloudpickle import Pickler
except ImportError:  # it comes with Detectron2, whose models hold what plain pickle refuses
    from pickle import Pickler

UNPICKLABLE = (pickle.PicklingError, TypeError, AttributeError, ValueError, RuntimeError)


class Struct:
    """A module that pickles as a call of :func:`rebuild_struct` on bytes and plain tensors.

    Raises:
        One of ``UNPICKLABLE``, at once, if the module holds what can't be pickled.
    """

    def __init__(self, model: nn.Module) -> None:
        buffer = io.BytesIO()
        pickler = _Pickler(buffer)
        with _sets_in_order(model):
            pickler.dump(model)
        self._payload = torch.frombuffer(bytearray(buffer.getvalue()), dtype=torch.uint8)
        self._tensors = pickler.tensors

    def __reduce__(self) -> tuple[Any, ...]:
        return rebuild_struct, (self._payload, self._tensors)


class _InOrder(set[str]):
    """A set that pickles as a plain one, in the same order in every process."""

    def __reduce__(self) -> tuple[Any, ...]:
        return set, (sorted(self),)


@contextmanager
def _sets_in_order(model: nn.Module) -> Iterator[None]:
    """While this is open, two processes pickle ``model`` to the same bytes.

    PyTorch keeps the names of buffers that are not saved in a set, whose order differs by process.
    """
    given = {module: module._non_persistent_buffers_set for module in model.modules()}
    try:
        for module, names in given.items():
            module._non_persistent_buffers_set = _InOrder(names)
        yield
    finally:
        for module, names in given.items():
            module._non_persistent_buffers_set = names


def rebuild_struct(payload: Tensor, tensors: list[Tensor]) -> nn.Module:
    """Unpickle the module. This runs code that the file names, so use it only for files you trust."""
    return _Unpickler(io.BytesIO(payload.cpu().numpy().tobytes()), tensors).load()


def skip_struct(payload: Tensor, tensors: list[Tensor]) -> None:
    """Do nothing, in place of :func:`rebuild_struct` wherever pickled code must not run."""


# By name, torch's weights-only reader finds this instead of rebuild_struct.
torch.serialization.add_safe_globals([(skip_struct, f"{__name__}.rebuild_struct")])


class _Pickler(Pickler):
    """A pickler that stores tensors separately; cloudpickle's, as AdelaiDet's BlendMask has a lambda."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file)
        self.tensors: list[Tensor] = []
        self._seen: dict[int, int] = {}

    def persistent_id(self, obj: object) -> tuple[int, bool, bool] | None:
        if not isinstance(obj, Tensor):
            return None
        if id(obj) not in self._seen:
            self._seen[id(obj)] = len(self.tensors)
            self.tensors.append(obj.detach())
        return self._seen[id(obj)], isinstance(obj, nn.Parameter), obj.requires_grad


_MOVED = {  # since spec version 1
    "d2prune.core.attention": "d2prune.core.layers.attention",
    "d2prune.core.layers": "d2prune.core.layers.kinds",
    "d2prune.core.spec": "d2prune.core.cut.spec",
}


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, tensors: list[Tensor]) -> None:
        super().__init__(file)
        self._tensors = tensors
        self._made: dict[int, Tensor] = {}

    def find_class(self, module: str, name: str) -> Any:
        return super().find_class(_MOVED.get(module, module), name)

    def persistent_load(self, key: tuple[int, bool, bool]) -> Tensor:
        index, is_parameter, requires_grad = key
        if index not in self._made:
            tensor = self._tensors[index]
            self._made[index] = nn.Parameter(tensor, requires_grad) if is_parameter else tensor
        return self._made[index]
