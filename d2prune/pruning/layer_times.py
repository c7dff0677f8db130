"""The times of a model's layers by their widths, measured in turn with the whole model."""

from __future__ import annotations

import copy
import logging
import statistics
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from d2prune.adapters import TraceInput
from d2prune.core.plan.latency import Grid, LatencyTable
from d2prune.core.types import Site
from d2prune.errors import MISFITS, told
from d2prune.pruning.clock import seconds_of

logger = logging.getLogger(__name__)
FRACTIONS = (0.25, 0.5, 0.75, 1.0)
"""Where the widths lie, as fractions of a layer's, that times are measured at."""
STEP = 16
"""Those widths are multiples of so many channels. The one just below the layer's own is measured, too: powers
of two can be much slower than their neighbours."""
BLOCK = 8
"""Whether widths between multiples of ``STEP`` take as long as the next one is tried so far below it."""
SECONDS = 60.0
"""How long measuring may take; three rounds are made at least, and one before them to warm up."""
FEWEST, MOST = 3, 15
"""Rounds."""
CONVOLUTIONS: Mapping[Any, Any] = {nn.Conv1d: F.conv1d, nn.Conv2d: F.conv2d, nn.Conv3d: F.conv3d}
TRANSPOSED: Mapping[Any, Any] = {
    nn.ConvTranspose1d: F.conv_transpose1d,
    nn.ConvTranspose2d: F.conv_transpose2d,
    nn.ConvTranspose3d: F.conv_transpose3d,
}


@dataclass(frozen=True)
class Call:
    """A call of a layer: the layer, and the shape of its input."""

    layer: Any
    shape: tuple[int, ...]

    @property
    def depthwise(self) -> bool:
        """Whether each channel is convolved alone."""
        groups = getattr(self.layer, "groups", 1)
        return bool(groups > 1 and groups == self.layer.out_channels)

    @property
    def transposed(self) -> bool:
        """Whether it is a transposed convolution."""
        return any(isinstance(self.layer, kind) for kind in TRANSPOSED)

    @property
    def widths(self) -> tuple[int, int]:
        """(out, in) channels; in is 0 where channels are kept apart."""
        if isinstance(self.layer, nn.Linear):
            return self.layer.out_features, self.layer.in_features
        return self.layer.out_channels, 0 if self.depthwise else self.layer.in_channels

    def described(self) -> str:
        """Return what decides its time, widths included."""
        layer = self.layer
        out, inp = self.widths
        if isinstance(layer, nn.Linear):
            return f"linear {inp}->{out} on {self.shape[:-1]}"
        name = "depthwise" if self.depthwise else "grouped" if layer.groups > 1 else "conv"
        name = "transposed" if self.transposed else name
        geometry = f"stride {layer.stride} padding {layer.padding} dilation {layer.dilation}"
        size = f"{self.shape[0]} x {self.shape[2:]}"
        return f"{name} {layer.kernel_size} {inp}->{out} groups {layer.groups} {geometry} on {size}"

    def at(self, out: int, inp: int) -> Callable[[], Tensor]:
        """Return the call at other widths, on random values."""
        layer = self.layer
        like = {"device": layer.weight.device, "dtype": layer.weight.dtype}
        if isinstance(layer, nn.Linear):
            given, weight = torch.rand(*self.shape[:-1], inp, **like), torch.rand(out, inp, **like)
            return lambda: F.linear(given, weight)
        groups, channels = (out, out) if self.depthwise else (layer.groups, inp)
        given = torch.rand(self.shape[0], channels, *self.shape[2:], **like)
        kinds: Mapping[Any, Any] = {**CONVOLUTIONS, **TRANSPOSED}
        function = next(function for kind, function in kinds.items() if isinstance(layer, kind))
        rest: tuple[Any, ...] = (layer.stride, layer.padding, layer.dilation, groups)
        shape = out, channels // groups
        if self.transposed:
            rest = layer.stride, layer.padding, layer.output_padding, groups, layer.dilation
            shape = channels, out // groups
        weight = torch.rand(*shape, *layer.kernel_size, **like)
        return lambda: function(given, weight, None, *rest)


