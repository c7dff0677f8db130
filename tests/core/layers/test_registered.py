"""Layers that this package has never heard of: registered, they are pruned as any other."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import d2prune
from d2prune.core.layers import table
from d2prune.errors import PruneError


class Dense(nn.Module):
    """A linear layer that holds its weight as (inputs, outputs)."""

    def __init__(self, inputs, outputs, bias=True):
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(inputs, outputs) / inputs**0.5)
        self.shift = nn.Parameter(torch.randn(outputs)) if bias else None
        self.inputs, self.outputs = inputs, outputs

    def forward(self, x):
        out = x.reshape(-1, self.inputs) @ self.kernel
        out = out if self.shift is None else out + self.shift
        return out.reshape(*x.shape[:-1], self.outputs)


class Gain(nn.Module):
    """A scale for each channel, and a mean that it takes off; it asks for the width it was built with."""

    def __init__(self, width):
        super().__init__()
        self.gain = nn.Parameter(torch.rand(width) + 0.5)
        self.register_buffer("mean", torch.randn(1, width))
        self.width = width

    def forward(self, x):
        assert x.shape[-1] == self.width
        return (x - self.mean) * self.gain


def tell_width(layer):
    layer.inputs, layer.outputs = layer.kernel.shape


@pytest.fixture
def registered(monkeypatch):
    monkeypatch.setattr(table, "ROWS", dict(table.ROWS))
    d2prune.register_layer(Dense, out={"kernel": 1, "shift": 0}, inp={"kernel": 0}, after_cut=tell_width)
    d2prune.register_layer(
        Gain, out={"gain": 0, "mean": -1}, after_cut=lambda gain: setattr(gain, "width", len(gain.gain))
    )


def net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(12, 24), Gain(24), nn.ReLU(),
        Dense(24, 32), Gain(32), nn.Tanh(),
        Dense(32, 16, bias=False), nn.GELU(), nn.Linear(16, 4),
    )  # fmt: skip


X = torch.rand(5, 3, 12, generator=torch.Generator().manual_seed(1))


def test_registered_layers_stand(registered, tmp_path):
    result = d2prune.prune(net(), 0.5, example_inputs=X)
    assert result.proof.exact and result.proof.control_error >= 1e-3
    assert {row.status for row in result.coverage[:-1]} == {"pruned"}
    first, second = result.model[3], result.model[6]
    assert (first.inputs, first.outputs) == (result.model[0].out_features, result.model[4].width)
    assert second.kernel.shape == (first.outputs, result.model[8].in_features)
    assert result.model[4].mean.shape == (1, first.outputs)
    d2prune.save(result, tmp_path / "pruned.pth")
    loaded = d2prune.load(tmp_path / "pruned.pth", net())
    assert torch.equal(loaded(X), result.model(X))
    loaded(X).sum().backward()
    assert all(p.grad is not None for p in loaded.parameters())


def test_what_they_cost_is_foreseen(registered):
    result = d2prune.prune(net(), 0.5, example_inputs=X)
    assert result.before.macs == 15 * (12 * 24 + 24 * 32 + 32 * 16 + 16 * 4)
    assert 1 - result.after.macs / result.before.macs == pytest.approx(result.reached)
    fewer = d2prune.prune(net(), 0.5, target="params", example_inputs=X)
    assert 1 - fewer.after.params / fewer.before.params == pytest.approx(fewer.reached)


def test_the_weakest_channels_go_first(registered):
    model = net()
    with torch.no_grad():
        model[3].kernel[:, 7] *= 1e-3
        model[6].kernel[7] *= 1e-3
    result = d2prune.prune(model, ratios={"3": 1 / 32}, amount=0.05, example_inputs=X)
    assert result.spec.layers["3"].out == tuple(i for i in range(32) if i != 7)


def test_without_a_rule_they_are_left_whole_with_a_reason():
    model = nn.Sequential(nn.Linear(12, 24), nn.ReLU(), nn.Linear(24, 8), Dense(8, 4))
    result = d2prune.prune(model, 0.3, example_inputs=X)
    assert result.proof.exact
    pruned, read, *own = result.coverage
    assert pruned.status == "pruned" and read.status == "skipped"
    assert read.reason.endswith("values that do not shrink with them, in 3")
    assert {row.status for row in own} <= {"skipped", "protected"} and own[0].reason


def test_a_rule_goes_before_the_one_for_the_built_in_class(registered):
    class Turned(nn.Linear):
        """Holds its weight the other way round."""

        def __init__(self, inputs, outputs):
            super().__init__(inputs, outputs)
            self.weight = nn.Parameter(self.weight.detach().T.clone())

        def forward(self, x):
            return x @ self.weight + self.bias

    d2prune.register_layer(Turned, out={"weight": 1, "bias": 0}, inp={"weight": 0})
    model = nn.Sequential(Turned(12, 32), nn.ReLU(), nn.Linear(32, 4))
    result = d2prune.prune(model, 0.5, example_inputs=X)
    assert result.proof.exact and result.model[0].weight.shape == (12, 16)


@pytest.mark.parametrize(
    "kind, rule, said",
    [
        (Gain(3), {"out": {"gain": 0}}, "expected a subclass of nn.Module"),
        (Gain, {"out": {}}, "got no out"),
        (Gain, {"out": ["gain"]}, "expected dimensions by tensor name"),
        (Gain, {"out": {"gain": "first"}}, "expected dimensions by tensor name"),
        (Gain, {"out": {"gain": 0}, "inp": {"gain": None}}, "inp={'gain': None}"),
    ],
)
def test_a_rule_that_is_none_is_refused(kind, rule, said):
    with pytest.raises(PruneError, match=said):
        d2prune.register_layer(kind, **rule)


@pytest.mark.parametrize(
    "out, said",
    [
        ({"weight": 0}, r"dimension 0 of 'weight'; its parameters and buffers are: gain \(24,\), mean"),
        ({"gain": 1}, "dimension 1 of 'gain'"),
        ({"gain": 0, "mean": 0}, "its out channels differ in number: {'gain': 24, 'mean': 1}"),
    ],
)
def test_a_rule_that_does_not_fit_names_the_tensor(registered, out, said):
    d2prune.register_layer(Gain, out=out)
    with pytest.raises(PruneError, match=r"register_layer\(Gain\).*" + said):
        d2prune.prune(net(), 0.5, example_inputs=X)
