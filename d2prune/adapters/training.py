"""The losses of Detectron2's models on a labelled batch."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from detectron2.utils.events import EventStorage
from torch import Tensor, nn


def training_losses(
    model: nn.Module, batch: Sequence[Mapping[str, Any]], auxiliary: Collection[str]
) -> Mapping[str, Tensor] | None:
    """Return the losses that the model returns in training, without the ``auxiliary`` ones.

    Norms keep their statistics and nothing is dropped. None if nothing in the batch is labelled.
    """
    labelled = (len(sample.get("instances", ())) or "sem_seg" in sample for sample in batch)
    if not any(labelled):
        return None
    with _training(model), EventStorage():
        losses = model(batch)
    return {name: loss for name, loss in losses.items() if name not in auxiliary} or None


@contextmanager
def _training(model: nn.Module) -> Iterator[None]:
    """Put a model into training mode, all but its norms and what drops at random."""
    before = {module: module.training for module in model.modules()}
    for module in before:
        still = hasattr(module, "running_mean") or "Drop" in type(module).__name__
        module.training = not still
    try:
        yield
    finally:
        for module, training in before.items():
            module.training = training