def measure_latency(
    model: nn.Module, trace_input: TraceInput, free: Collection[Site], measured_on: Mapping[str, str]
) -> LatencyTable:
    """Measure a model's latency, and its layers' at several widths, on its own device.

    Everything takes turns, round by round, so that a machine that is busy for a while slows all alike; times
    are medians over the rounds.

    Args:
        model: any model; a copy in eval mode is run.
        trace_input: runs it: the dense part, on one image of the size that costs are counted on.
        free: the axes of layers that pruning may narrow; others are measured at their own width only.
        measured_on: for the table.
    """
    model = copy.deepcopy(model).eval()
    smaller = trace_input.halved(model)
    with torch.no_grad():
        calls, elements = calls_of(model, trace_input)
        less: dict[str, list[Call]] = {}
        fewer: dict[str, float] = {}
        try:
            if smaller is not None:
                less, fewer = calls_of(model, smaller)
        except MISFITS as error:
            logger.info("only one size of input is timed: %s", told(error))
            smaller = None
        grids = _points(calls, free)
        probes = _probes(grids)
        own = {call.described(): [call.widths] for found in less.values() for call in found}
        jobs = {**_jobs({k: v for k, v in own.items() if k not in grids}, less), **_jobs(grids, calls)}
        for probe in probes:
            jobs.update(_jobs({probe.name: probe.widths}, calls))
        wholes: dict[Any, Callable[[], object]] = {"whole": lambda: trace_input.inference(model)}
        if smaller is not None:
            wholes["less"] = lambda: smaller.inference(model)
        times = _in_turns(jobs, wholes, next(model.parameters()).device)
    blocks = _blocks(probes, times)
    tables = {name: _grid(points, name, times, blocks) for name, points in {**own, **grids}.items()}
    named = {layer: tuple(call.described() for call in found) for layer, found in calls.items()}
    sizes = {layer: positions * calls[layer][0].widths[0] for layer, positions in elements.items()}
    rest = times["whole"] - _sum(calls, tables)
    if rest < 0:
        scale, per_element = times["whole"] / _sum(calls, tables), 0.0
    else:
        scale, total = 1.0, max(sum(sizes.values()), 1.0)
        per_element = rest / total
        if smaller is not None and not _same_heads(calls, less):
            other = sum(count * less[layer][0].widths[0] for layer, count in fewer.items())
            growth = (rest - max(times["less"] - _sum(less, tables), 0.0)) / max(total - other, 1.0)
            per_element = min(max(growth, 0.0), per_element)
    used = {name: grid for name, grid in tables.items() if name in grids}
    return LatencyTable(dict(measured_on), times["whole"], used, named, elements, per_element, scale)


def _same_heads(calls: Mapping[str, Sequence[Call]], less: Mapping[str, Sequence[Call]]) -> bool:
    """Return whether layers work on as much at half the size, as heads of a fixed number of boxes do.

    What is done around them (pooling the boxes) shrinks with their channels, and not with the image.
    """
    return any(
        [call.described() for call in made] == [call.described() for call in less.get(layer, ())]
        for layer, made in calls.items()
    )


def calls_of(model: nn.Module, trace_input: TraceInput) -> tuple[dict[str, list[Call]], dict[str, float]]:
    """Return each layer's calls, and how many elements all its outputs have, per channel."""
    calls: dict[str, list[Call]] = {}
    elements: dict[str, float] = {}
    kinds: tuple[Any, ...] = (*CONVOLUTIONS, *TRANSPOSED, nn.Linear)

    def see(name: str, module: nn.Module, given: tuple[Any, ...], output: Tensor) -> None:
        call = Call(module, tuple(given[0].shape))
        if isinstance(output, Tensor) and output.numel():
            calls.setdefault(name, []).append(call)
            elements[name] = elements.get(name, 0.0) + output.numel() / call.widths[0]

    hooks = [
        module.register_forward_hook(lambda m, given, output, name=name: see(name, m, given, output))
        for name, module in model.named_modules()
        if isinstance(module, kinds)
    ]
    try:
        trace_input.inference(model)
    finally:
        for hook in hooks:
            hook.remove()
    return calls, elements


