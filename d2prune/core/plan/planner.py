"""The planner, which makes a plan from scores, limits and costs: arithmetic without tensors.

Each group is a queue of chunks (the units between two allowed widths, lowest scores first). One loop
takes chunks in the order of the allocation's key until the budget is met.
"""

from __future__ import annotations

import heapq
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations, product
from operator import neg
from typing import cast

import numpy as np

from d2prune.core.plan.costs import CostModel, Target
from d2prune.core.plan.limits import Limits
from d2prune.core.plan.ranking import Ranking
from d2prune.core.registry import Registry
from d2prune.core.types import Group, PrunePlan, Request, Site
from d2prune.errors import PruneError

TARGETS: tuple[Target, ...] = ("channels", "params", "macs", "latency")
TOLERANCE = 0.002  # fraction of the whole; a fifth of the promised percentage point
PROMISED = 0.01  # fraction of the whole
MOST_TRIED = 50_000  # pairs of widths; a second or so

AHEAD = 4  # allowed widths that are looked at for the best chunk
BLOCKS = 64  # the same for latency, which falls in steps of some channels

Key = Callable[["_State", int, int], float]
"""``key(state, g, then_gone)`` of group ``g``'s chunk up to ``then_gone``; the lowest chunks go first."""

ALLOCATIONS: Registry[Key] = Registry("MODEL.PRUNING.ALLOCATION")


@ALLOCATIONS.register("uniform")
def uniform(state: _State, g: int, then_gone: int) -> float:
    """Return the fraction of the group that is gone, so that all groups lose the same fraction."""
    return then_gone / state.groups[g].units


@ALLOCATIONS.register("global")
def ranked(state: _State, g: int, then_gone: int) -> float:
    """Return the chunk's mean score, so that the lowest scores of the whole model are removed first."""
    return state.added(g, then_gone) / (then_gone - state.gone[g])


@ALLOCATIONS.register("per_cost")
def per_cost(state: _State, g: int, then_gone: int) -> float:
    """Return the error that the chunk adds per cost that it saves at the present widths of all layers."""
    saved = state.saving(g, then_gone)
    return state.added(g, then_gone) / saved if saved > 0 else float("inf")


def plan(
    groups: Sequence[Group],
    rankings: Sequence[Ranking],
    limits: Sequence[Limits],
    costs: CostModel,
    request: Request,
) -> PrunePlan:
    """Choose the units that stay.

    Raises:
        PruneError: if nothing can be pruned, the amount can't be reached, or a key's value is unknown.
    """
    check(request)
    if all(limit.reason for limit in limits):
        raise PruneError(
            f"nothing was pruned: {len(groups)} of {len(groups)} groups are protected or skipped"
            + (f"; the first: {groups[0].name} ({limits[0].reason})" if groups else ""),
            keys=("INCLUDE", "ROUND_TO", "MAX_RATIO", "ALLOW_INEXACT"),
        )
    state = _State(groups, limits, costs, request.target, rankings)
    for g, limit in enumerate(limits):
        if limit.keep is not None:
            state.remove(g, groups[g].units - limit.keep)
    _spend(state, request)
    if not any(state.gone):
        raise PruneError(
            f"nothing was pruned: AMOUNT {request.amount} of {request.target} is less than the "
            f"smallest step ({len(groups)} groups, ROUND_TO {request.round_to})",
            keys=("AMOUNT", "ROUND_TO"),
        )
    kept = tuple(np.sort(r.order[n:]) for r, n in zip(rankings, state.gone, strict=True))
    return PrunePlan(tuple(groups), kept, tuple(r.reason for r in limits), state.removed())


