"""Calibration of a model on a user's batches: which of them it can run, and with which loss."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from d2prune.adapters import TraceInput
from d2prune.core.calibrate.collect import calibrate
from d2prune.core.calibrate.moments import WIDEST, Statistics
from d2prune.core.copies import in_float32
from d2prune.core.types import Group
from d2prune.errors import MISFITS, PruneError, told

logger = logging.getLogger(__name__)
REPAIRS = ("", "fold", "refit")
Losses = Callable[[nn.Module, Any], Tensor | Mapping[str, Tensor] | None]
Measured = Callable[[nn.Module, Any], Mapping[str, Tensor] | None]
"""``losses(model, batch)`` by name; None for a batch without labels."""


@dataclass(frozen=True, eq=False)
class Data:
    """Batches to choose and repair channels by.

    Attributes:
        batches: one at a time what the model runs on: its input or, for models of Detectron2, list[dict].
        loss: ``loss(model, batch)``, a scalar or a dict of them; None takes that of the model's adapter
            where batches have labels.
        repair: "refit" repairs by all places of a kernel, "fold" (faster, weaker) by whole channels, "" not
            at all.
    """

    batches: Sequence[Any]
    loss: Losses | None = None
    repair: str = "refit"


def data_of(batches: Iterable[Any] | None, loss: Losses | None, repair: str | None) -> Data | None:
    """Return the data to calibrate on; None without batches.

    Raises:
        PruneError: if ``repair`` is unknown, or needs batches that are not there.
    """
    if repair is not None:
        check_repair(repair)
    if batches is None:
        if repair or loss is not None:
            raise PruneError("repair= and loss= need data=: an iterable of the model's inputs")
        return None
    return Data(tuple(batches), loss, "refit" if repair is None else repair)


def check_repair(repair: str) -> None:
    """Raise PruneError for an unknown way to repair."""
    if repair not in REPAIRS:
        allowed = ", ".join(map(repr, REPAIRS))
        raise PruneError(
            f"MODEL.PRUNING.REPAIR is {repair!r}; expected one of: {allowed}", keys=("MODEL.PRUNING.REPAIR",)
        )


def losses_of(model: nn.Module, trace_input: TraceInput, data: Data) -> Measured | None:
    """Return the losses to measure by: the user's, or the adapter's if the first batches have labels."""
    if data.loss is not None:
        given = data.loss
        return lambda model, batch: _named(given(model, batch))
    if trace_input.adapter is None or not data.batches:
        return None
    losses = trace_input.adapter.losses
    copy = in_float32(model)
    try:
        with torch.no_grad(), torch.random.fork_rng():  # R-CNNs draw samples
            labelled = any(losses(copy, batch) is not None for batch in data.batches[:3])
    except MISFITS as error:
        logger.warning("the loss of %s can't be used: %s", type(model).__name__, told(error))
        return None
    return losses if labelled else None


def statistics_of(
    model: nn.Module,
    groups: Sequence[Group],
    trace_input: TraceInput,
    data: Data,
    losses: Measured | None,
    gates: bool,
) -> Statistics:
    """Calibrate a copy of ``model`` on ``data``, with the gradients of its losses where it has any.

    Args:
        model: of any float dtype.
        groups: those that may be pruned.
        trace_input: runs the model.
        data: its batches are used, and whether its repair is by places of the kernel.
        losses: see :func:`losses_of`.
        gates: whether to collect derivatives by factors on channels, too.
    """
    start, labels = time.monotonic(), "with" if losses is not None else "without"
    loss = None if losses is None else lambda model, batch: _summed(losses(model, batch))
    logger.info("calibrating on %d batches, %s labels", len(data.batches), labels)
    widest = 0 if data.repair == "fold" else WIDEST
    found = calibrate(
        in_float32(model), groups, data.batches, trace_input.batch, loss, gates and loss is not None, widest
    )
    logger.info("calibrated in %.0f s", time.monotonic() - start)
    for layer, reason in found.unmeasured.items():
        logger.info("%s is not measured: %s", layer, reason)
    return found


def _summed(losses: Mapping[str, Tensor] | None) -> Tensor | None:
    return sum(losses.values()) if losses else None  # type: ignore[return-value]


def _named(losses: Tensor | Mapping[str, Tensor] | None) -> Mapping[str, Tensor] | None:
    return {"loss": losses} if isinstance(losses, Tensor) else losses
