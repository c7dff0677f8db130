"""What is right of a checkpoint's load, and of a refused one."""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

import d2prune
from d2prune.checkpoint import PruningCheckpointer
from d2prune.core.cut.spec import PruneSpec
from d2prune.rebuild import rebuild, spec_of_model
from tests.core.nets import images
from tests.fuzz.contents import LOADS, REFUSED, as_tensors, is_counted
from tests.fuzz.good import Net, good
from tests.fuzz.mutations import Case
from tests.fuzz.watched import Watch, WrongError

Load = Callable[[str, nn.Module], Any]


def by_load(path: str, model: nn.Module) -> None:
    d2prune.load(path, model)


def by_checkpointer(path: str, model: nn.Module) -> None:
    PruningCheckpointer(model).load(path)


class Judge:
    """Loads cases into one model, which is made anew only after a load: refusals leave it as it was.

    Args:
        watch: what measures and counts.
        path: the file to write cases to.
        load: what is judged.
        pruned: whether the model has the spec's widths already.
    """

    def __init__(self, watch: Watch, path: Path, load: Load, pruned: bool) -> None:
        torch.manual_seed(1)
        self._watch, self._path, self._load = watch, path, load
        self._fresh = rebuild(Net(), good().spec) if pruned else Net()
        self._model = copy.deepcopy(self._fresh)

    def __call__(self, case: Case, name: str) -> bool:
        """Whether the case loaded; raises WrongError."""
        path = self._path.with_suffix(case.suffix)
        path.write_bytes(case.content)
        model, before = self._model, marks(self._model)
        _, error = self._watch.call(name, lambda: self._load(str(path), model))
        if error is not None:
            if marks(model) != before:
                raise WrongError(f"the refusal ({error}) changed the model")
            if case.verdict == LOADS:
                raise WrongError(f"it must load: {error}")
            return False
        self._model = copy.deepcopy(self._fresh)
        if case.verdict == REFUSED:
            raise WrongError("it loaded")
        check_load(model, case, path)
        return True


def marks(model: nn.Module) -> list[Any]:
    """All that a refused load could have changed: tensors and their bits, classes, attributes, the spec."""
    tensors = [
        (
            name,
            id(t),
            t.dtype,
            t.requires_grad,
            t.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes(),
        )
        for name, t in model.state_dict(keep_vars=True).items()
    ]
    plain = (int, float, str, bool, tuple, type(None))
    modules = [
        (name, type(m), repr(m), sorted((k, repr(v)) for k, v in vars(m).items() if isinstance(v, plain)))
        for name, m in model.named_modules()
    ]
    return [*tensors, *modules, spec_of_model(model)]


def check_load(model: nn.Module, case: Case, path: Path) -> None:
    """Raise WrongError unless the model has a spec and weights that are the file's, and finite."""
    read = None if case.weights is not None and case.spec is not None else _read_by_others(path)
    spec = case.spec if case.spec is not None else (read or {}).get("prune_spec")
    found = spec_of_model(model)
    if found is None or not (spec is None or same_spec(found, spec)):
        raise WrongError(f"the model's spec is another: {found and found.to_json()[:300]}")
    weights = case.weights if case.weights is not None else (read or {}).get("model")
    _check_weights(model.state_dict(), rebuild(Net(), found).state_dict(), weights and as_tensors(weights))
    if found == good().spec:
        _check_output(model)


def _read_by_others(path: Path) -> Any:
    """What the format's own reader, which executes nothing either, finds; None if it refuses the file."""
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                return {"model": load_file(path), "prune_spec": json.loads(file.metadata()["prune_spec"])}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # of any kind: its reader is not what is judged
        return None


def _check_weights(
    own: dict[str, Tensor], sizes: dict[str, Tensor], weights: dict[str, Tensor] | None
) -> None:
    if own.keys() != sizes.keys():
        raise WrongError("other names than the model's")
    for name, tensor in own.items():
        if tensor.shape != sizes[name].shape or tensor.dtype != sizes[name].dtype:
            raise WrongError(f"{name} is {tensor.dtype} {tuple(tensor.shape)}")
        if not tensor.isfinite().all():
            raise WrongError(f"{name} is not finite")
        if weights is None or (name not in weights and is_counted(name)):
            continue
        if name not in weights or not same_bits(tensor, weights[name].detach().to(tensor.dtype)):
            raise WrongError(f"{name} is not as the file has it")


def same_bits(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are equal, and zeros have the same signs."""
    if one.shape != other.shape:
        return False
    return one.contiguous().view(-1).view(torch.uint8).equal(other.contiguous().view(-1).view(torch.uint8))


@torch.no_grad()
def _check_output(model: nn.Module) -> None:
    """A model of the right spec computes what the pruned one does with the same weights."""
    like = copy.deepcopy(good().model)
    like.load_state_dict(model.state_dict())
    if not torch.equal(model.eval()(images()).nan_to_num(), like.eval()(images()).nan_to_num()):
        raise WrongError("it computes something else")


def same_spec(spec: PruneSpec, data: Any) -> bool:
    """Whether a spec holds exactly what plain data does; empty parts need not be there."""
    if not isinstance(data, dict):
        return False
    return alike(_filled(spec.to_dict()), _filled(data))


def _filled(data: dict[Any, Any]) -> dict[Any, Any]:
    return {key: value for key, value in data.items() if value or key in ("version", "base", "layers")}


def alike(one: Any, other: Any) -> bool:
    """Whether two trees are equal; True is no number."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(alike(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        return len(one) == len(other) and all(map(alike, one, other))
    numbers = type(one) in (int, float) and type(other) in (int, float)
    return (one == other or (one != one and other != other)) and (numbers or type(one) is type(other))