def check(request: Request) -> None:
    """Raise PruneError for a value no plan can be made with."""
    ALLOCATIONS[request.allocation]
    allowed = [
        ("TARGET", repr(request.target), f"one of: {', '.join(TARGETS)}", request.target in TARGETS),
        ("AMOUNT", request.amount, "a fraction removed, 0 < AMOUNT < 1", 0 < request.amount < 1),
        ("MAX_RATIO", request.max_ratio, "a fraction, 0 < MAX_RATIO < 1", 0 < request.max_ratio < 1),
        ("ROUND_TO", request.round_to, "an integer >= 1", request.round_to >= 1),
    ]
    for key, value, expected, right in allowed:
        if not right:
            message = f"MODEL.PRUNING.{key} is {value}; expected {expected}"
            raise PruneError(message, keys=(f"MODEL.PRUNING.{key}", key))


def fraction_removed(
    groups: Sequence[Group], limits: Sequence[Limits], costs: CostModel, target: str, gone: Sequence[int]
) -> float:
    """Return the fraction of the target's cost saved by removing ``gone[g]`` units of each group."""
    state = _State(groups, limits, costs, target)
    for g, number in enumerate(gone):
        state.remove(g, number)
    return state.removed()


def most_removed(groups: Sequence[Group], limits: Sequence[Limits], costs: CostModel, target: str) -> float:
    """Return the largest fraction of the target's cost that the limits let go; fixed ratios stay."""
    gone = [_most(group, limit) for group, limit in zip(groups, limits, strict=True)]
    return fraction_removed(groups, limits, costs, target, gone)


def _most(group: Group, limit: Limits) -> int:
    if limit.reason:
        return 0
    return group.units - (limit.allowed_units[-1] if limit.keep is None else limit.keep)


@dataclass(order=True)
class _Chunk:
    key: float
    group: int
    then_gone: int


def _spend(state: _State, request: Request) -> None:
    """Remove chunks until ``request.amount`` is reached, ending as near to it as chunks allow."""
    free = [g for g, limit in enumerate(state.limits) if not limit.reason and limit.keep is None]
    _check_reach(state, request)
    key = ALLOCATIONS[request.allocation]
    most = BLOCKS if request.target == "latency" else AHEAD

    def chunk(g: int, ahead: int = most) -> _Chunk | None:
        """Return the best of the next chunks of a group: up to one of the next ``ahead`` widths."""
        units, allowed = state.groups[g].units, state.limits[g].allowed_units
        place = bisect_right(allowed, state.gone[g] - units, key=neg)  # the first below what is left
        chunks = [_Chunk(key(state, g, units - n), g, units - n) for n in allowed[place : place + ahead]]
        return min(chunks, default=None)

    heap = [c for g in free if (c := chunk(g)) is not None]
    heapq.heapify(heap)
    over: _Chunk | None = None
    over_by = float("inf")
    while heap and state.removed() < request.amount:
        taken = heapq.heappop(heap)
        now = chunk(taken.group)
        if now is not None and now.key > taken.key and heap and now > heap[0]:
            heapq.heappush(heap, now)  # what it saves has shrunk since, with other layers' widths
            continue
        before = state.gone[taken.group]
        state.remove(taken.group, taken.then_gone)
        excess = state.removed() - request.amount
        following = chunk(taken.group)
        if excess > TOLERANCE:
            # Too large a step here: leave it, smaller ones may still fit.
            state.remove(taken.group, before)
            following = chunk(taken.group, 1)
            if following == taken:
                following = None
            if excess < over_by:
                over, over_by = taken, excess
        if following is not None:
            heapq.heappush(heap, following)
    _round_up(state, over, request.amount)
    _approach(state, free, request.amount)


def _round_up(state: _State, over: _Chunk | None, amount: float) -> None:
    """Remove the least overshooting chunk ``over`` after all if that ends nearer to ``amount``."""
    short = amount - state.removed()
    if over is None or short <= 0:
        return
    before = state.gone[over.group]
    state.remove(over.group, over.then_gone)
    if abs(state.removed() - amount) >= short:
        state.remove(over.group, before)


