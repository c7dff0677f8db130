"""Parameters and MACs: measured by one run, and predicted for any widths.

Every layer costs ``pair * out * in + single * out``, so the cost of a plan is known without running it.
MACs follow the usual count (convolutions, linear layers, matrix products). Those of products of activations
(attention) are attributed to the layers around them. All other MACs of a run are a constant, which
pruning does not change.
"""

from __future__ import annotations

import dataclasses
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from d2prune.core.layers.attention import unfused_attention
from d2prune.core.layers.kinds import axis_width, is_layer, places
from d2prune.core.layers.table import kind_of
from d2prune.core.plan.latency import LatencyTable
from d2prune.core.types import LayerCost, Totals, Widths

Target = Literal["channels", "params", "macs", "latency"]
PRODUCTS = (torch.ops.aten.bmm, torch.ops.aten.baddbmm)
"""The operators that compute products of activations when attention isn't fused."""


@dataclass(frozen=True)
class CostModel:
    """Costs of a model as a function of its layers' widths.

    Attributes:
        layers: by path, every layer whose cost depends on widths that can change.
        totals: measured on the whole model.
        latency: what layers take, where that was measured.
    """

    layers: Mapping[str, LayerCost]
    totals: Totals
    latency: LatencyTable | None = None

    def whole(self, target: Target) -> float:
        """Return the cost of the whole model: parameters, MACs, or milliseconds."""
        if target == "latency":
            return self.latency.whole if self.latency is not None else 0.0
        return self.totals.macs if target == "macs" else self.totals.params

    def layer(self, name: str, target: Target, widths: Widths) -> float:
        """Return the cost of one layer; axes missing from ``widths`` have their measured width."""
        cost = self.layers[name]
        out = widths.get((name, "out"), cost.out)
        inp = widths.get((name, "in"), cost.inp)
        if target == "latency":
            return self.latency.price(name, out, inp) if self.latency is not None else 0.0
        if target == "macs":
            return cost.macs_pair * out * inp + cost.macs_single * out + cost.macs_read * inp
        return cost.params_pair * out * inp + cost.params_single * out

    def total(self, target: Target, widths: Widths) -> float:
        """Return the predicted cost of the whole model at ``widths``."""
        touched = {name for name, _ in widths if name in self.layers}
        change = sum(self.layer(name, target, widths) - self.layer(name, target, {}) for name in touched)
        return self.whole(target) + change


