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


def by_score(scores: Scores) -> Ranking:
    """Return the ranking of the lowest scores first; of equal ones the first unit goes first."""
    order = np.argsort(scores, kind="stable")
    return Ranking(order, scores[order])
