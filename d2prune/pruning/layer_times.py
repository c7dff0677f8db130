"""The times of a model's layers by their widths, measured in turn with the whole model."""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
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
    def groups(self) -> int:
        """Of the convolution; 1 for a linear layer."""
        return getattr(self.layer, "groups", 1)

    @property
    def depthwise(self) -> bool:
        """Whether each channel is convolved alone."""
        return self.groups > 1 and self.groups == int(self.layer.out_channels)

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


@dataclass(frozen=True)
class Seen:
    """What one run of a model does.

    Attributes:
        calls: by layer.
        elements: by layer, how many elements all its outputs have, per channel.
    """

    calls: Mapping[str, Sequence[Call]]
    elements: Mapping[str, float]

    @property
    def described(self) -> dict[str, tuple[str, ...]]:
        """What decides the times of the calls, by layer."""
        return {layer: tuple(call.described() for call in made) for layer, made in self.calls.items()}

    @property
    def by_description(self) -> dict[str, Call]:
        """One call of each kind."""
        return {call.described(): call for made in self.calls.values() for call in made}

    @property
    def size(self) -> float:
        """How many elements all outputs have."""
        return sum(count * self.calls[layer][0].widths[0] for layer, count in self.elements.items())

    def sum(self, grids: Mapping[str, Grid]) -> float:
        """Return what all calls take at their own widths, in milliseconds."""
        return sum(grids[c.described()].at(*c.widths) for made in self.calls.values() for c in made)


@torch.no_grad()
def seen_in(model: nn.Module, trace_input: TraceInput) -> Seen:
    """Run a model once, and return what it does."""
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
    return Seen(calls, elements)


@torch.no_grad()
def measure_latency(
    model: nn.Module,
    trace_input: TraceInput,
    seen: Seen,
    free: Collection[Site],
    measured_on: Mapping[str, str],
) -> LatencyTable:
    """Measure a model's latency, and its layers' at several widths, on its own device.

    Everything takes turns, round by round, so that a machine that is busy for a while slows all alike; times
    are first quartiles over the rounds.

    Args:
        model: any model, in eval mode.
        trace_input: runs it: the dense part, on one image of the size that costs are counted on.
        seen: what such a run does.
        free: the axes of layers that pruning may narrow; others are measured at their own width only.
        measured_on: for the table.
    """
    smaller = trace_input.halved(model)
    less = Seen({}, {})
    try:
        if smaller is not None:
            less = seen_in(model, smaller)
    except MISFITS as error:
        logger.info("only one size of input is timed: %s", told(error))
        smaller = None
    points = _points(seen.calls, free)
    probes = _probes(points)
    wanted = {name: [call.widths] for name, call in less.by_description.items() if name not in points}
    wanted.update(points)
    jobs = {(name, *widths) for name, pairs in wanted.items() for widths in pairs}
    jobs.update((probe.name, *widths) for probe in probes for widths in probe.widths)
    wholes: dict[Any, Callable[[], object]] = {"whole": partial(trace_input.inference, model)}
    if smaller is not None:
        wholes["less"] = partial(smaller.inference, model)
    calls = {**less.by_description, **seen.by_description}
    times = _in_turns(sorted(jobs), calls, wholes, next(model.parameters()).device)
    blocks = _blocks(probes, times)
    grids = {name: _grid(pairs, name, times, blocks) for name, pairs in wanted.items()}
    rest, scale, per_element = times["whole"] - seen.sum(grids), 1.0, 0.0
    if rest < 0:
        scale = times["whole"] / seen.sum(grids)
    else:
        per_element = rest / max(seen.size, 1.0)
        if smaller is not None and not _same_heads(seen, less):
            grown = rest - max(times["less"] - less.sum(grids), 0.0)
            per_element = min(max(grown / max(seen.size - less.size, 1.0), 0.0), per_element)
    used = {name: grids[name] for name in points}
    return LatencyTable(
        dict(measured_on), times["whole"], used, seen.described, dict(seen.elements), per_element, scale
    )


def _same_heads(seen: Seen, less: Seen) -> bool:
    """Return whether layers work on as much at half the size, as heads of a fixed number of boxes do.

    What is done around them (pooling the boxes) shrinks with their channels, and not with the image.
    """
    at_half = less.described
    return any(at_half.get(layer) == described for layer, described in seen.described.items())


def _points(calls: Mapping[str, Sequence[Call]], free: Collection[Site]) -> dict[str, list[tuple[int, int]]]:
    """Return the widths to measure each call at; of layers that are alike, those that any of them needs."""
    found: dict[str, list[tuple[int, int]]] = {}
    for layer, made in calls.items():
        for call in made:
            out, inp = call.widths
            groups = 1 if call.depthwise else call.groups
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
    widths: tuple[tuple[int, int], ...]


def _probes(points: Mapping[str, Sequence[tuple[int, int]]]) -> list[_Probe]:
    """Return what is to be measured to know the size of blocks: below the widths just below the own ones."""
    found = []
    for name, pairs in points.items():
        out, inp = max(pairs)
        if min(out, inp or out) < 4 * STEP or _kind(name) in ("grouped", "transposed"):
            continue
        less = (STEP, STEP + BLOCK, 2 * STEP)
        if (out - STEP, inp) in pairs:
            found.append(_Probe(name, 0, tuple((out - n, inp) for n in less)))
        if (out, inp - STEP) in pairs:
            found.append(_Probe(name, 1, tuple((out, inp - n) for n in less)))
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


def _in_turns(
    jobs: Sequence[tuple[str, int, int]],
    calls: Mapping[str, Call],
    wholes: Mapping[Any, Callable[[], object]],
    device: torch.device,
) -> dict[Any, float]:
    """Return the time of each job, a call at some widths, and of each whole run, in milliseconds."""
    times: dict[Any, list[float]] = {key: [] for key in (*jobs, *wholes)}
    begin, rounds, turn = time.monotonic(), MOST, -1
    while turn < rounds:
        for key, run in wholes.items():
            times[key].append(seconds_of(run, device))
        for name, out, inp in jobs:
            run = calls[name].at(out, inp)
            run()  # its memory is the process's own then, as in a model that runs again and again
            times[name, out, inp].append(seconds_of(run, device))
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
