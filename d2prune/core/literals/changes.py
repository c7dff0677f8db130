"""Changes to a pruned model besides its layers' widths, as plain data, and their application."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import nn

from d2prune.core.literals.rewriting import change_code, changed_class
from d2prune.core.literals.scales import Ranges, scale_rows
from d2prune.core.literals.written import CallChange
from d2prune.errors import PruneError

Attributes = Mapping[str, Mapping[str, tuple[int, int]]]
"""By module, its integer attributes by name: (before, after)."""


@dataclass(frozen=True)
class CodeChanges:
    """The changes that a model needs besides its layers' widths, as plain data.

    Attributes:
        attributes: by module, integer attributes to set: (before, after).
        scales: by layer, ranges of output channels whose weights to multiply: (start, stop, factor).
        calls: by module, the calls in its code to make with other numbers.
    """

    attributes: Attributes = field(default_factory=dict)
    scales: Mapping[str, Ranges] = field(default_factory=dict)
    calls: Mapping[str, tuple[CallChange, ...]] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.attributes or self.scales or self.calls)


def set_attributes(model: nn.Module, attributes: Attributes) -> None:
    """Set integer attributes of modules to their second values."""
    for path, values in attributes.items():
        for name, (_, after) in values.items():
            setattr(model.get_submodule(path), name, after)


def check_changes(model: nn.Module, changes: CodeChanges) -> None:
    """Raise PruneError if ``model`` is not one that ``changes`` were made for."""
    modules = dict(model.named_modules())
    for path in (*changes.attributes, *changes.scales, *changes.calls):
        if path not in modules:
            kind = type(model).__name__
            raise PruneError(f"the pruning spec changes '{path}', which this {kind} does not have")
    for path, values in changes.attributes.items():
        for name, (before, _) in values.items():
            found = getattr(modules[path], name, None)
            whole = isinstance(found, int) and not isinstance(found, bool)  # comparing a tensor gives one
            if not whole or found != before:
                shown = found if whole or found is None else f"a {type(found).__name__}"
                raise PruneError(
                    f"attribute {name} of '{path}' is {shown}; the pruning spec was made for {before}"
                )
    for path, calls in changes.calls.items():
        changed_class(modules[path], calls)


def apply_changes(model: nn.Module, changes: CodeChanges) -> None:
    """Make all changes; those of calls replace earlier ones."""
    set_attributes(model, changes.attributes)
    for path, ranges in changes.scales.items():
        scale_rows(model.get_submodule(path), ranges)
    for path, calls in changes.calls.items():
        change_code(model.get_submodule(path), calls)
