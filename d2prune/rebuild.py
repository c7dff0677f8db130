"""Rebuilding: resizing a freshly built model to a pruned model's widths, by its spec."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TypeVar

from torch import nn

from d2prune.adapters import Adapter, find_adapter
from d2prune.core.cut.spec import PruneSpec, compose
from d2prune.core.cut.surgery import resize
from d2prune.core.layers.kinds import Keep, axis_width, has_inputs
from d2prune.core.literals.changes import apply_changes, check_changes
from d2prune.core.literals.version1 import install
from d2prune.errors import PruneError

SPEC = "prune_spec"  # the attribute of a pruned model that holds its spec
Model = TypeVar("Model", bound=nn.Module)


def spec_of_model(model: nn.Module) -> PruneSpec | None:
    """Return the spec that ``model`` was pruned or rebuilt by; None for an unpruned model."""
    spec = getattr(model, SPEC, None)
    if isinstance(spec, dict):  # of an unpickled model
        return PruneSpec.from_dict(spec)
    return spec if isinstance(spec, PruneSpec) else None


def rebuild(model: Model, spec: PruneSpec) -> Model:
    """Resize an unpruned model to ``spec``, in place; kept channels keep their weights.

    Nothing is traced and nothing unpickled. Layers that only training builds (a BlendMask's semantic
    branch, with MODEL.BASIS_MODULE.LOSS_ON) may be missing, or new; new ones are cut to fit their input.

    Raises:
        PruneError: if the spec was made for another model, or ``model`` is pruned already.
    """
    if spec.base != type(model).__name__:
        raise PruneError(f"the pruning spec is of a {spec.base}; the model is a {type(model).__name__}")
    if spec_of_model(model) is not None:
        raise PruneError(f"this {spec.base} is pruned already: rebuild a freshly built one")
    return _apply(model, spec, spec)


def prune_further(model: Model, spec: PruneSpec) -> Model:
    """Cut ``model``, pruned before or not, in place by a spec that was made for its present widths."""
    before = spec_of_model(model)
    return _apply(model, spec, _compose(model, before, spec) if before is not None else spec)


def _apply(model: Model, spec: PruneSpec, recorded: PruneSpec) -> Model:
    adapter = find_adapter(model) or Adapter()
    check_changes(model, spec.code)
    resize(model, _fit(model, spec, adapter.training_only(model)))
    apply_changes(model, spec.code)
    install(model, recorded.corrections)
    setattr(model, SPEC, recorded)
    adapter.after_resize(model)
    return model


def _belongs(name: str, branch: str) -> bool:
    return f"{name}.".startswith(f"{branch}.")


def _inside(model: nn.Module, branch: str) -> list[str]:
    return [n for n, m in model.named_modules() if _belongs(n, branch) and has_inputs(m)]


def _compose(model: nn.Module, before: PruneSpec, spec: PruneSpec) -> PruneSpec:
    """Compose ``before`` and ``spec``; training-only layers may have been added or dropped since."""
    if before.corrections:
        raise PruneError(
            f"this {before.base} was pruned by a spec of version 1, whose corrections can't be pruned "
            "further: prune the unpruned model again"
        )
    both = compose(before, spec)
    layers, widths = dict(both.layers), dict(both.widths)
    for branch, source in (find_adapter(model) or Adapter()).training_only(model).items():
        inside = _inside(model, branch)
        for name in [n for n in layers if _belongs(n, branch) and not inside]:
            del layers[name], widths[name]
        kept = layers[source].out if source in layers else None
        if inside and kept is not None:
            first = inside[0]
            layers[first] = dataclasses.replace(layers.get(first, Keep()), inp=kept)
            widths[first] = (widths.get(first, (None, None))[0], widths[source][0])
    return dataclasses.replace(both, layers=layers, widths=widths)


def _fit(model: nn.Module, spec: PruneSpec, branches: Mapping[str, str]) -> PruneSpec:
    """Return the part of ``spec`` for layers that ``model`` has, with its new training-only layers added."""
    present = {name: module for name, module in model.named_modules()}

    def missing(name: str) -> bool:
        return name not in present and any(_belongs(name, branch) for branch in branches)

    layers = {name: keep for name, keep in spec.layers.items() if not missing(name)}
    widths = {name: spec.widths[name] for name in layers}
    for branch, source in branches.items():
        inside = _inside(model, branch)
        kept = spec.layers[source].out if source in spec.layers else None
        if inside and kept is not None and not any(name in spec.layers for name in inside):
            first = inside[0]
            layers[first] = Keep(inp=kept)
            widths[first] = (None, axis_width(present[first], "in"))
    return dataclasses.replace(spec, layers=layers, widths=widths)
