"""Rankings: in which order the units of a group go, and what each one adds to the error."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from d2prune.core.types import Indices

Scores = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Ranking:
    """The order in which a group's units go.

    Attributes:
        order: (U,) units, the first to go first.
        added: (U,) the error, or score, that each adds as it goes, in this order.
    """

    order: Indices
    added: Scores

    @property
    def scores(self) -> Scores:
        """(U,) what each unit adds, by unit."""
        scores = np.empty_like(self.added)
        scores[self.order] = self.added
        return scores

    @property
    def summed(self) -> Scores:
        """(U + 1,) what the first 0 to U units add together."""
        return np.concatenate([[0.0], np.cumsum(self.added)])


@dataclass(frozen=True)
class Sensitivity:
    """What a group loses as it gets narrower.

    Attributes:
        group: its name.
        units: before.
        kept: the units that stay.
        errors: (POINTS + 1,) the error, or score, added by removing 0 to all of its units, in equal steps.
    """

    group: str
    units: int
    kept: int
    errors: tuple[float, ...]


POINTS = 16
"""Steps of a :class:`Sensitivity`."""


def sensitivity(group: str, ranking: Ranking, kept: int) -> Sensitivity:
    """Return a group's sensitivity by its ranking."""
    units = len(ranking.order)
    places = np.linspace(0, units, POINTS + 1)
    return Sensitivity(
        group, units, kept, tuple(np.interp(places, np.arange(units + 1), ranking.summed).tolist())
    )


def by_score(scores: Scores) -> Ranking:
    """Return the ranking of the lowest scores first; of equal ones the first unit goes first."""
    order = np.argsort(scores, kind="stable")
    return Ranking(order, scores[order])
