"""Costs: counted as fvcore counts them, and predicted for any widths without running."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from fvcore.nn import FlopCountAnalysis
from torch import nn

from d2prune.adapters import TraceInput
from d2prune.core.plan.costs import measure
from d2prune.pruning import prune
from tests.core.nets import CONVOLUTIONAL, Attention, Normed, images, lively

MATMULS = ("conv", "linear", "addmm", "matmul", "bmm", "einsum")


def fvcore_macs(model, inputs):
    counted = FlopCountAnalysis(model.eval(), inputs)
    counted.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    return sum(counted.by_operator()[op] for op in MATMULS)


def measured(model, inputs):
    return measure(model.eval(), TraceInput(model, inputs).inference)


@pytest.mark.parametrize("name", CONVOLUTIONAL)
def test_macs_are_fvcores(name):
    model = CONVOLUTIONAL[name]()
    costs = measured(model, images())
    assert costs.totals.macs == fvcore_macs(model, images())
    assert costs.totals.params == sum(p.numel() for p in model.parameters())
    layers = sum(costs.layer(layer, "macs", {}) for layer in costs.layers)
    assert layers == costs.totals.macs


@pytest.mark.parametrize("name", CONVOLUTIONAL)
def test_the_prediction_is_what_is_measured_after(name):
    model = lively(CONVOLUTIONAL[name]())
    result = prune(model, 0.4, allocation="uniform", example_inputs=images(), verify=False)
    widths = {
        (layer, axis): len(kept)
        for layer, keep in result.spec.layers.items()
        for axis, kept in (("out", keep.out), ("in", keep.inp))
        if kept is not None
    }
    before, after = measured(model, images()), measured(result.model, images())
    for target in ("macs", "params"):
        assert before.total(target, widths) == getattr(after.totals, target)
    assert after.totals == result.after and before.totals == result.before


def test_counting_on_meta_is_counting():
    model, inputs = CONVOLUTIONAL["residual"](), images()
    on_meta = measure(CONVOLUTIONAL["residual"]().to("meta").eval(), TraceInput(model, inputs).inference)
    assert on_meta.totals == measured(model, inputs).totals


class Apart(nn.Module):
    """Attention of a library's kind: three projections, a product, a fourth."""

    def __init__(self):
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(16, 16) for _ in range(4))

    def forward(self, x):
        q, k, v = (f(x).unflatten(-1, (4, -1)).transpose(1, 2) for f in (self.q, self.k, self.v))
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down, self.head = nn.Linear(12, 20), nn.Linear(20, 16), nn.Linear(16, 3)
        self.apart = Apart()

    def forward(self, x):
        return self.head(self.apart(self.down(self.up(x).relu())))


@pytest.mark.parametrize(("model", "inputs"), [(Attention(), images()), (Block(), torch.rand(2, 9, 12))])
def test_products_are_priced_by_the_layers_around_them(model, inputs):
    costs = measured(model, inputs)
    assert costs.totals.macs == pytest.approx(sum(costs.layer(n, "macs", {}) for n in costs.layers))
    result = prune(lively(model), 0.3, round_to=2, example_inputs=inputs, verify=False)
    assert {"attention", "apart.q", "apart.v"} & set(result.spec.layers)
    assert result.plan.reached == pytest.approx(result.reached)


def test_products_far_from_their_layers_do_not_hang_on_them():
    class Gram(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Linear(8, 24), nn.Linear(24, 8)

        def forward(self, x):
            x = self.two(self.one(x).relu())
            return x @ x.transpose(1, 2)

    costs = measured(Gram(), torch.rand(1, 5, 8))
    assert costs.totals.macs - sum(costs.layer(n, "macs", {}) for n in costs.layers) == 5 * 5 * 8


def test_linear_layers_count_every_position():
    model = Normed(24)
    one, many = (measured(model, torch.rand(*shape, 10)).totals.macs for shape in ((1,), (2, 7)))
    assert many == 14 * one == 14 * (10 * 24 + 2 * 24 * 48 + 24 * 3)


def test_no_hooks_are_left():
    model = CONVOLUTIONAL["chain"]()
    measured(model, images())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
