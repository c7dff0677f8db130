"""``PruneSpec``: the channels kept of each layer, as plain data that can be stored without the trace."""

from __future__ import annotations

import dataclasses
import json
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from d2prune.core.cut.spec_rows import check_keys, check_plain, fields_of, plain_json, row_of, table
from d2prune.core.layers.kinds import Keep, groups_after, module_at, widths_of
from d2prune.core.literals.changes import Attributes, CodeChanges
from d2prune.core.literals.scales import Ranges, combined
from d2prune.core.literals.version1 import Correction
from d2prune.core.literals.written import CallChange, merged
from d2prune.core.types import Axis, PrunePlan, Site
from d2prune.errors import PruneError

VERSION = 2
AXES: tuple[Axis, Axis] = ("out", "in")


@dataclass(frozen=True)
class PruneSpec:
    """The widths of a pruned model, relative to the model it was built as.

    Attributes:
        base: class name of the model that was pruned.
        layers: the channels kept of each layer that changed, by its dotted path. Positions are those of
            the unpruned layer; the new widths follow from them.
        widths: (out, in) of each such layer before pruning; None for an axis that stays whole.
        attributes: by module, integer attributes that hold a width: (before, after).
        scales: by layer, ranges of the kept output channels, and the factors on their weights.
        calls: by module, the calls in its code that are made with other numbers.
        corrections: in specs of version 1, used instead of the last three.
        version: version of this format.
        written_by: versions of the packages that wrote it.
    """

    base: str
    layers: Mapping[str, Keep] = field(default_factory=dict)
    widths: Mapping[str, tuple[int | None, int | None]] = field(default_factory=dict)
    attributes: Attributes = field(default_factory=dict)
    scales: Mapping[str, Ranges] = field(default_factory=dict)
    calls: Mapping[str, tuple[CallChange, ...]] = field(default_factory=dict)
    corrections: Mapping[str, tuple[Correction, ...]] = field(default_factory=dict)
    version: int = VERSION
    written_by: Mapping[str, str] = field(default_factory=dict, compare=False)

    @property
    def code(self) -> CodeChanges:
        """The changes besides widths."""
        return CodeChanges(self.attributes, self.scales, self.calls)

    def with_code(self, code: CodeChanges) -> PruneSpec:
        """Return the spec with these changes besides widths."""
        return dataclasses.replace(self, attributes=code.attributes, scales=code.scales, calls=code.calls)

    def to_json(self) -> str:
        """Return JSON with one layer or module per line, so that two specs can be compared with diff."""
        parts: dict[str, dict[str, Any]] = {
            "layers": {name: row_of(keep, self.widths[name]) for name, keep in self.layers.items()},
            "attributes": {module: dict(values) for module, values in self.attributes.items()},
            "scales": dict(self.scales),
            "calls": {module: [vars(call) for call in calls] for module, calls in self.calls.items()},
            "corrections": {m: [c.to_row() for c in rows] for m, rows in self.corrections.items()},
        }
        head = {"version": self.version, "base": self.base, "written_by": dict(self.written_by)}
        lines = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in head.items() if value]
        lines += [f"{json.dumps(k)}: {table(rows)}" for k, rows in parts.items() if rows or k == "layers"]
        return "{" + ",\n".join(lines) + "}\n"

    def __reduce__(self) -> tuple[Any, ...]:
        return dict, (self.to_dict(),)  # so that pickled models need no d2prune

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self.__dict__.update(
            {**vars(PruneSpec("")), **state}
        )  # specs of version 1 were pickled with fewer fields

    def __deepcopy__(self, memo: object) -> PruneSpec:
        return self

    @classmethod
    def from_json(cls, text: str) -> PruneSpec:
        """Read the text of :meth:`to_json`.

        Raises:
            PruneError: if the text is not such a spec, or of a version this package can't read.
        """
        try:
            data = plain_json(text)
        except ValueError as error:
            raise PruneError(f"not a pruning spec: {error}") from error
        return cls.from_dict(data)

    def to_dict(self) -> dict[str, Any]:
        """Return the spec as plain data: str, int, float, list, dict."""
        data: dict[str, Any] = json.loads(self.to_json())
        return data

    @classmethod
    def from_dict(cls, data: Any) -> PruneSpec:
        """Read the data of :meth:`to_dict`; every type and limit is checked.

        Args:
            data: a dict; anything else is refused.

        Raises:
            PruneError: as :meth:`from_json` does.
        """
        try:
            check_keys(data)
            _check_version(data["version"])
            check_plain(data)
            return cls(**fields_of(data))
        except PruneError:
            raise
        except (ValueError, MemoryError) as error:
            raise PruneError(f"not a pruning spec: {error}") from error


