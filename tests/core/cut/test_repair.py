"""Repair lets what is left take over what was removed, and changes nothing else."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

import d2prune
from d2prune.adapters import TraceInput
from d2prune.core.calibrate.collect import calibrate
from d2prune.core.cut.repair import repair
from d2prune.core.types import PrunePlan
from d2prune.errors import PruneError
from d2prune.pruning import find_groups
from tests.core import nets
from tests.core.nets import Chain, Grouped, Residual, Upsample, lively
from tests.each import each

NETS = [
    Chain, nets.Dense, nets.Flat, Grouped, nets.Mobile, Residual, nets.Shared, nets.Split, Upsample,
    lambda: Chain(norm=nets.group_norm(4)),
]  # fmt: skip


def batches(count=8, seed=0):
    """Smooth images, each of its own colours: noise alone would look the same to every channel."""
    generator = torch.Generator().manual_seed(seed)
    coarse = (torch.randn(4, 3, 5, 5, generator=generator) * 2 for _ in range(count))
    return [nn.functional.interpolate(x, (24, 24), mode="bicubic") for x in coarse]


def error_of(model, pruned, images):
    """The squared error of the outputs by their variance, channel by channel."""

    def outputs(net, x):
        found = net(x)
        parts = found if isinstance(found, list) else [found]
        return torch.cat([part.transpose(0, 1).flatten(1) for part in parts], 1)

    with torch.no_grad():
        wanted, got = (torch.cat([outputs(net, x) for x in images], 1) for net in (model, pruned))
    return float((wanted - got).square().sum() / (wanted - wanted.mean(1, keepdim=True)).square().sum())


@pytest.mark.parametrize("build", NETS)
@pytest.mark.parametrize("how", ["refit", "fold"])
def test_a_repaired_model_is_proved_and_nearer_to_the_unpruned_one_on_other_images(build, how):
    torch.manual_seed(0)
    model, data, held = lively(build()).eval(), batches(), batches(2, seed=9)
    before = copy.deepcopy(model.state_dict())
    options = {"criterion": "magnitude", "example_inputs": data[0], "data": data}
    plain = d2prune.prune(model, 0.4, repair="", **options)
    repaired = d2prune.prune(model, 0.4, repair=how, **options)
    assert plain.repair is None and plain.reference is model and plain.spec == repaired.spec
    assert repaired.proof.exact and repaired.repair.proof.exact and repaired.repair.batches == len(data)
    for layer in each(repaired.repair.layers):
        assert not layer.reason and 0 <= layer.after <= layer.before
    assert error_of(model, repaired.model, held) < 0.8 * error_of(model, plain.model, held)
    assert all(torch.equal(tensor, before[name]) for name, tensor in each(model.state_dict().items()))


@pytest.mark.parametrize("build", NETS)
def test_reconstruction_loses_less_than_magnitude(build):
    torch.manual_seed(0)
    model, data, held = lively(build()).eval(), batches(), batches(2, seed=9)
    options = {"example_inputs": data[0], "data": data}
    ours, theirs = (d2prune.prune(model, 0.4, criterion=c, **options).model for c in ("auto", "magnitude"))
    assert error_of(model, ours, held) < error_of(model, theirs, held)


@pytest.mark.parametrize("build", [Chain, Grouped, Upsample])
def test_repair_with_nothing_removed_changes_nothing(build):
    model, data = lively(build()).eval(), batches(1)
    groups = find_groups(model, TraceInput(model, data[0]))
    statistics = calibrate(copy.deepcopy(model), groups, data, lambda m, x: m(x))
    plan = PrunePlan(groups, tuple(np.arange(g.units) for g in groups), ("",) * len(groups), 0.0)
    repaired = copy.deepcopy(model)
    assert repair(repaired, plan, statistics) == ()
    assert all(torch.equal(t, model.state_dict()[n]) for n, t in each(repaired.state_dict().items()))


def without_share(model, share, data):
    """The model pruned by this share of its first layer's channels, and by nothing else."""
    ratios = {"target": "channels", "include": ["0"], "ratios": {"0": share}}
    return d2prune.prune(model, share, example_inputs=data[0], data=data, **ratios)


