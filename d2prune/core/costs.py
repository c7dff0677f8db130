"""Parameters and MACs: measured by one run, and predicted for any widths.

Every layer costs ``pair * out * in + single * out``, so a plan can be priced without running it.
MACs follow the usual count (convolutions, linear layers, matrix products); what a run counts beyond
the layers known here (attention products, say) does not shrink and is kept as a constant.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from d2prune.core.layers import (
    ConvNd,
    axis_width,
    has_inputs,
    is_depthwise,
    is_layer,
    parameter_dim,
    unfused_attention,
)
from d2prune.core.layouts import tensors_on
from d2prune.core.types import LayerCost, Totals, Widths

Target = Literal["channels", "params", "macs"]


@dataclass(frozen=True)
class CostModel:
    """Costs of a model as a function of its layers' widths.

    Attributes:
        layers: by path, every layer whose cost depends on widths that can change.
        totals: measured on the whole model.
    """

    layers: Mapping[str, LayerCost]
    totals: Totals

    def layer(self, name: str, target: Target, widths: Widths) -> float:
        """Cost of one layer; axes missing from ``widths`` have their measured width."""
        cost = self.layers[name]
        out = widths.get((name, "out"), cost.out)
        inp = widths.get((name, "in"), cost.inp)
        if target == "macs":
            return cost.macs_pair * out * inp + cost.macs_single * out
        return cost.params_pair * out * inp + cost.params_single * out

    def total(self, target: Target, widths: Widths) -> float:
        """Predicted cost of the whole model at ``widths``."""
        whole = self.totals.macs if target == "macs" else self.totals.params
        touched = {name for name, _ in widths if name in self.layers}
        change = sum(self.layer(name, target, widths) - self.layer(name, target, {}) for name in touched)
        return whole + change


def measure(
    model: nn.Module, run: Callable[[nn.Module], object], paths: Mapping[nn.Module, str] | None = None
) -> CostModel:
    """Counts one forward pass of ``run(model)``, without gradients.

    Args:
        model: in any mode, on any device (meta costs neither time nor memory).
        run: what one image costs: all that runs at inference, nothing that only training runs.
        paths: names of the layers; default: the model's own dotted paths.
    """
    names = paths if paths is not None else {m: n for n, m in model.named_modules()}
    positions: Counter[nn.Module] = Counter()

    def count(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        if inputs:
            positions[module] += _positions(module, inputs[0], output)

    hooks = [m.register_forward_hook(count) for m in names if has_inputs(m)]
    counter = FlopCounterMode(display=False)
    try:
        with torch.no_grad(), unfused_attention(), counter:
            run(model)
    finally:
        for hook in hooks:
            hook.remove()
    params = sum(p.numel() for p in model.parameters())
    layers = {n: _layer(m, n, positions[m]) for m, n in names.items() if is_layer(m)}
    layers.update(_bare_parameters(model, layers))
    return CostModel(layers, Totals(params, counter.get_total_flops() // 2))


def _bare_parameters(model: nn.Module, layers: Mapping[str, LayerCost]) -> dict[str, LayerCost]:
    """Parameters that no known layer owns, such as layer scales."""
    costs = {}
    for name, parameter in model.named_parameters():
        if name.rpartition(".")[0] not in layers and parameter.numel() > 1:
            width = parameter.shape[parameter_dim(parameter)]
            costs[name] = LayerCost(name, width, 0, 0, 0, 0, parameter.numel() / width)
    return costs


def _positions(module: Any, given: Tensor, output: Tensor) -> int:
    """How often the kernel is applied: output positions, or input ones of a transposed convolution."""
    if not isinstance(module, ConvNd):
        return int(given.numel() // axis_width(module, "in"))
    if module.transposed:
        return int(given.numel() // module.in_channels)
    # Hooks of fused convolutions see the norm's or activation's result: same shape, same count.
    return int(output.numel() // module.out_channels)


def _layer(module: nn.Module, name: str, positions: int) -> LayerCost:
    if isinstance(module, ConvNd):
        kernel = module.weight[0, 0].numel()
        bias = int(module.bias is not None)
        out, inp = module.out_channels, module.in_channels
        if is_depthwise(module):
            return LayerCost(name, out, inp, 0, positions * kernel, 0, kernel + bias)
        pair = kernel / module.groups
        return LayerCost(name, out, inp, positions * pair, 0, pair, bias)
    if isinstance(module, nn.Linear):
        bias = int(module.bias is not None)
        return LayerCost(name, module.out_features, module.in_features, positions, 0, 1, bias)
    out, inp, crossing = axis_width(module, "out"), 0, 0
    if has_inputs(module):  # registered by a user
        reading = {id(tensor) for tensor, _ in tensors_on(module, "in")}
        crossing = sum(t.numel() for t, _ in tensors_on(module, "out") if id(t) in reading)
        inp = axis_width(module, "in")
    pair = crossing / (out * inp) if inp else 0
    single = (sum(p.numel() for p in module.parameters(recurse=False)) - crossing) / out
    return LayerCost(name, out, inp, positions * pair, 0, pair, single)
