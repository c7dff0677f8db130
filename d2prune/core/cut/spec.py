"""PruneSpec: what of each layer stays, as plain data that outlives the trace."""

from __future__ import annotations

import dataclasses
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from d2prune.core.layers.kinds import Keep, groups_after, module_at, widths_of
from d2prune.core.literals.calls import corrected, positions
from d2prune.core.types import Axis, Correction, PrunePlan, Repeat, Site
from d2prune.errors import PruneError

VERSION = 1
AXES: tuple[Axis, Axis] = ("out", "in")


@dataclass(frozen=True)
class PruneSpec:
    """The widths of a pruned model, relative to the model it was built as.

    Attributes:
        base: class name of the model that was pruned.
        layers: what stays of each layer that changed, by its dotted path. Positions are those of
            the unpruned layer; the widths follow from them.
        widths: (out, in) of each such layer before pruning; None for an axis that stays whole.
        corrections: by module, the numbers of channels that its code names and what they become.
        version: of this format.
    """

    base: str
    layers: Mapping[str, Keep] = field(default_factory=dict)
    widths: Mapping[str, tuple[int | None, int | None]] = field(default_factory=dict)
    corrections: Mapping[str, tuple[Correction, ...]] = field(default_factory=dict)
    version: int = VERSION

    def to_json(self) -> str:
        """One layer a line, so that two specs can be compared with diff."""
        rows = [
            f"  {json.dumps(name)}: {json.dumps(_row(keep, self.widths[name]))}"
            for name, keep in self.layers.items()
        ]
        head = f'{{"version": {self.version}, "base": {json.dumps(self.base)}, "layers": {{\n'
        code = [
            f"  {json.dumps(name)}: {json.dumps([_numbers(c) for c in corrections])}"
            for name, corrections in self.corrections.items()
        ]
        tail = ', "corrections": {\n' + ",\n".join(code) + "\n}" if code else ""
        return head + ",\n".join(rows) + "\n}" + tail + "}\n"

    @classmethod
    def from_json(cls, text: str) -> PruneSpec:
        """Reads :meth:`to_json`'s text.

        Raises:
            PruneError: if the text is not such a spec, or of a version this package can't read.
        """
        try:
            data = json.loads(text)
        except json.JSONDecodeError as error:
            raise PruneError(f"not a pruning spec: {error}") from error
        return cls.from_dict(data)

    def to_dict(self) -> dict[str, Any]:
        """Plain data: str, int, list, dict, None."""
        data: dict[str, Any] = json.loads(self.to_json())
        return data

    @classmethod
    def from_dict(cls, data: Any) -> PruneSpec:
        """Reads :meth:`to_dict`'s data; raises PruneError as :meth:`from_json` does."""
        if not isinstance(data, dict) or not {"version", "base", "layers"} <= set(data):
            raise PruneError("not a pruning spec: expected the keys version, base, layers")
        if data["version"] != VERSION:
            raise PruneError(
                f"pruning spec version is {data['version']!r}; this d2prune reads version {VERSION}"
            )
        try:
            layers = {name: _keep(row) for name, row in data["layers"].items()}
            widths = {name: (_before(row, "out"), _before(row, "in")) for name, row in data["layers"].items()}
            given = data.get("corrections", {}).items()
            corrections = {name: tuple(_correction(row) for row in rows) for name, rows in given}
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise PruneError(f"not a pruning spec: a layer's row is malformed ({error!r})") from error
        return cls(str(data["base"]), layers, widths, corrections)


def _row(keep: Keep, widths: tuple[int | None, int | None]) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for axis, kept, before in (("out", keep.out, widths[0]), ("in", keep.inp, widths[1])):
        if kept is not None:
            row[axis] = {"before": before, "after": len(kept), "kept": list(kept)}
    if keep.groups is not None:
        row["groups"] = keep.groups
    return row


def _numbers(correction: Correction) -> list[Any]:
    r = correction.repeat
    shapes = [list(r.beside), [list(shape) for shape in r.unlike]]
    place = [r.dims, r.dim, r.size, list(r.asked), r.hole]
    return [r.kind, *place, *shapes, correction.size, list(correction.given)]


def _correction(row: Sequence[Any]) -> Correction:
    kind, dims, dim, size, asked, hole, beside, unlike, now, given = row
    place, shapes = (_whole(dims), _whole(dim), _whole(size)), tuple(_wholes(shape) for shape in unlike)
    before = Repeat(str(kind), *place, _wholes(asked), _whole(hole), _wholes(beside), shapes)
    return Correction(before, _whole(now), _wholes(given))