def _points(calls: Mapping[str, Sequence[Call]], free: Collection[Site]) -> dict[str, list[tuple[int, int]]]:
    """Return the widths to measure each call at; of layers that are alike, those that any of them needs."""
    found: dict[str, list[tuple[int, int]]] = {}
    for layer, made in calls.items():
        for call in made:
            out, inp = call.widths
            groups = 1 if call.depthwise else getattr(call.layer, "groups", 1)
            step = groups * -(-STEP // groups)
            outs = _widths(out, step) if (layer, "out") in free else [out]
            inps = _widths(inp, step) if (layer, "in") in free and inp else [inp]
            points = found.setdefault(call.described(), [])
            outs = sorted({*outs, *(o for o, _ in points)})
            inps = sorted({*inps, *(i for _, i in points)})
            found[call.described()] = [(o, i) for o in outs for i in inps]
    return found


def _widths(width: int, step: int) -> list[int]:
    rounded = {max(step, round(width * fraction / step) * step) for fraction in FRACTIONS}
    return sorted({w for w in (*rounded, width - step) if 0 < w < width} | {width})


@dataclass(frozen=True)
class _Probe:
    """Widths of a call on one axis: a multiple of ``STEP``, ``BLOCK`` below it, and ``STEP`` below it."""

    name: str
    axis: int
    widths: tuple[tuple[int, int], tuple[int, int], tuple[int, int]]


def _probes(points: Mapping[str, Sequence[tuple[int, int]]]) -> list[_Probe]:
    """Return what is to be measured to know the size of blocks: below the widths just below the own ones."""
    found = []
    for name, pairs in points.items():
        out, inp = max(pairs)
        if min(out, inp or out) < 4 * STEP or _kind(name) in ("grouped", "transposed"):
            continue
        less = (STEP, STEP + BLOCK, 2 * STEP)
        if (out - STEP, inp) in pairs:
            found.append(_Probe(name, 0, tuple((out - n, inp) for n in less)))  # type: ignore[arg-type]
        if (out, inp - STEP) in pairs:
            found.append(_Probe(name, 1, tuple((out, inp - n) for n in less)))  # type: ignore[arg-type]
    return found


def _blocks(probes: Sequence[_Probe], times: Mapping[Any, float]) -> dict[tuple[str, int], tuple[int, float]]:
    """Return the channels of a block, and what a broken one costs as a factor, by kind of call and axis.

    A block is ``STEP`` if, over all calls, half a step saves less than a third of what a step saves.
    """
    sums: dict[tuple[str, int], list[float]] = {}
    for probe in probes:
        row = sums.setdefault((_kind(probe.name), probe.axis), [0.0, 0.0, 0.0])
        for place, (out, inp) in enumerate(probe.widths):
            row[place] += times[probe.name, out, inp]
    found = {}
    for key, (whole, between, step) in sums.items():
        large = whole - between < (whole - step) / 3
        found[key] = (STEP, max(1.0, between / whole)) if large else (BLOCK, 1.0)
    return found


def _kind(name: str) -> str:
    return name.partition(" ")[0]


def _jobs(
    points: Mapping[str, Sequence[tuple[int, int]]], calls: Mapping[str, Sequence[Call]]
) -> dict[Any, tuple[Call, int, int]]:
    by_name = {call.described(): call for found in calls.values() for call in found}
    return {
        (name, out, inp): (by_name[name], out, inp) for name, pairs in points.items() for out, inp in pairs
    }


def _in_turns(
    jobs: Mapping[Any, tuple[Call, int, int]],
    wholes: Mapping[Any, Callable[[], object]],
    device: torch.device,
) -> dict[Any, float]:
    """Return the median time of each job and of the whole runs, in milliseconds."""
    times: dict[Any, list[float]] = {key: [] for key in (*jobs, *wholes)}
    begin, rounds, turn = time.monotonic(), MOST, -1
    while turn < rounds:
        for key, run in wholes.items():
            times[key].append(seconds_of(run, device))
        for key, (call, out, inp) in jobs.items():
            run = call.at(out, inp)
            run()  # its memory is the process's own then, as in a model that runs again and again
            times[key].append(seconds_of(run, device))
        turn += 1
        if turn == 0:
            first = time.monotonic() - begin
            rounds = min(MOST, max(FEWEST, int(SECONDS / first) - 1))
            logger.info(
                "measuring the latency of %d calls at several widths: about %.0f s", len(jobs), first * rounds
            )
    return {key: 1000 * _quiet(found[1:]) for key, found in times.items()}


def _quiet(seconds: Sequence[float]) -> float:
    """Return the first quartile: on a busy machine it tells better than the median what a call takes."""
    return statistics.quantiles(seconds, n=4, method="inclusive")[0]


def _grid(
    points: Sequence[tuple[int, int]],
    name: str,
    times: Mapping[Any, float],
    blocks: Mapping[tuple[str, int], tuple[int, float]],
) -> Grid:
    outs, inps = sorted({out for out, _ in points}), sorted({inp for _, inp in points})
    rows = tuple(tuple(times[name, out, inp] for inp in inps) for out in outs)
    (of_outs, out), (of_inps, inp) = (blocks.get((_kind(name), axis), (1, 1.0)) for axis in (0, 1))
    return Grid(tuple(outs), tuple(inps), rows, (of_outs, of_inps), (out, inp))


def _sum(calls: Mapping[str, Sequence[Call]], grids: Mapping[str, Grid]) -> float:
    return sum(grids[call.described()].at(*call.widths) for found in calls.values() for call in found)
