"""The ways to prune that "auto" stands for, and the choice of the one that costs least."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from d2prune.adapters import TraceInput
from d2prune.core.copies import in_float32
from d2prune.core.plan.criteria import AUTO, CRITERIA, Criterion, criterion_of
from d2prune.core.types import Request
from d2prune.errors import PruneError
from d2prune.pruning.budget import Left
from d2prune.pruning.calibration import Data, Measured

logger = logging.getLogger(__name__)
HELD_OUT = 6
"""One in so many batches is kept apart, to choose by."""
LEAST = 0.01
"""A loss counts as no smaller than this share of all together, lest one near zero decide alone."""
COLLAPSE = 0.6
"""A change of outputs above which little accuracy is left; see docs/quality.md."""
MEASURED = ("reconstruction", "fisher")
SHARED_OUT = ("per_cost", "global", "uniform")


@dataclass(frozen=True, eq=False)
class Way:
    """A way to meet a request: without "auto"."""

    request: Request
    criterion: Criterion

    def with_amount(self, amount: float) -> Way:
        """Return the same way to remove another amount."""
        return Way(dataclasses.replace(self.request, amount=amount), self.criterion)

    def leaving(self, left: Left, whole: float) -> Way:
        """Return the same way to leave no more of a cost than a budget, of a model that costs ``whole``."""
        request = dataclasses.replace(
            self.request, target=left.target, amount=left.amount(whole), at_least=True
        )
        return Way(request, self.criterion)

    def __str__(self) -> str:
        return f"{self.request.criterion}, {self.request.allocation}"


@dataclass(frozen=True)
class Tried:
    """What a way to prune comes to.

    Attributes:
        criterion, allocation: the way.
        loss: on batches that it was not made by, as a multiple of the unpruned model's, in the mean over its
            losses, so that a small one counts as much as a large one; 1 without labels.
        change: of the model's outputs on these batches: squared, as a fraction of each output's variance, in
            the mean over outputs.
    """

    criterion: str
    allocation: str
    loss: float
    change: float

    @property
    def cost(self) -> float:
        """What ways are compared by.

        Each of its factors alone misjudges some model. The loss has the larger power, because a part of it is
        left in any model: it differs less between ways than the change does. Any power from 2 to 20 chose
        alike on the models of docs/quality.md.
        """
        return self.loss**4 * self.change


def ways(request: Request, criterion: Criterion | None, has_data: bool) -> tuple[Way, ...]:
    """Return the ways to meet ``request``: one, unless "auto" leaves a choice and there are data.

    Which allocation is best depends on the model: errors of layers add up in some and compound in others.
    Without data it is magnitude, the same fraction everywhere, because the global order of magnitudes takes
    whole stages away.

    Args:
        request: what was asked for.
        criterion: the user's own; None takes the one that ``request`` names.
        has_data: whether there are batches.

    Raises:
        PruneError: for an unknown criterion, or one that needs data that are not there.
    """
    if request.criterion == AUTO and criterion is None:
        names = MEASURED if has_data else ("magnitude",)
        if not has_data:
            logger.warning(
                "no data to calibrate on: channels are chosen by magnitude and nothing is repaired, which "
                "loses far more accuracy; give a few batches (prune(data=...), DATASETS.TRAIN)"
            )
        known = [(name, CRITERIA[name]) for name in names]
    else:
        known = [(request.criterion, criterion or criterion_of(request.criterion))]
    for name, found in known:
        if found.needs and not has_data:
            raise PruneError(
                f"MODEL.PRUNING.CRITERION '{name}' needs data: give prune(data=...), or DATASETS.TRAIN and "
                "MODEL.PRUNING.CALIBRATION_IMAGES",
                keys=("MODEL.PRUNING.CRITERION",),
            )
    return tuple(
        Way(dataclasses.replace(request, criterion=name, allocation=allocation), found)
        for name, found in known
        for allocation in _allocations(request, found)
    )


def _allocations(request: Request, criterion: Criterion) -> Sequence[str]:
    if request.allocation != AUTO:
        return (request.allocation,)
    return SHARED_OUT if criterion.needs else ("uniform",)


def held_out(data: Data) -> tuple[Data, Data]:
    """Split data into those to calibrate on, and those to choose by; of very few, all serve for both."""
    count = len(data.batches) // HELD_OUT
    if not count:
        return data, data
    first, last = data.batches[:-count], data.batches[-count:]
    return dataclasses.replace(data, batches=first), dataclasses.replace(data, batches=last)


class Judge:
    """Says on held-out data what a pruned model's losses and outputs come to, see :class:`Tried`."""

    def __init__(
        self, model: nn.Module, data: Data, trace_input: TraceInput, losses: Measured | None
    ) -> None:
        self._model, self._batches, self._trace_input = in_float32(model), data.batches, trace_input
        self._losses = losses
        self._unpruned = self._means(self._model)

    def __len__(self) -> int:
        return len(self._batches)

    @torch.no_grad()
    def measure(self, pruned: nn.Module) -> tuple[float, float]:
        """Return the loss and the change of ``pruned``; infinite where they are not finite."""
        pruned = in_float32(pruned)
        least = LEAST * sum(self._unpruned.values())
        means = self._means(pruned)
        losses = [means[name] / max(value, least, 1e-12) for name, value in self._unpruned.items()]
        # The unpruned model runs anew each time: all its outputs would take more memory than the model.
        changes = [_change(self._model, pruned, batch, self._trace_input) for batch in self._batches]
        return _mean(losses or [1.0]), _mean(changes)

    @torch.no_grad()
    def _means(self, model: nn.Module) -> dict[str, float]:
        """Return the model's losses, each in the mean over the batches that have it."""
        if self._losses is None:
            return {}
        found: dict[str, list[float]] = defaultdict(list)
        with torch.random.fork_rng():
            torch.manual_seed(0)  # R-CNNs draw samples: the same for all
            for batch in self._batches:
                for name, value in (self._losses(model, batch) or {}).items():
                    found[name].append(float(value))
        return {name: sum(values) / len(values) for name, values in found.items()}


def _mean(values: Sequence[float]) -> float:
    mean = sum(values) / len(values) if values else math.inf
    return mean if math.isfinite(mean) else math.inf


def _change(model: nn.Module, pruned: nn.Module, batch: object, trace_input: TraceInput) -> float:
    pairs = zip(trace_input.batch(model, batch), trace_input.batch(pruned, batch), strict=True)
    changes = [_relative(before[name], after[name]) for before, after in pairs for name in before]
    return sum(changes) / len(changes)


def _relative(before: Tensor, after: Tensor) -> float:
    variance = float((before - before.mean()).square().sum())
    return float((after - before).square().sum()) / max(variance, 1e-12)
