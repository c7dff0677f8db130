"""Where a model's parameters and MACs are, how many could go, and what holds the others."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch import nn

from d2prune.adapters import TraceInput
from d2prune.core.cut.coverage import UNREACHED
from d2prune.core.plan.costs import CostModel
from d2prune.core.plan.limits import Limits, limits_of
from d2prune.core.types import Group, Request, Site
from d2prune.pruning import measure_model
from d2prune.report.table import aligned, quantity

FREE = "free"


@dataclass(frozen=True)
class ModuleRow:
    """One layer, or all layers of one module.

    Attributes:
        name: dotted path.
        params: number of parameters.
        macs: multiply-accumulates of one image.
        removable: parameters that go if every group that can be pruned exactly loses the largest ratio.
        constraint: what decides over its output channels; "free" where nothing stands against it.
    """

    name: str
    params: int
    macs: int
    removable: int
    constraint: str


def module_rows(
    model: nn.Module, trace_input: TraceInput, groups: Sequence[Group], max_ratio: float = 0.75
) -> tuple[ModuleRow, ...]:
    """Return one row per layer with parameters, in the model's order; only counted, nothing is changed.

    Args:
        model: on a device that it can run on; its weights do not matter.
        trace_input: what to run.
        groups: the model's groups of channels.
        max_ratio: largest fraction of any group's channels.
    """
    costs = measure_model(model, trace_input)
    limits = limits_of(groups, Request(max_ratio=max_ratio), ())
    least = smallest(groups, limits, costs)
    whys = _constraints(groups, limits)
    return tuple(
        ModuleRow(
            name,
            round(costs.layer(name, "params", {})),
            round(costs.layer(name, "macs", {})),
            round(costs.layer(name, "params", {}) - costs.layer(name, "params", least)),
            whys.get(name, UNREACHED),
        )
        for name in _in_order(model, costs)
        if costs.layer(name, "params", {})
    )


def smallest(groups: Sequence[Group], limits: Sequence[Limits], costs: CostModel) -> dict[Site, int]:
    """Return the widths of all axes when every open group is as small as it may be."""
    open_ones = [(group, limit) for group, limit in zip(groups, limits, strict=True) if not limit.reason]
    return widths_with([(group, limit.allowed_units[-1]) for group, limit in open_ones], costs)


def widths_with(kept: Iterable[tuple[Group, int]], costs: CostModel) -> dict[Site, int]:
    """Return the widths of the axes that shrink when of each group only so many units stay."""
    gone: Counter[Site] = Counter()
    for group, left in kept:
        for member in group.members:
            gone[member.site] += (group.units - left) * member.indices.shape[1]
    layers = costs.layers
    return {
        (name, axis): (layers[name].out if axis == "out" else layers[name].inp) - less
        for (name, axis), less in gone.items()
        if name in layers
    }


def _in_order(model: nn.Module, costs: CostModel) -> Iterable[str]:
    position = {name: i for i, (name, _) in enumerate(model.named_modules())}
    return sorted(costs.layers, key=lambda name: position.get(name, position[name.rpartition(".")[0]]))


def _constraints(groups: Sequence[Group], limits: Sequence[Limits]) -> dict[str, str]:
    found: dict[str, list[str]] = defaultdict(list)
    for group, limit in zip(groups, limits, strict=True):
        step = f" in steps of {group.step}" if group.step > 1 else ""
        for member in group.members:
            if member.axis == "out":
                found[member.layer].append(limit.reason or f"{FREE}{step}")
    return {name: "; ".join(dict.fromkeys(whys)) for name, whys in found.items()}


def grouped(rows: Iterable[ModuleRow], depth: int) -> tuple[ModuleRow, ...]:
    """Add up rows of the same first ``depth`` names; 0 leaves every layer by itself."""
    parts: dict[str, list[ModuleRow]] = defaultdict(list)
    for row in rows:
        parts[".".join(row.name.split(".")[:depth]) if depth else row.name].append(row)
    return tuple(
        ModuleRow(
            name,
            sum(row.params for row in inside),
            sum(row.macs for row in inside),
            sum(row.removable for row in inside),
            _together(inside),
        )
        for name, inside in parts.items()
    )


def _together(rows: Sequence[ModuleRow], most: int = 3) -> str:
    """Constraints of several layers, those with the most parameters first."""
    weight: Counter[str] = Counter()
    for row in rows:
        weight[row.constraint.partition(", in ")[0].partition(" '")[0]] += row.params
    named = [why for why, _ in weight.most_common(most)]
    return "; ".join(named) + ("; …" if len(weight) > most else "")


def module_table(rows: Sequence[ModuleRow]) -> str:
    """Return the rows with their shares of the whole, as text."""
    params, macs = sum(row.params for row in rows), sum(row.macs for row in rows)
    whole = ModuleRow("in all", params, macs, sum(row.removable for row in rows), "")
    body = [
        [
            row.name,
            quantity(row.params),
            f"{row.params / params:.1%}",
            quantity(row.macs),
            f"{row.macs / macs:.1%}" if macs else "",
            f"{row.removable / params:.1%}",
            row.constraint,
        ]
        for row in (*rows, whole)
    ]
    heads = ["", "params", "share", "MACs", "share", "can go", "what holds its channels"]
    return aligned([heads, *body], left=(0, 6))
