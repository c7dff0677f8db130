"""The search for changes that bring the numbers in a pruned model's code in line with its widths.

What a number must become is known from the trace. Most numbers come from an integer attribute of a module,
which is set. Attention's scale is corrected by factors on the weights that make the keys. All other
numbers are changed in the module's code, at the call that contains them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from d2prune.core.literals.calls import Call, NumberedCalls, Numbers, following_path
from d2prune.core.literals.changes import Attributes, CodeChanges, apply_changes, set_attributes
from d2prune.core.literals.scales import Ranges, as_ranges, asking_gradients, rows_behind, scale_rows
from d2prune.core.literals.sites import frames_of_call, locate
from d2prune.core.literals.wanted import Wanted, solved
from d2prune.core.literals.written import CallChange, UnchangeableError
from d2prune.core.types import CallKey, SizeLiteral
from d2prune.errors import MISFITS, PruneError, told

Outputs = Mapping[str, Tensor]
Run = Callable[[nn.Module], Outputs]
CLOSE = 1e-4  # of an output's largest value, in float32


def settle(model: nn.Module, wanted: Wanted, run: Run) -> CodeChanges:
    """Find the changes to ``model`` with which its code uses the numbers in ``wanted``.

    Args:
        model: a copy with its layers cut, in float32 and eval mode; it is left with the changes made.
        wanted: from :func:`new_numbers`.
        run: returns the model's outputs by name.

    Raises:
        PruneError: if no attribute explains a number and its call can't be changed.
    """
    return _Settling(model, wanted, run).changes()


Wrong = dict[CallKey, CallChange | UnchangeableError | None]
"""Calls that name other numbers than are wanted, and where they stand; None where that was not asked for."""


class _Settling:
    """The search on one model; outputs are right if they equal those of a run with all calls corrected."""

    def __init__(self, model: nn.Module, wanted: Wanted, run: Run) -> None:
        self._model, self._wanted, self._run = model, wanted, run
        self._right, self._wrong = self._corrected()

    def changes(self) -> CodeChanges:
        attributes = self._attributes() if self._wrong else {}
        scales = self._scales()
        self._right, wrong = self._corrected(locating=True, scaled=bool(scales))
        calls = _calls_changed(wrong)
        changes = CodeChanges(attributes, scales, calls)
        apply_changes(self._model, CodeChanges(calls=calls))
        if changes and not self._close(self._plain()):
            raise PruneError("numbers in the model's code can't be corrected: its outputs then differ")
        return changes

    def _corrected(self, locating: bool = False, scaled: bool = False) -> tuple[Outputs, Wrong]:
        """Run with every call corrected; return the outputs, and the calls that needed it."""
        path = [""]
        calls = _Corrected(path, self._wanted, locating, self._scaled() if scaled else set())
        with torch.no_grad(), following_path(self._model, path), calls:
            return dict(self._run(self._model)), calls.wrong

    def _plain(self) -> Outputs:
        with torch.no_grad():
            return dict(self._run(self._model))

    def _close(self, outputs: Outputs) -> bool:
        pairs = [(self._right[name], outputs[name]) for name in self._right]
        return all(
            a.shape == b.shape and (not a.numel() or bool((a - b).abs().max() <= CLOSE * a.abs().max()))
            for a, b in pairs
        )

    def _attributes(self) -> dict[str, dict[str, tuple[int, int]]]:
        """Set the attributes that explain wrong numbers and keep the outputs right; try name by name."""
        accepted: dict[str, dict[str, tuple[int, int]]] = {}
        found = solved(self._wanted, lambda leaf: int(self._model.get_submodule(leaf[0]).__dict__[leaf[1]]))
        for name in dict.fromkeys(name for _, name in found):
            some = {p: {n: v} for (p, n), v in found.items() if n == name}
            if self._stands(some):
                for path, values in some.items():
                    accepted.setdefault(path, {}).update(values)
        return accepted

    def _stands(self, attributes: Attributes) -> bool:
        """Set attributes and return whether the outputs stay right; if not, set them back."""
        set_attributes(self._model, attributes)
        try:
            if self._close(self._corrected()[0]):
                return True
        except MISFITS as error:
            told(error)  # raises the error if it is a bug in d2prune
        back = {p: {n: (b, a) for n, (a, b) in values.items()} for p, values in attributes.items()}
        set_attributes(self._model, back)
        return False

    def _scaled(self) -> set[CallKey]:
        """Return the attention calls whose heads have become narrower."""
        return {key for key, news in self._wanted.items() for new in news.values() if new.scale != 1}

    def _scales(self) -> dict[str, Ranges]:
        scales = self._ranges() if self._scaled() else {}
        kept = {path: self._model.get_submodule(path)._parameters.copy() for path in scales}
        for path, ranges in scales.items():
            scale_rows(self._model.get_submodule(path), ranges)
        if scales and self._close(self._corrected(scaled=True)[0]):
            return scales
        for path, parameters in kept.items():
            self._model.get_submodule(path)._parameters.update(parameters)
        return {}

    def _ranges(self) -> dict[str, Ranges]:
        """Return the rows of weights that make the keys of narrower heads, with their factors."""
        news = {key: next(iter(self._wanted[key].values())) for key in self._scaled()}
        names = dict.fromkeys(name for new in news.values() for name in new.producers)
        weights = {name: w for name in names if (w := self._weight(name)) is not None}
        path = [""]
        calls = _Corrected(path, self._wanted)
        with asking_gradients(weights.values()), following_path(self._model, path), calls:
            self._run(self._model)
            factors = {name: [1.0] * len(weight) for name, weight in weights.items()}
            for key, new in news.items():
                mine = {name: weights[name] for name in new.producers if name in weights}
                for name, rows in rows_behind(calls.keys[key], mine).items():
                    factors[name] = [
                        new.scale if row else f for f, row in zip(factors[name], rows, strict=True)
                    ]
        return {name: ranges for name, values in factors.items() if (ranges := as_ranges(values))}

    def _weight(self, name: str) -> Tensor | None:
        """Return the weight of layer ``name``, at least two-dimensional; None if it has none."""
        weight = self._model.get_submodule(name)._parameters.get("weight")
        return weight if weight is not None and weight.dim() > 1 else None


class _Corrected(NumberedCalls):
    """A function mode that makes every call with the numbers in ``wanted``, and notes the wrong ones."""

    def __init__(
        self, path: list[str], wanted: Wanted, locating: bool = False, scaled: Collection[CallKey] = ()
    ) -> None:
        super().__init__(path)
        self.keys: dict[CallKey, Tensor] = {}
        self.wrong: Wrong = {}
        self._wanted, self._locating, self._scaled = wanted, locating, scaled

    def make(self, key: CallKey, call: Call, redo: Callable[[], Any]) -> Any:
        if call.key is not None:
            self.keys[key] = call.key
        news = {} if key in self._scaled else self._wanted.get(key, {})
        numbers = [news[one.dim].made_with if one.dim in news else _named(one) for one in call.literals]
        changed = [
            i
            for i, (one, new) in enumerate(zip(call.literals, numbers, strict=True))
            if _named(one) != tuple(new)
        ]
        if not changed:
            return redo()
        self.wrong[key] = _located(_places(call, numbers, changed)) if self._locating else None
        return call.redo(numbers)


def _named(literal: SizeLiteral) -> Numbers:
    """Return the numbers in the code; for attention the width that its scale is derived from."""
    return (literal.size,) if literal.kind == "scale" else tuple(literal.numbers)


def _located(places: Mapping[int, float]) -> CallChange | UnchangeableError:
    try:
        return locate(frames_of_call(), list(places.items()))
    except UnchangeableError as error:
        return error


def _places(call: Call, numbers: Sequence[Numbers], changed: Sequence[int]) -> dict[int, float]:
    if call.places:
        return {call.places[i]: numbers[i][0] for i in changed}
    (literal,), (new,) = call.literals, numbers
    if literal.kind == "scale":
        return {0: new[0] ** -0.5}
    return dict(enumerate(new))


def _calls_changed(wrong: Wrong) -> dict[str, tuple[CallChange, ...]]:
    found: dict[str, dict[CallChange, CallChange]] = defaultdict(dict)
    for (module, _), change in wrong.items():
        if not isinstance(change, CallChange):
            raise PruneError(f"a number in the code of '{module}' can't be changed: {change}")
        known = found[module].setdefault(replace(change, numbers=()), change)
        if known != change:
            raise PruneError(f"'{known.text}' in the code of {module} would need several numbers at once")
    return {module: tuple(changes.values()) for module, changes in found.items()}