def test_copies_of_channels_are_removed_without_a_trace():
    """Half of the channels are multiples of the others, and of a constant: removing them costs nothing."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3),
        nn.ReLU(),
        nn.Conv2d(16, 6, 3, bias=False),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Conv2d(6, 2, 1),
    ).eval()  # fmt: skip
    with torch.no_grad():
        model[0].weight[8:], model[0].bias[8:] = model[0].weight[:8] * 0.5, model[0].bias[:8] * 0.5
        model[0].weight[15], model[0].bias[15] = 0, 2
    data = batches()
    result = without_share(model, 0.5, data)
    assert model[0].weight.shape[0] == 16 and result.model[0].weight.shape[0] == 8
    assert error_of(model, result.model, batches(2, seed=9)) < 1e-4


def test_constants_go_into_a_bias_or_the_running_mean_of_what_follows():
    torch.manual_seed(0)
    for middle in each(([nn.Conv2d(4, 3, 1)], [nn.Conv2d(4, 3, 1, bias=False), nn.BatchNorm2d(3)])):
        model = nn.Sequential(nn.Conv2d(3, 4, 1), *middle, nn.ReLU(), nn.Conv2d(3, 2, 1)).eval()
        with torch.no_grad():
            model[0].weight[2], model[0].bias[2] = 0, 3.0  # a constant channel
        data = batches()
        result = without_share(model, 0.25, data)
        assert result.spec.layers["0"].out == (0, 1, 3)
        assert error_of(model, result.model, data) < 1e-8


def test_it_says_what_it_can_not_repair():
    class Product(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(3, 8), nn.Linear(8, 6), nn.Linear(6, 2)

        def forward(self, x):
            return self.c((self.a(x).relu() @ self.b.weight.T).relu())

    model, data = Product().eval(), [torch.randn(9, 3) for _ in range(3)]
    result = d2prune.prune(model, 0.3, "params", example_inputs=data[0], data=data)
    row = next(row for row in result.coverage if row.name == "a")
    assert row.status == "skipped"
    assert row.reason == "what reads its channels was not measured, which CRITERION 'reconstruction' needs"
    result = d2prune.prune(model, 0.3, "params", "magnitude", example_inputs=data[0], data=data)
    reasons = {layer.layer: layer.reason for layer in result.repair.layers}
    assert reasons == {"b": "its product with its weight was not seen", "c": ""}


def test_data_and_repair_are_checked():
    model, x = Chain().eval(), batches(1)[0]
    with pytest.raises(
        PruneError, match=r"MODEL.PRUNING.REPAIR is 'weld'; expected one of: '', 'fold', 'refit'"
    ):
        d2prune.prune(model, example_inputs=x, data=[x], repair="weld")
    with pytest.raises(PruneError, match="repair= and loss= need data="):
        d2prune.prune(model, example_inputs=x, repair="fold")
    with pytest.raises(PruneError, match="data= has no batches"):
        d2prune.prune(model, example_inputs=x, data=[])
    with pytest.raises(PruneError, match="MODEL.PRUNING.CRITERION 'reconstruction' needs data"):
        d2prune.prune(model, criterion="reconstruction", example_inputs=x)
    with pytest.raises(PruneError, match="needs the gradients of a loss"):
        d2prune.prune(model, criterion="fisher", example_inputs=x, data=[x])


def test_without_data_it_says_what_that_costs(caplog):
    result = d2prune.prune(lively(Chain()).eval(), 0.3, example_inputs=batches(1)[0])
    assert result.request.criterion == "magnitude" and result.request.allocation == "uniform"
    assert "no data to calibrate on: channels are chosen by magnitude" in caplog.text


@pytest.mark.parametrize("criterion", ["fisher", "taylor", "random", "torch_pruning.LAMPImportance"])
def test_any_criterion_can_be_repaired(criterion):
    torch.manual_seed(0)
    model, data = lively(Residual()).eval(), batches()
    result = d2prune.prune(
        model,
        0.3,
        criterion=criterion,
        example_inputs=data[0],
        data=data,
        loss=lambda m, x: m(x).square().mean(),
    )
    assert result.proof.exact and result.repair.proof.exact and result.request.criterion == criterion


@pytest.mark.parametrize("criterion", ["auto", "fisher"])
def test_a_loss_leaves_gradients_and_what_trains_as_they_were(criterion):
    """Gradients are taken on a copy: nothing is frozen, or lost, in the model passed in or the pruned one."""
    model, data = lively(Residual()).eval(), batches(2)
    model.shortcut.weight.requires_grad_(False)
    model.head.weight.grad = torch.ones_like(model.head.weight)
    trains = {name: p.requires_grad for name, p in model.named_parameters()}
    options = {"example_inputs": data[0], "data": data, "loss": lambda m, x: m(x).square().mean()}
    result = d2prune.prune(model, 0.3, criterion=criterion, **options)
    for net in each((model, result.model, result.reference)):
        assert {name: p.requires_grad for name, p in net.named_parameters()} == trains
    assert torch.equal(model.head.weight.grad, torch.ones_like(model.head.weight))
    assert [name for name, p in model.named_parameters() if p.grad is not None] == ["head.weight"]


def test_data_that_nothing_asks_for_are_not_run():
    def fails(model, batch):
        raise AssertionError("the loss of data that nothing needs was computed")

    model, data = lively(Chain()).eval(), batches(1)
    options = {"criterion": "magnitude", "repair": "", "example_inputs": data[0], "data": data, "loss": fails}
    assert d2prune.prune(model, 0.3, **options).repair is None
