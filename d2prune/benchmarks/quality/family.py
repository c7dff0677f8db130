"""What the benchmark needs of a kind of models."""

from __future__ import annotations

from typing import Any, Protocol

from torch import nn

from d2prune.adapters import TraceInput
from d2prune.pruning.budget import Scores
from d2prune.pruning.calibration import Losses


class Family(Protocol):
    """A trained model, its data, and how both are used.

    Attributes:
        name: the row's name.
    """

    name: str

    @property
    def round_to(self) -> int:
        """What widths are multiples of."""

    def load(self) -> nn.Module:
        """Return the trained model, in eval mode.

        Raises:
            PruneError: if it has not been trained; the text has the command.
        """

    def trace_input(self, model: nn.Module) -> TraceInput:
        """Return what to trace, count and prove on."""

    def batches(self, seed: int) -> tuple[list[Any], Losses | None]:
        """Return images of the training set to calibrate on, and their loss; None takes the adapter's."""

    def evaluate(self, model: nn.Module) -> Scores:
        """Return the model's scores on the test set, in percent."""

    def tune(self, model: nn.Module, iterations: int, seed: int, *, pruned: bool = True) -> nn.Module:
        """Train a copy of the model, pruned or not, each in the way that is best for it; return the copy."""
