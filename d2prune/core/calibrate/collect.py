"""Calibration: the pass over data that collects moments and gradients for every consumer of a group."""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from d2prune.core.calibrate.moments import WIDEST, Consumer, Layout, Moments, Statistics, layout_of, within
from d2prune.core.calibrate.products import Geometry, Products, layers_at
from d2prune.core.layers.kinds import places
from d2prune.core.types import Group, Indices
from d2prune.errors import PruneError

logger = logging.getLogger(__name__)
Run = Callable[[nn.Module, Any], object]
"""``run(model, batch)`` runs the model as it infers."""
Loss = Callable[[nn.Module, Any], Tensor | None]
"""``loss(model, batch)`` returns the scalar that training minimises; None for a batch without labels."""


def consumers_of(groups: Iterable[Group]) -> dict[str, Indices]:
    """Return the layers that read channels of ``groups``, with the positions of the largest one each."""
    found: dict[str, Indices] = {}
    for group in groups:
        for member in group.members:
            if member.axis == "in" and member.indices.size > getattr(found.get(member.layer), "size", 0):
                found[member.layer] = member.indices
    return found


def calibrate(
    model: nn.Module,
    groups: Sequence[Group],
    batches: Sequence[Any],
    run: Run,
    loss: Loss | None = None,
    gates: bool = False,
    widest: int = WIDEST,
    seed: int = 0,
) -> Statistics:
    """Run a model on data once, and return what is needed to choose, and to replace, channels of ``groups``.

    Products are made in the model's float type, sums in float64. At most ``ROWS`` times as many rows are
    taken of an input as it has columns, so that the time does not grow with the images' sizes.

    Args:
        model: a float copy in eval mode, on any device; its attention layers are changed.
        groups: those that may be pruned.
        batches: what ``run`` and ``loss`` take, one at a time.
        run: runs the model.
        loss: if given, rows and outputs also count by its gradients.
        gates: whether to collect derivatives by factors on channels, too; needs ``loss``.
        widest: the most columns of patches, see :func:`d2prune.core.calibrate.moments.layout_of`.
        seed: of the choice of rows.

    Raises:
        PruneError: without batches.
    """
    if not batches:
        raise PruneError("data= has no batches: calibration needs at least one")
    collector = _Collector(model, consumers_of(groups), len(batches), seed, widest)
    collector.learn(batches[0], run)
    progress = _Progress()
    for number, batch in enumerate(batches, 1):
        collector.add_moments(batch, run)
        if loss is not None:
            collector.add_gradients(batch, loss, gates)
        progress.made(number, len(batches))
    return collector.statistics(len(batches))


class _Progress:
    """Says how long it will take, at first after five seconds, then every half minute."""

    def __init__(self) -> None:
        self._start = time.monotonic()
        self._next = 5.0

    def made(self, done: int, total: int) -> None:
        """Note that ``done`` batches of ``total`` are done."""
        taken = time.monotonic() - self._start
        if taken < self._next or done < 3 or done == total:  # the first ones warm up
            return
        self._next = taken + 30
        left = taken * (total - done) / done
        logger.info("calibration: %d of %d batches, about %.0f s left", done, total, left)


