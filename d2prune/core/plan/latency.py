"""A price list in milliseconds: what layers take by their widths, where and how it was measured.

Each call of a layer has a grid of times over its (out, in) widths, linear between the points. Processors
work on channels in blocks of 8 or 16, so widths are priced as the next whole block. What else a model does
(norms, activations, sums) is priced by the elements of the layers' outputs, or does not change.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from d2prune.errors import PruneError

VERSION = 1


@dataclass(frozen=True)
class Grid:
    """Milliseconds of one call, by widths; between the points and beyond them as near as they tell.

    Attributes:
        outs: output widths, increasing.
        inps: input widths, increasing; (0,) for layers that keep channels apart.
        ms: by output width and input width. A narrower layer is never priced higher than a wider one.
        blocks: channels of a block, of outputs and of inputs.
        broken: factors on the time where the last block of outputs, or of inputs, is not whole.
    """

    outs: tuple[int, ...]
    inps: tuple[int, ...]
    ms: tuple[tuple[float, ...], ...]
    blocks: tuple[int, int] = (1, 1)
    broken: tuple[float, float] = (1.0, 1.0)
    _known: dict[tuple[int, int], float] = field(default_factory=dict, compare=False, repr=False)

    @cached_property
    def _rows(self) -> NDArray[np.float64]:
        """The times, none of which is below a narrower call's."""
        return np.maximum.accumulate(np.maximum.accumulate(np.array(self.ms), 0), 1)

    def at(self, out: int, inp: int) -> float:
        """Return the time at widths (channels)."""
        if (out, inp) not in self._known:
            whole, times = [], 1.0
            for width, block, factor in zip((out, inp), self.blocks, self.broken, strict=True):
                whole.append(-(-width // block) * block)
                times *= factor if width % block else 1.0
            by_out = [np.interp(whole[1], self.inps, row) for row in self._rows]
            self._known[out, inp] = times * float(np.interp(whole[0], self.outs, by_out))
        return self._known[out, inp]


@dataclass(frozen=True)
class LatencyTable:
    """What a model's layers take, in milliseconds.

    Attributes:
        measured_on: device, threads, versions, number type, backend and input sizes, in words.
        whole: the whole model, measured.
        grids: by a description of the call.
        calls: by layer, the descriptions of its calls.
        elements: by layer, how many elements all its outputs have, per channel.
        per_element: ms that each of these costs besides.
        scale: factor on the grids, below 1 where layers take less inside the model than alone.
    """

    measured_on: Mapping[str, str]
    whole: float
    grids: Mapping[str, Grid]
    calls: Mapping[str, tuple[str, ...]]
    elements: Mapping[str, float]
    per_element: float
    scale: float = 1.0

    def price(self, layer: str, out: int, inp: int) -> float:
        """Return what a layer takes at widths (channels), 0 for one that was not seen."""
        calls = sum(self.grids[call].at(out, inp) for call in self.calls.get(layer, ()))
        return self.scale * calls + self.per_element * self.elements.get(layer, 0.0) * out

    def to_json(self) -> str:
        """Return the table as JSON."""
        grids = {name: {k: v for k, v in vars(g).items() if k[0] != "_"} for name, g in self.grids.items()}
        plain = {key: value for key, value in vars(self).items() if key != "grids"}
        return json.dumps({"version": VERSION, **plain, "grids": grids}, indent=1)

    @classmethod
    def from_json(cls, text: str, path: str) -> LatencyTable:
        """Read the text of :meth:`to_json`.

        Args:
            text: the file's.
            path: for messages.

        Raises:
            PruneError: if it is not such a text.
        """
        try:
            data = json.loads(text)
            if data.pop("version") != VERSION:
                raise ValueError(f"expected version {VERSION}")
            grids = {name: _grid(row) for name, row in data.pop("grids").items()}
            calls = {layer: tuple(names) for layer, names in data.pop("calls").items()}
            table = cls(grids=grids, calls=calls, **data)
            missing = {name for names in calls.values() for name in names} - grids.keys()
            if missing:
                raise ValueError(f"no times of {min(missing)}")
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise PruneError(
                f"MODEL.PRUNING.LATENCY_TABLE '{path}' is no table of latencies: "
                f"{type(error).__name__}: {error}",
                keys=("MODEL.PRUNING.LATENCY_TABLE",),
            ) from error
        return table


def _grid(row: Mapping[str, Any]) -> Grid:
    outs, inps = _increasing(row["outs"]), _increasing(row["inps"])
    ms = tuple(tuple(float(value) for value in values) for values in row["ms"])
    if len(ms) != len(outs) or any(len(values) != len(inps) for values in ms):
        raise ValueError("a grid without a time for each pair of widths")
    if not all(0 <= value < 1e9 for values in ms for value in values):
        raise ValueError("a time that is none")
    (of_outs, of_inps), (out, inp) = map(int, row["blocks"]), map(float, row["broken"])
    if min(of_outs, of_inps) < 1 or not (0 < out < 10 and 0 < inp < 10):
        raise ValueError("blocks that are none")
    return Grid(outs, inps, ms, (of_outs, of_inps), (out, inp))


def _increasing(widths: Sequence[Any]) -> tuple[int, ...]:
    found = tuple(int(width) for width in widths)
    if not found or list(found) != sorted(set(found)):
        raise ValueError("widths that do not increase")
    return found
