"""The methods that are compared."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Method:
    """How a prune chooses channels and what it does to the weights that stay."""

    criterion: str
    allocation: str
    repair: str


METHODS = {
    "d2prune": Method("auto", "auto", "refit"),
    "d2prune, no repair": Method("auto", "auto", ""),
    "reconstruction + repair": Method("reconstruction", "per_cost", "refit"),
    "fisher": Method("fisher", "per_cost", ""),
    "fisher + repair": Method("fisher", "per_cost", "refit"),
    "magnitude": Method("magnitude", "uniform", ""),
    "magnitude + repair": Method("magnitude", "uniform", "refit"),
    "magnitude, global": Method("magnitude", "global", ""),
    "torch-pruning L2": Method("torch_pruning.GroupMagnitudeImportance", "global", ""),
    "random": Method("random", "uniform", ""),
    "random + repair": Method("random", "uniform", "refit"),
}
"""By name; the first is what runs with no key set."""
