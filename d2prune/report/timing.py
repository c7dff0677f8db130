"""Latency of several models on the same inputs, taken so that they can be compared.

Machines are shared and clocks drift: the models therefore take turns (A B C, A B C, …) and ratios
are formed between runs that lie next to each other, before any median.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, DatasetMapper
from detectron2.structures import ImageList
from torch import nn

from d2prune.adapters import find_adapter, padding_step
from d2prune.errors import PruneError
from d2prune.pruning.clock import rounds, seconds_of

Batch = list[dict[str, Any]]


@dataclass(frozen=True)
class Latency:
    """Times of one model in milliseconds, and how they compare with the first model's.

    Attributes:
        median, min, max: over the timed runs, ms.
        runs: how many were timed.
        ratio: median over the rounds of (this model's time / the first model's in that round).
        ratio_low, ratio_high: first and third quartile of those ratios.
    """

    median: float
    min: float
    max: float
    runs: int
    ratio: float
    ratio_low: float
    ratio_high: float


def latency(
    models: Mapping[str, nn.Module],
    inputs: Sequence[Batch],
    runs: int = 30,
    warmup: int = 5,
    *,
    dense: bool = False,
    seconds: float = math.inf,
) -> dict[str, Latency]:
    """Time Detectron2 models end to end: preprocessing, network, decoding and postprocessing.

    Every model sees every input in turn. Modes (train, eval) are put back afterwards.

    Args:
        models: by name; ratios are to the first.
        inputs: batches as a model's forward takes them; for batch-1 latency, lists of one dict.
        runs: timed rounds, in each of which every model runs once.
        warmup: rounds before those, not timed.
        dense: time only the adapter's dense forward, on inputs already on the model's device.
        seconds: how long it may take; then rounds are left out, a quarter of the time is for warming up,
            and one round at least is timed.

    Raises:
        PruneError: there is nothing to time, or ``dense`` is asked of a model without an adapter.
    """
    _check(models, inputs, runs, warmup)
    with evaluating(models.values()), torch.inference_mode():
        prepare = _dense_call if dense else _whole_call
        calls = {name: [prepare(model, batch) for batch in inputs] for name, model in models.items()}
        measured: dict[str, list[float]] = {name: [] for name in models}
        for turn in rounds(warmup, runs, seconds):
            for name, model in models.items():
                taken = seconds_of(calls[name][turn % len(inputs)], _device(model))
                if turn >= 0:
                    measured[name].append(taken)
    first = next(iter(measured.values()))
    return {name: _summary(times, first) for name, times in measured.items()}


def real_inputs(cfg: CfgNode, count: int) -> list[Batch]:
    """Return the first ``count`` images of the config's first test set, each a batch of one.

    Raises:
        PruneError: DATASETS.TEST is empty, or ``count`` is not 1 or more.
    """
    if count < 1:
        raise PruneError(f"{count} test images asked for; expected 1 or more")
    if not cfg.DATASETS.TEST:
        raise PruneError("DATASETS.TEST is empty; name the data set to take real images from")
    mapper = DatasetMapper(cfg, is_train=False)
    return [[mapper(entry)] for entry in DatasetCatalog.get(cfg.DATASETS.TEST[0])[:count]]


@contextmanager
def evaluating(models: Iterable[nn.Module]) -> Iterator[None]:
    """Set eval mode inside; afterwards every module is back in the mode that it had itself."""
    models = list(models)
    modes = {module: module.training for model in models for module in model.modules()}
    try:
        for model in models:
            model.eval()
        yield
    finally:
        for model in models:  # through the model's own method, which may do more than set modes
            model.train(modes[model])
        for module, mode in modes.items():
            module.training = mode


def _check(models: Mapping[str, nn.Module], inputs: Sequence[Batch], runs: int, warmup: int) -> None:
    if not models or not inputs:
        raise PruneError(f"nothing to time: {len(models)} models, {len(inputs)} inputs")
    if runs < 1 or warmup < 0:
        raise PruneError(f"runs is {runs}, warmup {warmup}; expected runs >= 1 and warmup >= 0")


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


def _whole_call(model: nn.Module, batch: Batch) -> Callable[[], Any]:
    return lambda: model(batch)


def _dense_call(model: nn.Module, batch: Batch) -> Callable[[], Any]:
    adapter = find_adapter(model)
    if adapter is None:
        raise PruneError(
            f"no adapter for {type(model).__name__}: its dense forward is unknown; time it end to "
            "end, or register one with @d2prune.register_adapter"
        )
    weight = next(model.parameters())
    pixels = [entry["image"].to(weight) for entry in batch]
    images = ImageList.from_tensors(pixels, padding_step(model)).tensor
    return lambda: adapter.dense(model, images, training_branches=False)


def _summary(seconds: Sequence[float], first: Sequence[float]) -> Latency:
    times = [1000 * value for value in seconds]
    ratios = [a / b for a, b in zip(seconds, first, strict=True)]
    # a single run has no spread
    spread = statistics.quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else 3 * ratios
    low, middle, high = spread
    return Latency(statistics.median(times), min(times), max(times), len(times), middle, low, high)
