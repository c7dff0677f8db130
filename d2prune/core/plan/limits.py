"""Limits on what may be removed of each group: name patterns, the largest ratio, allowed widths."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from d2prune.core.types import Group, Request
from d2prune.errors import PruneError


@dataclass(frozen=True)
class Limits:
    """The limits on how far a group may shrink.

    Attributes:
        reason: why it stays whole; empty when it may shrink.
        allowed_units: numbers of units that it may keep, in descending order, all units not included.
        keep: number of units it must keep, from MODEL.PRUNING.RATIOS; None leaves it to the budget.
    """

    reason: str = ""
    allowed_units: tuple[int, ...] = ()
    keep: int | None = None


def limits_of(groups: Sequence[Group], request: Request, names: Iterable[str]) -> tuple[Limits, ...]:
    """Return the limits of every group.

    Raises:
        PruneError: if a pattern matches none of ``names`` or a ratio is no fraction.
    """
    known = [name for name in names if name]
    for key, patterns in (
        ("PROTECT", request.protect),
        ("INCLUDE", request.include),
        ("RATIOS", [pattern for pattern, _ in request.ratios]),
    ):
        for pattern in patterns:
            _check_pattern(key, pattern, known)
    for pattern, ratio in request.ratios:
        if not 0 <= ratio < 1:
            raise PruneError(
                f"MODEL.PRUNING.RATIOS gives {ratio} for '{pattern}'; expected a fraction of "
                "channels removed, 0 <= ratio < 1",
                keys=("MODEL.PRUNING.RATIOS",),
            )
    return tuple(_limits(group, request) for group in groups)


def _check_pattern(key: str, pattern: str, names: Sequence[str]) -> None:
    if any(fnmatchcase(name, pattern) for name in names):
        return
    tops = dict.fromkeys(".".join(n.split(".")[: i + 1]) for n in names for i in range(n.count(".")))
    close = difflib.get_close_matches(pattern, [*(f"{top}.*" for top in tops), *names], 1, 0.6)
    hint = f"; did you mean '{close[0]}'?" if close else ""
    message = f"MODEL.PRUNING.{key} pattern '{pattern}' matches no module{hint}"
    raise PruneError(message, keys=(f"MODEL.PRUNING.{key}",))


def _limits(group: Group, request: Request) -> Limits:
    reason = _closed(group, request)
    if reason:
        return Limits(reason)
    ratio = _ratio(group, request)
    floor = 1 if ratio is not None else _floor(group, request.max_ratio)
    allowed_units = [n for n in range(group.units - 1, floor - 1, -1) if _rounds(group, n, request.round_to)]
    if not allowed_units:
        return Limits(_no_width(group, request, floor))
    if ratio is None:
        return Limits(allowed_units=tuple(allowed_units))
    wanted = group.units * (1 - ratio)
    keep = min([group.units, *allowed_units], key=lambda n: abs(n - wanted))
    return Limits(allowed_units=tuple(allowed_units), keep=keep)


def _closed(group: Group, request: Request) -> str:
    for pattern in request.protect:
        if any(fnmatchcase(name, pattern) for name in group.producers):
            return f"protected by '{pattern}'"
    if request.include:
        outside = [p for p in group.producers if not any(fnmatchcase(p, i) for i in request.include)]
        if outside:
            return f"{outside[0]} is outside of INCLUDE"
    if group.fixed:
        return group.fixed
    if group.inexact and not request.allow_inexact:
        return f"{group.inexact}: not exact (ALLOW_INEXACT is False)"
    if group.units == 1:
        return "its channels can only be removed all together"
    return ""


def _ratio(group: Group, request: Request) -> float | None:
    for pattern, ratio in request.ratios:
        if any(fnmatchcase(name, pattern) for name in group.producers):
            return ratio
    return None


def _floor(group: Group, max_ratio: float) -> int:
    """Return the fewest units that may stay; the slack makes it 2 for 0.75 of 8, despite rounding."""
    return max(1, math.ceil(group.units * (1 - max_ratio) - 1e-9))


def _rounds(group: Group, units: int, round_to: int) -> bool:
    return units * group.step % round_to == 0


def _no_width(group: Group, request: Request, floor: int) -> str:
    return (
        f"no width from {floor * group.step} to {group.width - group.step} is a multiple of "
        f"ROUND_TO {request.round_to} (step {group.step}, MAX_RATIO {request.max_ratio})"
    )
