"""Moments are the products of what kernels see, for every kind of product."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from d2prune.core.calibrate import moments as moments_module
from d2prune.core.calibrate.collect import calibrate
from d2prune.core.calibrate.moments import Layout, Moments, within
from d2prune.core.types import Group, Member
from tests.each import each


def reading(width, joined=1, layer=""):
    """A group of all input channels of ``layer``."""
    indices = np.arange(width * joined).reshape(width, joined)
    return [Group("made", (Member("made", "out", indices), Member(layer, "in", indices)), ("made",))]


def consumer(layer, batches, width, joined=1, **options):
    model = nn.Sequential(layer).eval()
    found = calibrate(model, reading(width, joined, "0"), batches, lambda m, b: m(b), **options)
    return found.consumers["0"]


@pytest.mark.parametrize(
    "options",
    [{}, {"padding": 1}, {"stride": 2, "padding": 2}, {"dilation": 2, "padding": "same"}, {"groups": 3},
     {"padding": 1, "padding_mode": "reflect"}],
)  # fmt: skip
def test_a_convolutions_moments_give_its_outputs_products(options):
    torch.manual_seed(0)
    conv = nn.Conv2d(6, 9, 3, **options)
    batches = [torch.randn(2, 6, 9, 11) for _ in range(2)]
    found = consumer(conv, batches, 6)
    matrix = found.matrix(conv.weight.detach())
    outputs = torch.cat([conv(x) - conv.bias[:, None, None] for x in batches]).transpose(0, 1).flatten(1)
    for part, rows in each(enumerate(outputs.double().chunk(len(matrix)))):
        second, _ = found.moments.second(part, centred=False)
        products = matrix[part][:, 0] @ second @ matrix[part][:, 0].T
        assert torch.allclose(products, rows @ rows.T / rows.shape[1], rtol=1e-4, atol=1e-5)


def test_a_linear_layers_moments_are_of_all_its_rows():
    torch.manual_seed(0)
    batches = [torch.randn(5, 4, 7) for _ in range(3)]
    found = consumer(nn.Linear(7, 3), batches, 7)
    rows = torch.cat(batches).flatten(0, 1).double()
    second, mean = found.moments.second(0, centred=True)
    assert torch.allclose(second, torch.cov(rows.T, correction=0), atol=1e-6)
    assert torch.allclose(mean, rows.mean(0), atol=1e-6)


def test_a_wide_linear_layer_after_a_flatten_has_moments_of_channels():
    torch.manual_seed(0)
    layer, batches = nn.Linear(300 * 9, 2), [torch.randn(4, 300 * 9) for _ in range(2)]
    found = consumer(layer, batches, 300, joined=9)
    assert found.moments.layout == Layout(1, 300, 1, 9)
    rows = torch.cat(batches).unflatten(1, (300, 9)).transpose(1, 2).flatten(0, 1).double()
    second, _ = found.moments.second(0, centred=False)
    assert torch.allclose(second, rows.T @ rows / len(rows), atol=1e-6)
    assert found.matrix(layer.weight.detach()).shape == (1, 2, 9, 300)


@pytest.mark.parametrize("layer", [nn.Conv2d(6, 4, 3), nn.ConvTranspose2d(6, 4, 2, 2)])
def test_whole_channels_moments_fit_the_weights_columns(layer):
    found = consumer(layer, [torch.randn(2, 6, 8, 8)], 6, widest=0)
    matrix = found.matrix(layer.weight.detach())
    channel = layer.weight.detach().double().movedim(1 if isinstance(layer, nn.Conv2d) else 0, -1)
    assert found.moments.layout.taps == 1 and matrix.shape[-1] == 6
    assert torch.equal(matrix.flatten(0, 2).sum(0), channel.flatten(0, 2).sum(0))


def test_rows_are_chosen_by_the_seed_and_stand_for_all():
    x, conv = torch.randn(1, 4, 64, 64), nn.Conv2d(4, 2, 3)
    some, same, others = (consumer(conv, [x] * 2, 4, seed=s).moments for s in (1, 1, 2))
    assert torch.equal(some.every, same.every) and not torch.equal(some.every, others.every)
    patches = F.unfold(x, 3).double()[0]
    every = patches @ patches.T / patches.shape[1]
    assert torch.allclose(some.second(0, False)[0].diagonal(), every.diagonal(), rtol=0.2)


def test_layers_that_read_one_tensor_alike_share_moments():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(4, 2, 3), nn.Conv2d(4, 5, 3), nn.Conv2d(4, 5, 1)

        def forward(self, x):
            return self.a(x), self.b(x), self.c(x)

    groups = [group for name in "abc" for group in reading(4, layer=name)]
    found = calibrate(Two().eval(), groups, [torch.randn(1, 4, 8, 8)], lambda m, x: m(x)).consumers
    assert found["a"].moments is found["b"].moments and found["a"].moments is not found["c"].moments


def test_gradients_weigh_rows_and_outputs():
    """With a loss of one place of one output, only what that place reads is focused on."""
    torch.manual_seed(0)
    conv, x = nn.Conv2d(3, 2, 3), torch.randn(1, 3, 6, 6)
    options = {"loss": lambda model, x: model(x)[0, 1, 2, 3] * 2}
    found = calibrate(nn.Sequential(conv).eval(), reading(3, layer="0"), [x], lambda m, x: m(x), **options)
    patch = torch.cat([x[0, :, 2:5, 3:6].flatten(), torch.ones(1)]).double()
    assert torch.allclose(found.consumers["0"].moments.focused[0], 4 * torch.outer(patch, patch), atol=1e-5)
    alike = calibrate(nn.Sequential(conv).eval(), reading(3, layer="0"), [x], lambda m, x: m(x)).weights["0"]
    assert found.weights["0"][1] > found.weights["0"][0] and alike[0] == alike[1]


def test_a_loss_of_none_counts_for_nothing():
    model, batches = nn.Sequential(nn.Conv2d(3, 2, 3)).eval(), [torch.randn(1, 3, 6, 6)] * 2
    found = calibrate(model, reading(3, layer="0"), batches, lambda m, x: m(x), lambda m, x: None)
    assert found.labelled == 0 and not found.consumers["0"].moments.focused.any()


def test_the_widest_patches_give_way_where_memory_is_short(caplog):
    caplog.set_level("INFO")
    layouts = {"wide": Layout(1, 90, 9), "wider": Layout(1, 100, 9), "linear": Layout(1, 2000, 1)}
    total = sum(layout.memory for layout in layouts.values())
    assert within(layouts, total) == layouts and "whole channels" not in caplog.text
    assert within(layouts, total - 1) == {**layouts, "wider": Layout(1, 100, 1)}
    assert "1 inputs are measured by whole channels" in caplog.text
    assert within(layouts, 0) == {**layouts, "wider": Layout(1, 100, 1), "wide": Layout(1, 90, 1)}


@pytest.mark.parametrize("layout", [Layout(3, 5, 9), Layout(1, 1100, 1)])
def test_the_memory_of_a_layout_is_that_of_its_moments(layout):
    moments = Moments(layout, torch.device("cpu"))
    held = moments.every, moments.focused
    assert layout.memory == sum(tensor.numel() * tensor.element_size() for tensor in held)


@pytest.mark.parametrize("weighted", [True, False])
def test_rows_in_blocks_are_as_rows_at_once(monkeypatch, weighted):
    def loss(model, batch):
        return model(batch).square().sum() if weighted else None

    found = []
    for block in (4_096, 7):
        monkeypatch.setattr(moments_module, "BLOCK", block)
        torch.manual_seed(0)
        conv, batches = nn.Conv2d(3, 4, 3), [torch.randn(2, 3, 9, 9) for _ in range(2)]
        found.append(consumer(conv, batches, 3, loss=loss).moments)
    for one, other in each(list(zip(*([m.every, m.focused] for m in found), strict=True))):
        assert (one - other).abs().max() <= 1e-6 * one.abs().max()
    assert bool(found[0].focused.any()) == weighted
