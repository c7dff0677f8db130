"""Costs: counted as fvcore counts them, and predicted for any widths without running."""

from __future__ import annotations

import pytest
import torch
from fvcore.nn import FlopCountAnalysis
from nets import CONVOLUTIONAL, Attention, Normed, images, lively

from d2prune.adapters import Target
from d2prune.core.costs import measure
from d2prune.engine.prune import prune

MATMULS = ("conv", "linear", "addmm", "matmul", "bmm", "einsum")


def fvcore_macs(model, inputs):
    counted = FlopCountAnalysis(model.eval(), inputs)
    counted.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    return sum(counted.by_operator()[op] for op in MATMULS)


def measured(model, inputs):
    return measure(model.eval(), Target(model, inputs).inference)


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
    on_meta = measure(CONVOLUTIONAL["residual"]().to("meta").eval(), Target(model, inputs).inference)
    assert on_meta.totals == measured(model, inputs).totals


def test_what_attention_multiplies_is_a_constant():
    model, inputs = Attention(), images()
    costs = measured(model, inputs)
    assert costs.totals.macs > sum(costs.layer(n, "macs", {}) for n in costs.layers)


def test_linear_layers_count_every_position():
    model = Normed(24)
    one, many = (measured(model, torch.rand(*shape, 10)).totals.macs for shape in ((1,), (2, 7)))
    assert many == 14 * one == 14 * (10 * 24 + 2 * 24 * 48 + 24 * 3)


def test_no_hooks_are_left():
    model = CONVOLUTIONAL["chain"]()
    measured(model, images())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
