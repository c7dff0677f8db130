"""Changes to what a checkpoint holds: its tensors, their names, and the entries beside them.

Each changes the data in place, and says whether a file with it must load, must be refused, or may do either.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from random import Random
from typing import Any

import torch
from torch import Tensor

from tests.checkpoint.hostile import Reduce

LOADS, REFUSED, EITHER = "must load", "must be refused", "may load"
_COUNTED = "num_batches_tracked"
DTYPES = [
    torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.float8_e4m3fn, torch.float8_e5m2,
    torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64, torch.bool, torch.complex64,
]  # fmt: skip
_BAD = (float("nan"), float("inf"), float("-inf"))
_FINE = (0.0, -0.0, 1e-45, 3.4028234e38, -1.0, 123.25)


def _pick(rng: Random, weights: dict[str, Any], floats: bool | None = None) -> str:
    """A name whose tensor holds floats, or integers, or either."""
    return rng.choice([n for n, t in weights.items() if floats is None or t.is_floating_point() is floats])


def dtype(rng: Random, data: dict[str, Any]) -> str:
    weights = data["model"]
    name, kind = _pick(rng, weights), rng.choice(DTYPES)
    old, new = weights[name], weights[name].to(kind)
    weights[name] = new
    if kind.is_complex or kind == torch.bool or old.is_floating_point() != kind.is_floating_point:
        return REFUSED
    if new.element_size() == 1 and new.is_floating_point():
        return REFUSED  # they are not read
    return LOADS if new.double().isfinite().all() else REFUSED


def shape(rng: Random, data: dict[str, Any]) -> str:
    weights = data["model"]
    name = _pick(rng, weights, floats=True)
    old = weights[name]
    ways = (
        old[None],
        old[1:],
        torch.cat([old, old]),
        old.flatten(),
        old[:0],
        old.sum(),
        old.movedim(0, -1),
        old[..., None],
    )
    weights[name] = rng.choice(ways)
    return LOADS if weights[name].shape == old.shape else REFUSED


def layout(rng: Random, data: dict[str, Any]) -> str:
    """The same shape by other strides, offsets and storages."""
    weights = data["model"]
    name = _pick(rng, weights, floats=True)
    old = weights[name]
    column = old.contiguous().movedim(0, -1).contiguous().movedim(-1, 0)
    tail = torch.cat([torch.ones(7), old.flatten()])[7:].view(old.shape)
    one = torch.full((), 0.5).expand(old.shape)
    weights[name] = rng.choice((column, tail, one, torch.nn.Parameter(old), old.clone().requires_grad_()))
    return LOADS


def not_finite(rng: Random, data: dict[str, Any]) -> str:
    """Also by a number that is finite in the file's dtype, and not in the model's."""
    weights = data["model"]
    name = _pick(rng, weights, floats=True)
    new = weights[name].to(rng.choice((torch.float32, torch.float64, torch.bfloat16))).clone()
    bad = rng.choice((*_BAD, 1e300, -1e39) if new.dtype == torch.float64 else _BAD)
    new.view(-1)[rng.randrange(new.numel())] = bad
    weights[name] = new
    return REFUSED


def values(rng: Random, data: dict[str, Any]) -> str:
    weights = data["model"]
    name = _pick(rng, weights)
    new = weights[name].clone()
    fine = rng.choice(_FINE) if new.is_floating_point() else rng.choice((0, -5, 2**62))
    new.view(-1)[rng.randrange(new.numel())] = fine
    weights[name] = new
    return LOADS


def as_array(rng: Random, data: dict[str, Any]) -> str:
    weights = data["model"]
    name = _pick(rng, weights, floats=True)
    array = weights[name].numpy()
    kind = rng.choice(("f4", "f4", ">f4", "f8", "f2", "i4", "u2", "O", "U5", "c8", "?"))
    weights[name] = array.astype(kind)
    return LOADS if kind in ("f4", ">f4", "f8", "f2") else REFUSED


def no_tensor(rng: Random, data: dict[str, Any]) -> str:
    weights = data["model"]
    odd = (
        None,
        1.0,
        "x",
        [1.0],
        {},
        torch.Size([1]),
        torch.float32,
        Reduce("evil"),
        b"x",
        torch.device("cpu"),
    )
    weights[_pick(rng, weights)] = rng.choice(odd)
    return REFUSED


def sparse(rng: Random, data: dict[str, Any]) -> str:
    name = _pick(rng, data["model"], floats=True)
    data["model"][name] = data["model"][name].to_sparse()
    return REFUSED


def drop(rng: Random, data: dict[str, Any]) -> str:
    name = _pick(rng, data["model"])
    del data["model"][name]
    return LOADS if name.endswith(_COUNTED) else REFUSED


def add(rng: Random, data: dict[str, Any]) -> str:
    names = (
        "x",
        "",
        "stem",
        "head.weight.",
        "module.head.weight",
        1,
        ("a", 1),
        None,
        b"head.weight",
        f"x.{_COUNTED}",
    )
    name = rng.choice(names)
    data["model"][name] = torch.ones(rng.choice(((), (1,), (2, 2))))
    return LOADS if name == f"x.{_COUNTED}" else REFUSED


def rename(rng: Random, data: dict[str, Any]) -> str:
    weights = data["model"]
    name = _pick(rng, weights, floats=True)
    weights[rng.choice((name + "x", "module." + name, name.upper(), name.replace(".", "_") + "_"))] = (
        weights.pop(name)
    )
    return REFUSED


def swap(rng: Random, data: dict[str, Any]) -> str:
    weights = data["model"]
    one, other = rng.sample(list(weights), 2)
    a, b = weights[one], weights[other]
    weights[one], weights[other] = b, a
    return LOADS if a.shape == b.shape and a.dtype == b.dtype else REFUSED


def share(rng: Random, data: dict[str, Any]) -> str:
    """One tensor under two names."""
    weights = data["model"]
    one, other = rng.sample(list(weights), 2)
    fits = weights[one].shape == weights[other].shape and weights[one].dtype == weights[other].dtype
    weights[one] = weights[other]
    return LOADS if fits else REFUSED


def prefixed(rng: Random, data: dict[str, Any]) -> str:
    """As a model inside DistributedDataParallel is saved."""
    data["model"] = OrderedDict((f"module.{name}", tensor) for name, tensor in data["model"].items())
    return LOADS


def versions(rng: Random, data: dict[str, Any]) -> str:
    odd = (
        None,
        {},
        [],
        {"": {"version": -1}},
        {"stem.1": {"version": 10**30}},
        {1: 2},
        {"stem.1": {}},
        {"x": 1},
    )
    data["model"]._metadata = rng.choice(odd)
    return LOADS


def no_weights(rng: Random, data: dict[str, Any]) -> str:
    if rng.random() < 0.3:
        del data["model"]
    else:
        data["model"] = rng.choice(
            (None, [], {}, "x", torch.ones(3), list(data["model"].items()), Reduce("evil"))
        )
    return REFUSED


def other_entries(rng: Random, data: dict[str, Any]) -> str:
    """What stands beside weights and spec is none of a load's business."""
    key = rng.choice(("struct", "iteration", "optimizer", "scheduler", "x", 5))
    odd = (
        None,
        -1,
        "x" * 100_000,
        [[[]]],
        Reduce("evil"),
        {1, 2},
        torch.full((2,), float("nan")),
        {"model": {}},
        2**70,
    )
    data[key] = rng.choice(odd)
    if rng.random() < 0.3:
        data.pop(rng.choice(("struct", "iteration", "optimizer")))
    return LOADS


def no_spec(rng: Random, data: dict[str, Any]) -> str:
    odd = (
        None,
        [],
        "x",
        1,
        torch.ones(1),
        Reduce("evil"),
        {},
        {"version": 2},
        list(data["prune_spec"].items()),
    )
    data["prune_spec"] = rng.choice(odd)
    return REFUSED


OF_CONTENTS: tuple[Callable[[Random, dict[str, Any]], str], ...] = (
    dtype, dtype, shape, layout, not_finite, not_finite, values, as_array, no_tensor, sparse, drop, add,
    rename, swap, share, prefixed, versions, no_weights, other_entries, no_spec,
)  # fmt: skip


def is_counted(name: str) -> bool:
    """Whether a name is of a count that a file may lack."""
    return name.endswith(_COUNTED)


def as_tensors(weights: dict[str, Any]) -> dict[str, Tensor]:
    """Weights under the names of a model, from a state dict that was written."""
    names = {n.removeprefix("module."): value for n, value in weights.items()}
    native = {
        n: v if isinstance(v, Tensor) else v.astype(v.dtype.newbyteorder("=")) for n, v in names.items()
    }
    return {name: torch.as_tensor(value) for name, value in native.items()}
