"""The coverage report: what happened to every layer, with the reason where one was left whole."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal

from torch import nn

from d2prune.core.layers.kinds import axis_width, is_layer
from d2prune.core.plan.costs import CostModel
from d2prune.core.types import OUTPUT, SINGLE, Coverage, PrunePlan

UNREACHED = "was not reached by the trace"


def coverage(model: nn.Module, pruned: nn.Module, plan: PrunePlan, costs: CostModel) -> tuple[Coverage, ...]:
    """Return one row per layer of ``model`` that holds parameters or frozen statistics, in its order."""
    whys = dict(_whys(plan))
    whys = {**_shared(model, whys), **whys}
    rows: list[Coverage] = []
    for name, module in model.named_modules():
        if not _has_tensors(module):
            continue
        if not is_layer(module):
            rows.extend(_bare(name, module, pruned.get_submodule(name), whys))
            continue
        before, after = axis_width(module, "out"), axis_width(pruned.get_submodule(name), "out")
        why = whys.get(name, UNREACHED) if before == after else ""
        macs = int(costs.layer(name, "macs", {}))
        rows.append(Coverage(name, before, after, _status(before, after, why), why, macs))
    return tuple(rows)


def _whys(plan: PrunePlan) -> Iterator[tuple[str, str]]:
    for group, kept, reason in zip(plan.groups, plan.kept, plan.reasons, strict=True):
        whole = len(kept) == group.units
        why = reason or ("the amount was reached without it" if whole else "")
        for member in group.members:
            if member.axis == "out":
                yield member.layer, why


def _shared(model: nn.Module, whys: Mapping[str, str]) -> dict[str, str]:
    """Return the reasons of layers that share the weights of a layer with a reason."""
    owned = [(n, p) for n, m in model.named_modules() for p in m._parameters.values() if p is not None]
    said = {id(parameter): whys[name] for name, parameter in owned if name in whys}
    return {name: said[id(parameter)] for name, parameter in owned if id(parameter) in said}


def _status(before: int, after: int, why: str) -> Literal["pruned", "protected", "skipped"]:
    if after < before:
        return "pruned"
    return "protected" if why.startswith(("protected", OUTPUT, SINGLE)) else "skipped"


def _has_tensors(module: nn.Module) -> bool:
    buffers = module._buffers if is_layer(module) else {}
    tensors: Mapping[str, object] = {**module._parameters, **buffers}
    passing = module._non_persistent_buffers_set
    return any(tensor is not None and name not in passing for name, tensor in tensors.items())


def _bare(name: str, module: nn.Module, pruned: nn.Module, whys: Mapping[str, str]) -> Iterator[Coverage]:
    """Yield the rows of a module that is no layer: one per parameter with channels, one for the rest."""
    left = []
    for leaf, parameter in module.named_parameters(recurse=False):
        path = f"{name}.{leaf}" if name else leaf
        if path not in whys:
            left.append(parameter)
            continue
        before, after = axis_width(parameter, "out"), axis_width(pruned.get_parameter(leaf), "out")
        why = whys[path] if before == after else ""
        yield Coverage(path, before, after, _status(before, after, why), why, 0)
    if left:
        scalar = all(p.numel() == 1 for p in left)
        foreign = f"{type(module).__name__} is not a layer d2prune can cut"
        why = "holds no channels" if scalar else foreign
        yield Coverage(name, int(scalar), int(scalar), "skipped", why, 0)
