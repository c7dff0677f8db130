"""Groups from labels: which channels of which layers are cut together, and which must stay."""

from __future__ import annotations

import gc
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np
from torch import Tensor

from d2prune.core.trace.labels import Ids, LabelStore
from d2prune.core.trace.weights import LayerAxis
from d2prune.core.types import CallKey, Group, Indices, LiteralUse, Member, Site, SizeLiteral

UNMADE = "no layer that can be cut makes its channels"
Unit = dict[Any, list[int]]  # the positions of one unit on each axis and each literal's dimension


class Traced(Protocol):
    """The record of a finished trace.

    Attributes:
        store: all labels, with their ties and the reasons to keep them.
        axes: the labels of every layer's axes.
        touched: paths of the layers that ran.
        literals: for each size literal its call, the literal, and the labels of its dimension.
    """

    store: LabelStore
    axes: dict[Site, LayerAxis]
    touched: set[str]
    literals: list[tuple[CallKey, SizeLiteral, Ids]]


@contextmanager
def _uncollected() -> Iterator[None]:
    """Switch the garbage collector off: it takes half of the time here, and finds nothing to free."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@_uncollected()
def groups_of(trace: Traced) -> tuple[Group, ...]:
    """Return the groups of a trace: units that cut the same axes by the same amounts form one group."""
    roots = trace.store.roots()
    axes = {site: axis for site, axis in trace.axes.items() if site[0] in trace.touched}
    kept = _by_root([*trace.store.outputs, *trace.store.kept], roots)
    inexact = _by_root(trace.store.inexact, roots)
    contracted = _contracted(trace, roots)
    named = _places(((i, ids) for i, (_, _, ids) in enumerate(trace.literals)), roots)
    makes = {site for site, axis in axes.items() if axis.makes(site[1])}
    reads = {site for site, axis in axes.items() if site[1] == "in" or isinstance(axis.layer, Tensor)}
    alike: dict[tuple[Any, ...], list[Unit]] = defaultdict(list)
    for root, unit in _places(((site, axis.ids) for site, axis in axes.items()), roots).items():
        made = not makes.isdisjoint(unit)
        if not made and reads.issuperset(unit):
            continue
        read = root in contracted or not reads.isdisjoint(unit)
        why = kept.get(root) or ("" if read else "nothing that was traced reads them") if made else UNMADE
        places = {**unit, **named.get(root, {})}  # keys in one order for all units
        cuts = (tuple(places), tuple(map(len, places.values())))
        alike[(cuts, why, inexact.get(root, ""), root in contracted)].append(places)
    rank = {path: i for i, path in enumerate(dict.fromkeys(path for path, _ in axes))}
    literals = [(call, literal) for call, literal, _ in trace.literals]
    groups = [_group(units, axes, rank, literals, *about) for (_, *about), units in alike.items()]
    return tuple(sorted(groups, key=lambda group: rank[group.name]))


def _places(labelled: Iterable[tuple[Any, Ids]], roots: Ids) -> dict[int, dict[Any, list[int]]]:
    """Return every unit's positions on each labelled dimension, units in order of first appearance."""
    units: dict[int, dict[Any, list[int]]] = defaultdict(dict)
    for key, ids in labelled:
        found = roots[ids]
        order = np.argsort(found, kind="stable")
        starts = np.flatnonzero(np.diff(found[order], prepend=-1))
        ends = [*starts[1:].tolist(), len(order)]
        parts = sorted(zip(order[starts].tolist(), starts.tolist(), ends, strict=True))
        places = order.tolist()
        for first, start, end in parts:
            if root := int(found[first]):
                units[root][key] = places[start:end]
    return units


def _by_root(notes: Iterable[tuple[Ids, str]], roots: Ids) -> dict[int, str]:
    """Return, for each unit, the first reason noted for any of its labels."""
    found: dict[int, str] = {}
    for ids, why in notes:
        for root in np.unique(roots[ids]).tolist():
            found.setdefault(root, why)
    return found


def _contracted(trace: Traced, roots: Ids) -> set[int]:
    """Return the units summed over in products of two activations, where neither side is a weight."""
    columns = np.zeros(trace.store.count, dtype=bool)
    for (_, axis), found in trace.axes.items():
        columns[found.ids] = axis == "in"
    contracted: set[int] = set()
    for one, two in trace.store.products:
        ids = one[~columns[one] & ~columns[two]]
        contracted.update(np.unique(roots[ids[ids > 0]]).tolist())
    return contracted


def _group(
    units: list[Unit],
    axes: Mapping[Site, LayerAxis],
    rank: Mapping[str, int],
    literals: Sequence[tuple[CallKey, SizeLiteral]],
    fixed: str,
    inexact: str,
    contracted: bool,
) -> Group:
    def order(site: Site) -> tuple[bool, int, str]:
        return (not axes[site].makes(site[1]), rank[site[0]], site[1])

    def rows(key: Any) -> Indices:
        return np.array([unit[key] for unit in units], dtype=np.int64)

    sites = sorted((key for key in units[0] if key in axes), key=order)
    members = tuple(Member(layer, axis, rows((layer, axis))) for layer, axis in sites)
    uses = tuple(LiteralUse(*literals[key], rows(key)) for key in units[0] if key not in axes)
    producers = tuple(site[0] for site in sites if axes[site].makes(site[1]))
    return Group(sites[0][0], members, producers, fixed, inexact, contracted, uses)
