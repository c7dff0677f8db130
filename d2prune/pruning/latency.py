"""Latency: the price list that a plan is made by, and the pruned model timed beside the unpruned one."""

from __future__ import annotations

import copy
import hashlib
import json
import logging
import os
import statistics
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from d2prune.adapters import TraceInput
from d2prune.adapters.trace_input import sizes
from d2prune.core.plan.latency import LatencyTable
from d2prune.core.types import Group, Site
from d2prune.errors import PruneError
from d2prune.files import atomic_write
from d2prune.pruning.clock import device_name, rounds, seconds_of
from d2prune.pruning.layer_times import FEWEST, measure_latency, seen_in

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Timed:
    """A pruned model's latency, and the unpruned one's, in milliseconds: the dense part on one image.

    Attributes:
        before: the unpruned model, measured.
        after: the pruned model, measured in turn with it.
        ratio: the median of after / before in the rounds.
        predicted: what the ratio was to be, by the table.
    """

    before: float
    after: float
    ratio: float
    predicted: float


def table_for(
    model: nn.Module, trace_input: TraceInput, groups: Iterable[Group], path: str = ""
) -> LatencyTable:
    """Return the table of a model's latencies: read where it was measured before, else measured now.

    Args:
        model: any model, on the device that it is to be fast on.
        trace_input: runs it.
        groups: of channels that may be pruned.
        path: of a table, which may be another machine's; written if there is none. By default tables are kept
            by device, threads, versions, input and calls in the folder that D2PRUNE_CACHE names
            (~/.cache/d2prune).

    Raises:
        PruneError: if the table is of another model, input or number type.
    """
    model = copy.deepcopy(model).eval()
    here, seen = described_here(model, trace_input), seen_in(model, trace_input)
    free = {member.site for group in groups for member in group.members}
    kept = Path(path) if path else _cached(here, seen.described, free)
    if kept.is_file():
        try:
            table = LatencyTable.from_json(kept.read_text(encoding="utf-8"), str(kept))
            _check_table(table, seen.described, here, str(kept))
            return table
        except PruneError as error:
            if path:
                raise
            logger.warning("%s; measured anew", error)
    table = measure_latency(model, trace_input, seen, free, here)
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(kept) as file:
            file.write(table.to_json())
    except (OSError, PruneError) as error:
        if path:
            raise
        logger.info("latencies are not kept for the next time: %s", error)
    return table


def described_here(model: nn.Module, trace_input: TraceInput) -> dict[str, str]:
    """Return what a table measured now would be of."""
    parameter = next(model.parameters())
    return {
        "device": device_name(parameter.device),
        "threads": str(torch.get_num_threads()),
        "torch": torch.__version__,
        "backend": "eager",
        "dtype": str(parameter.dtype),
        "input": sizes(trace_input.counted),
    }


def _cached(here: Mapping[str, str], calls: Mapping[str, Any], free: Collection[Site]) -> Path:
    folder = os.environ.get("D2PRUNE_CACHE") or os.path.join(os.path.expanduser("~"), ".cache", "d2prune")
    text = json.dumps([here, calls, sorted(free)], sort_keys=True)
    return Path(folder) / "latency" / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.json"


def _check_table(
    table: LatencyTable, calls: Mapping[str, tuple[str, ...]], here: Mapping[str, str], path: str
) -> None:
    """Refuse a table of something else; say whose it is."""
    for key in ("input", "dtype", "backend"):
        held = table.measured_on.get(key)
        if held != here[key]:
            raise PruneError(
                f"MODEL.PRUNING.LATENCY_TABLE '{path}' was measured with {key} {held}; expected {here[key]}, "
                "as here: measure it again (delete the file)",
                keys=("MODEL.PRUNING.LATENCY_TABLE",),
            )
    for layer, names in calls.items():
        if table.calls.get(layer) != names:
            raise PruneError(
                f"MODEL.PRUNING.LATENCY_TABLE '{path}' is of another model: it holds no times of {layer} "
                f"({names[0]}); measure it for this one (delete the file)",
                keys=("MODEL.PRUNING.LATENCY_TABLE",),
            )
    logger.info("latencies of '%s', measured on %s", path, ", ".join(table.measured_on.values()))


def compare(
    model: nn.Module, pruned: nn.Module, trace_input: TraceInput, predicted: float, seconds: float = 20.0
) -> Timed:
    """Time two models in turn, for so many seconds at most, but three rounds at least.

    Args:
        model: the unpruned one.
        pruned: the other.
        trace_input: runs them.
        predicted: the ratio that the table gives.
        seconds: how long it may take.
    """
    models = [copy.deepcopy(one).eval() for one in (model, pruned)]
    device = next(model.parameters()).device
    with torch.inference_mode():
        turns = rounds(1, 50, seconds, FEWEST)
        times = [[seconds_of(partial(trace_input.inference, m), device) for m in models] for _ in turns]
    timed = times[1:]  # the first is to warm up
    before, after = (1000 * statistics.median(column) for column in zip(*timed, strict=True))
    ratio = statistics.median(second / first for first, second in timed)
    return Timed(before, after, ratio, predicted)
