"""Checks of a model before it is pruned, and after its pruned copy failed."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

from d2prune.adapters import TraceInput
from d2prune.core.copies import in_float32
from d2prune.core.layers.kinds import is_layer
from d2prune.errors import MISFITS, PruneError, told


def check_model(model: nn.Module) -> None:
    """Raise PruneError if ``model`` has no parameters or non-finite tensors, or contains TorchScript."""
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule) and any(True for _ in module.parameters()):
            raise PruneError(
                f"{name or 'the model'} is TorchScript (a {type(module).__name__}), whose layers can't "
                "be cut: prune the original module, and trace or script the result"
            )
    if not any(True for _ in model.parameters()):
        raise PruneError(f"{type(model).__name__} has no parameters: there is nothing to prune")
    layers = {name: module for name, module in model.named_modules() if is_layer(module)}
    statistics = ((f"{n}.{b}", t) for n, m in layers.items() for b, t in m.named_buffers(recurse=False))
    for name, tensor in (*model.named_parameters(), *statistics):
        # A finite sum has finite terms, and takes one pass.
        if not torch.isfinite(tensor.sum()) and not torch.isfinite(tensor).all():
            raise PruneError(f"{name} is not finite; refusing to prune")


def check_inputs(model: nn.Module, trace_input: TraceInput) -> None:
    """Raise PruneError if the unpruned model does not run on its input, with the model's own error."""
    try:
        with torch.no_grad():
            trace_input.outputs(in_float32(model))
    except PruneError:
        raise
    except MISFITS as error:
        shapes = tree_map(lambda v: tuple(v.shape) if isinstance(v, torch.Tensor) else v, trace_input.inputs)
        raise PruneError(
            f"{type(model).__name__} does not run on example_inputs {shapes}: {told(error)}; expected a "
            "tensor, or a tuple or dict of arguments, that its forward takes (or a forward_fn= that calls it)"
        ) from error


def check_repeatable(model: nn.Module, trace_input: TraceInput) -> None:
    """Raise PruneError if the model gives different outputs for one input, as no proof is possible then."""
    with torch.no_grad():
        one, two = (trace_input.outputs(in_float32(model)) for _ in range(2))
    for name, tensor in one.items():
        if name not in two or tensor.shape != two[name].shape or not torch.allclose(tensor, two[name]):
            raise PruneError(
                f"{type(model).__name__} gives another output each time it runs, at {name} (noise, or "
                "dropout in eval mode): it can't be compared with its pruned self; switch that off, "
                "or pass a forward_fn= that seeds it"
            )


class _Weights(TorchFunctionMode):
    """A function mode that collects layers which convolve with a tensor that is no parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.running, self.computed = "", set[str]()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (F.conv1d, F.conv2d, F.conv3d) and not isinstance([*args, None, None][1], nn.Parameter):
            self.computed.add(self.running)
        return func(*args, **(kwargs or {}))


def computing_weights(model: nn.Module, trace_input: TraceInput) -> set[str]:
    """Return the convolutions that compute their weights from parameters, as weight standardisation does."""
    model, mode = in_float32(model), _Weights()
    for name, module in model.named_modules():
        if is_layer(module):
            module.register_forward_pre_hook(lambda *_, name=name: setattr(mode, "running", name))
    with torch.no_grad(), mode:
        trace_input.outputs(model)
    return mode.computed