def measure(
    model: nn.Module, run: Callable[[nn.Module], object], paths: Mapping[nn.Module, str] | None = None
) -> CostModel:
    """Count parameters, and the MACs of one forward pass ``run(model)`` without gradients.

    Args:
        model: in any mode, on any device (meta costs neither time nor memory).
        run: runs the model on one image: all that inference runs, nothing that only training runs.
        paths: names of the layers; default: the model's own dotted paths.
    """
    names = paths if paths is not None else {m: n for n, m in model.named_modules()}
    positions: Counter[nn.Module] = Counter()

    def count(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        if inputs:
            positions[module] += _positions(module, inputs[0], output)
        if type(module) is nn.MultiheadAttention:  # does not call its projection
            positions[module.out_proj] += _positions(module, inputs[0], output)

    counter = _Counter()
    products = _Products(counter, names)
    reading = [m for m in names if kind_of(m).per]
    hooks = [m.register_forward_pre_hook(products.before) for m in reading]
    hooks += [m.register_forward_hook(hook) for m in reading for hook in (count, products.after)]
    try:
        with torch.no_grad(), unfused_attention(), sdpa_kernel(SDPBackend.MATH), counter:
            run(model)
    finally:
        for hook in hooks:
            hook.remove()
    params = sum(p.numel() for p in model.parameters())
    layers = {n: products.laid_on(m, _layer(m, n, positions[m])) for m, n in names.items() if is_layer(m)}
    layers.update(_bare_parameters(model, layers))
    return CostModel(layers, Totals(params, counter.macs()))


class _Counter(TorchDispatchMode):
    """A counter of MACs by operator, by PyTorch's formulas, without ``FlopCounterMode``'s module tracking."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._flops: Counter[Any] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        operator = func._overloadpacket
        if operator in flop_registry:
            self._flops[operator] += flop_registry[operator](*args, **kwargs, out_val=out)
        return out

    def macs(self, operators: Collection[Any] | None = None) -> int:
        """Return the MACs so far of ``operators``, or of all."""
        chosen = self._flops if operators is None else operators
        return sum(int(self._flops[operator]) for operator in chosen) // 2


class _Products:
    """The attribution to layers of MACs that products of activations take between two layers' calls.

    The layers called just before, as far as they share a parent, are taken to make the factors, and the next
    layer to read the result: queries, keys and values (or all three from one layer), and the projection.
    The MACs are linear in the sum of these layers' widths.
    """

    def __init__(self, counter: _Counter, names: Mapping[nn.Module, str]) -> None:
        self._counter, self._names = counter, names
        self._multiplied = 0
        self._makers: list[nn.Module] = []
        self._attention: nn.MultiheadAttention | None = None  # while it runs
        self._at_entry = 0
        self._made: dict[nn.Module, float] = defaultdict(float)
        self._read: dict[nn.Module, float] = defaultdict(float)

    def before(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        """Attribute the products since the last layer to its makers and to ``module``, which reads them."""
        if self._attention is not None:
            return
        macs = self._counter.macs(PRODUCTS) - self._multiplied
        if macs:
            self._lay(macs, self._makers, module)
            self._makers = []
        if isinstance(module, nn.MultiheadAttention):
            self._attention, self._at_entry = module, self._counter.macs()

    def after(self, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        """Note ``module`` as a possible maker of the next product's factors."""
        attention = self._attention
        if attention is module:
            self._attention = None
            weights = sum(p.numel() for p in module.parameters() if p.dim() == 2)
            linear = weights * _positions(module, inputs[0], output) if inputs else 0
            self._lay(self._counter.macs() - self._at_entry - linear, [module], attention.out_proj)
        if self._attention is None:
            self._multiplied = self._counter.macs(PRODUCTS)
            self._makers = [m for m in self._makers if self._parent(m) == self._parent(module)] + [module]

    def laid_on(self, module: nn.Module, cost: LayerCost) -> LayerCost:
        """Return ``cost`` with the MACs of products that are attributed to the layer."""
        single = cost.macs_single + self._made[module]
        return dataclasses.replace(cost, macs_single=single, macs_read=self._read[module])

    def _lay(self, macs: int, makers: Sequence[nn.Module], reader: nn.Module) -> None:
        width = sum(axis_width(m, "out") for m in makers) + axis_width(reader, "in")
        for maker in makers:
            self._made[maker] += macs / width
        self._read[reader] += macs / width

    def _parent(self, module: nn.Module) -> str:
        return self._names[module].rpartition(".")[0]


def _bare_parameters(model: nn.Module, layers: Mapping[str, LayerCost]) -> dict[str, LayerCost]:
    """Return the costs of parameters that no known layer owns, such as layer scales."""
    costs = {}
    for name, parameter in model.named_parameters():
        if name.rpartition(".")[0] not in layers and parameter.numel() > 1:
            width = axis_width(parameter, "out")
            costs[name] = LayerCost(name, width, 0, 0, 0, 0, parameter.numel() / width)
    return costs


def _positions(module: nn.Module, given: Tensor, output: Tensor) -> int:
    """Return how often the kernel is applied: once per position of the input, or of the result."""
    per = kind_of(module).per or "in"
    return int((output if per == "out" else given).numel() // axis_width(module, per))


def _layer(module: nn.Module, name: str, positions: int) -> LayerCost:
    out = axis_width(module, "out")
    inp = axis_width(module, "in") if kind_of(module).per else 0
    reading = {id(place.tensor) for place in places(module, "in")}
    crossing = sum(p.tensor.numel() for p in places(module, "out") if id(p.tensor) in reading)
    pair = crossing / (out * inp) if crossing else 0
    single = (sum(p.numel() for p in module.parameters(recurse=False)) - crossing) / out
    apart = 0 if reading else places(module, "out")[0].tensor.numel() / out  # a depthwise kernel
    return LayerCost(name, out, inp, positions * pair, positions * apart, pair, single)