def _keep(row: Mapping[str, Any]) -> Keep:
    out, inp = (_positions(row[axis]) if axis in row else None for axis in ("out", "in"))
    return Keep(out, inp, _whole(row["groups"]) if "groups" in row else None)


def _positions(cell: Mapping[str, Any]) -> tuple[int, ...]:
    kept = tuple(_whole(i) for i in cell["kept"])
    if not kept or list(kept) != sorted(set(kept)) or kept[0] < 0 or kept[-1] >= cell["before"]:
        raise ValueError(f"kept positions must be sorted, distinct and in [0, {cell['before']})")
    if cell["after"] != len(kept):
        raise ValueError(f"'after' is {cell['after']!r}, but {len(kept)} positions are kept")
    return kept


def _whole(number: Any) -> int:
    if type(number) is not int:  # neither 3.7, which int() would cut, nor True
        raise TypeError(f"{number!r} is not an integer")
    return number


def _wholes(numbers: Iterable[Any]) -> tuple[int, ...]:
    return tuple(_whole(n) for n in numbers)


def _before(row: Mapping[str, Any], axis: str) -> int | None:
    return _whole(row[axis]["before"]) if axis in row else None


def spec_of(plan: PrunePlan, base: str, model: nn.Module) -> PruneSpec:
    """The spec that carries out ``plan`` on ``model``."""
    gone: dict[Site, set[int]] = defaultdict(set)
    unnamed: dict[tuple[str, Repeat, int], set[int]] = defaultdict(set)
    for group, kept in zip(plan.groups, plan.kept, strict=True):
        removed = sorted(set(range(group.units)) - set(kept.tolist()))
        for member in group.members if removed else ():
            gone[member.site] |= set(member.indices[removed].ravel().tolist())
        for mention in group.mentions if removed else ():
            unnamed[mention.key] |= set(mention.indices[removed].ravel().tolist())
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
    return PruneSpec(base, layers, widths, _corrections(unnamed))


def _corrections(gone: Mapping[tuple[str, Repeat, int], set[int]]) -> dict[str, tuple[Correction, ...]]:
    """What the numbers that code names become once these positions of their dimensions are gone."""
    found: dict[str, dict[Correction, None]] = defaultdict(dict)
    for (module, repeat, _), places in gone.items():
        left = [p - sum(g < p for g in places) for p in positions(repeat)]
        found[module][Correction(repeat, repeat.size - len(places), corrected(repeat, left))] = None
    return {module: tuple(corrections) for module, corrections in found.items()}


def compose(first: PruneSpec, second: PruneSpec) -> PruneSpec:
    """The one spec equal to ``first`` followed by ``second``, which was made on its result."""
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
    modules = dict.fromkeys([*first.corrections, *second.corrections])
    corrections = {m: _follow(first.corrections.get(m, ()), second.corrections.get(m, ())) for m in modules}
    return PruneSpec(first.base, layers, widths, corrections)


def _follow(first: Iterable[Correction], second: Iterable[Correction]) -> tuple[Correction, ...]:
    """Corrections of what was corrected before; numbers that only the later ones change stay beside them."""
    both: list[Correction] = []
    followed: set[Correction] = set()
    for old in first:
        seen = dataclasses.replace(_placed(old.repeat), size=old.size, asked=old.given)  # as the code has it
        later = [new for new in second if _placed(new.repeat) == seen]
        later = [new for new in later if new.repeat.beside == _after(old.repeat.beside, first)] or later
        both += [dataclasses.replace(new, repeat=old.repeat) for new in later] or [old]
        followed.update(later)
    return (*both, *(new for new in second if new not in followed))


def _placed(repeat: Repeat) -> Repeat:
    """It, without the views that it was seen in."""
    return dataclasses.replace(repeat, beside=(), unlike=())


def _after(shape: tuple[int, ...], corrections: Iterable[Correction]) -> tuple[int, ...]:
    """What a view's shape has become."""
    given = {c.repeat.dim: c.given[0] for c in corrections if shape and c.repeat.beside == shape}
    return tuple(given.get(dim, size) for dim, size in enumerate(shape))


def _chain(old: tuple[int, ...] | None, new: tuple[int, ...] | None) -> tuple[int, ...] | None:
    if old is None or new is None:
        return new if old is None else old
    return tuple(old[i] for i in new)