def _approach(state: _State, free: Sequence[int], amount: float) -> None:
    """Change the width of one group, or of two, if ``amount`` is missed by more than ``PROMISED``.

    Of the changes that come within ``PROMISED`` the smallest is taken, to stay near the allocation.
    """

    def off() -> float:
        return max(abs(state.removed() - amount), PROMISED)

    choices = {g: [0, *(state.groups[g].units - n for n in state.limits[g].allowed_units)] for g in free}
    options = sum(map(len, choices.values()))
    for together, tries in ((1, options), (2, options**2 / 2)):
        if off() <= PROMISED or tries > MOST_TRIED:
            return
        best: tuple[float, float, list[tuple[int, int]]] = (off() - 1e-9, 0.0, [])
        for chosen in combinations(free, together):
            before = [(g, state.gone[g]) for g in chosen]
            for gone in product(*(choices[g] for g in chosen)):
                state.remove_all(zip(chosen, gone, strict=True))
                if any(state.gone):
                    steps = zip(before, gone, strict=True)
                    change = sum(abs(new - old) / state.groups[g].units for (g, old), new in steps)
                    best = min(best, (off(), change, list(zip(chosen, gone, strict=True))))
            state.remove_all(before)
        state.remove_all(best[2])


def _check_reach(state: _State, request: Request) -> None:
    most = most_removed(state.groups, state.limits, state.costs, request.target)
    if most < request.amount - 0.01:
        raise PruneError(
            f"AMOUNT {request.amount} of {request.target} can't be reached: at most "
            f"{int(most * 100) / 100:.2f} with MAX_RATIO {request.max_ratio} and the protected layers",
            keys=("AMOUNT", "MAX_RATIO"),
        )


class _State:
    """The units gone so far, and the cost that this saves."""

    def __init__(
        self,
        groups: Sequence[Group],
        limits: Sequence[Limits],
        costs: CostModel,
        target: str,
        rankings: Sequence[Ranking] = (),
    ) -> None:
        self.groups, self.limits, self.costs = groups, limits, costs
        self.target = cast(Target, target)
        self._errors = [ranking.summed for ranking in rankings]
        self.gone = [0] * len(groups)
        self.widths: dict[Site, int] = {}
        for name, layer in costs.layers.items():
            self.widths[name, "out"], self.widths[name, "in"] = layer.out, layer.inp
        self.saved = 0.0
        self.whole = self._whole()

    def _whole(self) -> float:
        if self.target == "channels":
            return sum(g.width for g, r in zip(self.groups, self.limits, strict=True) if not r.reason)
        return self.costs.whole(self.target)

    def removed(self) -> float:
        """Return the fraction of the target's whole that is gone."""
        return self.saved / self.whole if self.whole else 0.0

    def added(self, g: int, then_gone: int) -> float:
        """Return the error that removing up to ``then_gone`` units of group ``g`` adds."""
        return float(self._errors[g][then_gone] - self._errors[g][self.gone[g]])

    def saving(self, g: int, then_gone: int) -> float:
        """Return the cost that this saves."""
        gone, saved = self.gone[g], self.saved
        self.remove(g, then_gone)
        change = self.saved - saved
        self.remove(g, gone)
        self.saved = saved
        return change

    def remove(self, g: int, gone: int) -> None:
        """Set the number of units of group ``g`` that are gone (more or fewer than before)."""
        group, change = self.groups[g], gone - self.gone[g]
        self.gone[g] = gone
        if self.target == "channels":
            self.saved += change * group.step
            return
        touched = {m.layer for m in group.members if m.layer in self.costs.layers}
        self.saved += self._price(touched)
        for member in group.members:
            if member.site in self.widths:
                self.widths[member.site] -= change * member.indices.shape[1]
        self.saved -= self._price(touched)

    def remove_all(self, numbers: Iterable[tuple[int, int]]) -> None:
        """Call :meth:`remove` for several groups."""
        for g, gone in numbers:
            self.remove(g, gone)

    def _price(self, layers: set[str]) -> float:
        return sum(self.costs.layer(name, self.target, self.widths) for name in layers)