def _check_version(version: Any) -> None:
    if type(version) is not int or version not in (1, VERSION):
        small = type(version) is not int or abs(version) < 1000  # Python writes no number of 5000 digits
        plain = small and type(version) in (int, str, bool, float, type(None))
        shown = repr(version)[:50] if plain else f"a {type(version).__name__}"
        raise PruneError(f"pruning spec version is {shown}; this d2prune reads versions 1 and {VERSION}")


def positions_removed(plan: PrunePlan) -> dict[Site, set[int]]:
    """Return the positions that ``plan`` removes on each axis of each layer; only axes that lose any."""
    gone: dict[Site, set[int]] = defaultdict(set)
    for group, kept in zip(plan.groups, plan.kept, strict=True):
        removed = sorted(set(range(group.units)) - set(kept.tolist()))
        for member in group.members if removed else ():
            gone[member.site] |= set(member.indices[removed].ravel().tolist())
    return dict(gone)


def spec_of(plan: PrunePlan, base: str, model: nn.Module) -> PruneSpec:
    """Return the spec that carries out ``plan`` on ``model``."""
    gone = positions_removed(plan)
    layers, widths = {}, {}
    for name in dict.fromkeys(layer for layer, _ in gone):
        before = widths_of(model, name)
        out, inp = (
            tuple(i for i in range(width or 0) if i not in gone[name, axis])
            if gone.get((name, axis))
            else None
            for axis, width in zip(AXES, before, strict=True)
        )
        groups = groups_after(module_at(model, name), len(out)) if out is not None else None
        layers[name] = Keep(out, inp, groups)
        widths[name] = (before[0] if out is not None else None, before[1] if inp is not None else None)
    return PruneSpec(base, layers, widths)


def compose(first: PruneSpec, second: PruneSpec) -> PruneSpec:
    """Return one spec equal to ``first`` followed by ``second``, which was made for its result."""
    layers, widths = dict(first.layers), dict(first.widths)
    for name, later in second.layers.items():
        earlier = layers.get(name, Keep())
        widths.setdefault(name, (None, None))
        pairs = zip((earlier.out, earlier.inp), (later.out, later.inp), strict=True)
        out, inp = (_chain(old, new) for old, new in pairs)
        layers[name] = Keep(out, inp, later.groups or earlier.groups)
        widths[name] = tuple(  # type: ignore[assignment]
            old if old is not None else new
            for old, new in zip(widths[name], second.widths[name], strict=True)
        )
    both = PruneSpec(first.base, layers, widths, written_by=second.written_by or first.written_by)
    return both.with_code(_composed(first, second))


def _composed(first: PruneSpec, second: PruneSpec) -> CodeChanges:
    """Return the changes of ``first`` followed by those of ``second``, as one."""
    attributes = {module: dict(values) for module, values in first.attributes.items()}
    for module, values in second.attributes.items():
        known = attributes.setdefault(module, {})
        known.update({name: (known.get(name, pair)[0], pair[1]) for name, pair in values.items()})
    modules = dict.fromkeys([*first.calls, *second.calls])
    calls = {m: merged(first.calls.get(m, ()), second.calls.get(m, ())) for m in modules}
    scales = {}
    for layer in dict.fromkeys([*first.scales, *second.scales]):
        kept = second.layers.get(layer, Keep()).out
        width = second.widths[layer][0] if kept is not None else None
        ends = [stop for rows in (first.scales, second.scales) for _, stop, _ in rows.get(layer, ())]
        scales[layer] = combined(
            width or max(ends), first.scales.get(layer, ()), kept, second.scales.get(layer, ())
        )
    return CodeChanges(attributes, scales, calls)


def _chain(old: tuple[int, ...] | None, new: tuple[int, ...] | None) -> tuple[int, ...] | None:
    if old is None or new is None:
        return new if old is None else old
    return tuple(old[i] for i in new)
