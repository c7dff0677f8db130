"""A tensor-in, tensor-out view of a model, for use with torch-pruning (or torch.fx) directly."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from d2prune.adapters import TraceInput
from d2prune.core.types import OUTPUT
from d2prune.modeling.unfuse import unfused
from d2prune.pruning import find_groups


class Dense(nn.Module):
    """A module that returns a model's dense outputs, differentiable, training branches included.

    Without an adapter it takes input of the kind of ``example_inputs``: a tensor, tuple or dict.

    Attributes:
        model: the model itself, not a copy, with fused layers taken apart.
        names: names of the outputs, in order.
        output_layers: the layers whose channels are the outputs: torch-pruning's ``ignored_layers``.
    """

    def __init__(self, model: nn.Module, trace_input: TraceInput, output_layers: list[nn.Module]) -> None:
        super().__init__()
        self.model = model
        self.names: tuple[str, ...] = ()
        self.output_layers = output_layers
        self._trace_input = trace_input

    def forward(self, images: Any) -> tuple[Tensor, ...]:
        """Map (N, 3, H, W) raw pixels, 0..255, to the outputs called :attr:`names`."""
        outputs: Mapping[str, Tensor] = self._trace_input.dense(self.model, images)
        self.names = tuple(outputs)
        return tuple(outputs.values())


@contextmanager
def traceable(
    model: nn.Module, example_inputs: Any = None, forward_fn: Callable[[nn.Module, Any], Any] | None = None
) -> Iterator[Dense]:
    """Take fused convolutions and frozen norms of ``model`` apart, in place; undo it at the end.

    Inside, every float parameter requires a gradient and the model is in eval mode. Widths changed
    inside are kept.

        with d2prune.traceable(model) as f:
            pruner = tp.pruner.MagnitudePruner(f, images, tp.importance.MagnitudeImportance(),
                                               pruning_ratio=0.3, ignored_layers=f.output_layers)
            pruner.step()

    Args:
        model: any module.
        example_inputs: the model's input, for models without an adapter, as for :func:`d2prune.prune`.
        forward_fn: ``forward_fn(model, example_inputs)``, returning the outputs to trace from.

    Raises:
        PruneError: without ``example_inputs``, if the model has no adapter and does not run on images.
    """
    trace_input = TraceInput(model, example_inputs, forward_fn)
    fixed = [group for group in find_groups(model, trace_input) if group.fixed.startswith(OUTPUT)]
    names = {path for group in fixed for path in group.producers}
    training = model.training
    frozen = [n for n, p in model.named_parameters() if p.is_floating_point() and not p.requires_grad]
    try:
        with unfused(model.eval()) as paths:
            for parameter in model.parameters():
                parameter.requires_grad_(parameter.is_floating_point())
            yield Dense(model, trace_input, [module for module, path in paths.items() if path in names])
    finally:
        model.train(training)
        if trace_input.adapter is not None:
            trace_input.adapter.after_resize(model)
        # By name: torch-pruning puts new parameters in the place of those it cuts.
        for name, parameter in model.named_parameters():
            if parameter.is_floating_point():
                parameter.requires_grad_(name not in frozen)