class _Collector:
    def __init__(
        self, model: nn.Module, consumers: Mapping[str, Indices], batches: int, seed: int, widest: int
    ) -> None:
        self._model, self._consumers, self._batches, self._widest = model, consumers, batches, widest
        self._layers = layers_at(model, consumers)
        self._generator = torch.Generator().manual_seed(seed)
        self._owner: dict[str, str] = {}  # of several consumers that read one input in one way, the first
        self._moments: dict[str, Moments] = {}
        self._geometry: dict[str, Geometry] = {}
        self._norms: dict[str, tuple[str, ...]] = {}
        self._unmeasured = dict.fromkeys(consumers, "its product with its weight was not seen")
        self._squares: dict[str, Tensor] = {}
        self._gates: dict[str, list[Tensor]] = defaultdict(list)
        self._labelled = 0

    @torch.no_grad()
    def learn(self, batch: Any, run: Run) -> None:
        """Find which consumers read the same inputs in the same way, and which norms read their results."""
        read: dict[str, list[tuple[Any, ...]]] = defaultdict(list)
        made: dict[int, str] = {}
        into: dict[str, list[str]] = defaultdict(list)
        alive: list[Tensor] = []  # so that no later tensor gets the same address

        def see(layer: str, given: Tensor, geometry: Geometry, output: Tensor) -> Tensor:
            alive.extend((given, output))
            layout = layout_of(_batched(given, geometry), geometry, self._consumers[layer], self._widest)
            read[layer].append((given.data_ptr(), given._version, given.shape, geometry, layout))
            made[id(output)] = layer
            return output

        def enter(norm: str, given: tuple[Any, ...]) -> None:
            if given and id(given[0]) in made:
                into[made[id(given[0])]].append(norm)

        with ExitStack() as stack:
            for name, module in self._model.named_modules():
                if isinstance(getattr(module, "running_mean", None), Tensor):
                    hook = module.register_forward_pre_hook(lambda _, x, name=name: enter(name, x))
                    stack.callback(hook.remove)
            stack.enter_context(Products(self._layers, see))
            run(self._model, batch)
        layouts = within(self._share(read))
        self._moments = {layer: Moments(layout, alive[0].device) for layer, layout in layouts.items()}
        for layer in self._owner:
            if len(into[layer]) == len(read[layer]):
                self._norms[layer] = tuple(dict.fromkeys(into[layer]))

    def _share(self, read: Mapping[str, list[tuple[Any, ...]]]) -> dict[str, Layout]:
        """Note who reads what, by layer the calls that it made, and return the layouts of what is read."""
        first: dict[tuple[Any, ...], str] = {}
        layouts: dict[str, Layout] = {}
        for layer, calls in read.items():
            kinds = {call[-2:] for call in calls}
            geometry, layout = next(iter(kinds))
            if layout is None or len(kinds) > 1:
                self._unmeasured[layer] = "its input is too wide, or it reads inputs in several ways"
                continue
            del self._unmeasured[layer]
            self._geometry[layer] = geometry
            owner = self._owner[layer] = first.setdefault(tuple(calls), layer)
            layouts.setdefault(owner, layout)
        return layouts

    @torch.no_grad()
    def add_moments(self, batch: Any, run: Run) -> None:
        """Add the second moments of one batch."""

        def see(layer: str, given: Tensor, geometry: Geometry, output: Tensor) -> Tensor:
            if (moments := self._moments.get(layer)) is not None:
                most = moments.most(self._batches)
                moments.add(_batched(given, geometry), geometry, most, self._generator)
            return output

        with Products(self._layers, see):
            run(self._model, batch)

    def add_gradients(self, batch: Any, loss: Loss, gates: bool) -> None:
        """Add the loss's gradients on one batch."""
        squares: dict[str, Tensor] = {}

        def see(layer: str, given: Tensor, geometry: Geometry, output: Tensor) -> Tensor:
            if layer not in self._owner:
                return output
            if not output.requires_grad:
                output = output.requires_grad_().clone()  # a leaf could not be changed in place
            moments, read = self._moments[self._owner[layer]], _batched(given.detach(), geometry)

            def note(gradient: Tensor) -> None:
                places = _batched(gradient, geometry).movedim(1 if geometry.kernel else -1, 0)
                found = places.flatten(1).double().square()
                squares[layer] = squares.get(layer, 0) + found.sum(1)
                moments.focus(read, geometry, found.sum(0), moments.most(self._batches), self._generator)

            output.register_hook(note)
            return output

        for parameter in self._model.parameters():
            parameter.requires_grad_(gates and parameter.is_floating_point())
        with torch.enable_grad(), Products(self._layers, see):
            value = loss(self._model, batch)
        if value is None or not value.requires_grad:
            return
        value.backward()
        self._labelled += 1
        for layer, found in squares.items():
            self._squares[layer] = self._squares.get(layer, 0) + found
        if gates:
            self._add_gates()

    @torch.no_grad()
    def _add_gates(self) -> None:
        for name, layer in self._layers.items():
            place = places(layer, "in")[0]
            gradient = place.tensor.grad
            slopes = place.tensor * (gradient if gradient is not None else 0)
            by_channel = replace(place, tensor=slopes).by_position().flatten(0, 1)
            self._gates[name].append(by_channel.flatten(1).sum(1).double().cpu())
        self._model.zero_grad(set_to_none=True)

    def statistics(self, batches: int) -> Statistics:
        """Return what was found."""
        consumers = {
            layer: Consumer(
                self._moments[owner],
                self._geometry[layer],
                self._norms.get(layer, ()),
                getattr(self._layers[layer], "bias", None) is not None,
            )
            for layer, owner in self._owner.items()
        }
        sensitivity = {layer: squares / self._labelled for layer, squares in self._squares.items()}
        weights = weights_of_outputs(self._layers, consumers, sensitivity)
        gates = {layer: torch.stack(rows) for layer, rows in self._gates.items()}
        return Statistics(consumers, weights, gates, batches, self._labelled, self._unmeasured)


def weights_of_outputs(
    layers: Mapping[str, nn.Module], consumers: Mapping[str, Consumer], sensitivity: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Return, by consumer, what a squared error of each of its outputs costs: (O,).

    It has two parts. One is the same for all outputs, 1 / the variance of all together: losing all of its
    signal then costs any consumer 1. The other, where there are gradients, is their mean square, scaled so
    that losing all signal costs 1 in the mean over consumers. The first alone would neglect what the loss
    weighs most, the second what it hardly sees.
    """
    variances = {name: _variances(layers[name], consumer) for name, consumer in consumers.items()}
    totals = {name: float(variance.sum()) for name, variance in variances.items()}
    weights = {n: torch.full_like(v, 1 / totals[n] if totals[n] > 0 else 0.0) for n, v in variances.items()}
    known = [name for name in consumers if name in sensitivity]
    at_stake = sum(float((sensitivity[name] * variances[name]).sum()) for name in known)
    for name in known if at_stake > 0 else ():
        weights[name] += sensitivity[name] * len(known) / at_stake
    return weights


def _variances(layer: nn.Module, consumer: Consumer) -> Tensor:
    matrix = consumer.matrix(places(layer, "in")[0].tensor.detach())
    seconds = [consumer.moments.second(part, consumer.centred)[0] for part in range(len(matrix))]
    parts = [torch.einsum("ord,de,ore->o", m, s, m) for m, s in zip(matrix, seconds, strict=True)]
    return torch.cat(parts).clamp(min=0)


def _batched(given: Tensor, geometry: Geometry) -> Tensor:
    """Return the input or output of a convolution with a batch dimension."""
    return given[None] if geometry.kernel and given.dim() == len(geometry.kernel) + 1 else given
