"""traceable(): torch-pruning's own pruner works on it, and leaves a model that trains and infers."""

from __future__ import annotations

import copy

import pytest
import torch
import torch_pruning as tp
from torch import nn

import d2prune
from d2prune.adapters import find_adapter
from d2prune.core.plan.costs import measure
from d2prune.errors import PruneError
from tests.each import each
from tests.tiny_blendmask import NARROW_R_50, SIDE, batch, detect, equal, snapshot, tiny_model, train_step

FROZEN = ("MODEL.RESNETS.NORM", "FrozenBN", "MODEL.BACKBONE.FREEZE_AT", 2)
MODELS = {"BN": (), "FrozenBN": FROZEN, "R-50": tuple(NARROW_R_50)}


def images(model):
    return torch.rand(1, 3, SIDE, SIDE, device=next(model.parameters()).device) * 255


def traits(model):
    return {
        "classes": {name: type(module) for name, module in model.named_modules()},
        "requires_grad": {name: p.requires_grad for name, p in model.named_parameters()},
        "keys": list(model.state_dict()),
        "training": model.training,
    }


def cut(model, ratio=0.3):
    """The README's snippet."""
    with d2prune.traceable(model) as f:
        pruner = tp.pruner.MagnitudePruner(
            f, images(model), tp.importance.MagnitudeImportance(),
            pruning_ratio=ratio, ignored_layers=f.output_layers,
        )  # fmt: skip
        pruner.step()


@pytest.fixture(params=MODELS, scope="module")
def pair(request):
    """A model, and a copy that torch-pruning has cut."""
    model = tiny_model(*MODELS[request.param])
    smaller = copy.deepcopy(model)
    cut(smaller)
    return model, smaller


def test_channels_really_fall(pair):
    model, smaller = pair
    before, after = (measure(m, lambda x: find_adapter(x).dense(x, images(x), False)).totals for m in pair)
    assert after.macs < 0.8 * before.macs and after.params < 0.8 * before.params
    widths = {name: m.out_channels for name, m in smaller.named_modules() if isinstance(m, nn.Conv2d)}
    for name in ("backbone.bottom_up.res4.0.conv1", "backbone.fpn_output3", "basis_module.tower.0.0"):
        assert widths[name] < dict(model.named_modules())[name].out_channels, name
    assert widths["top_layer"] == model.top_layer.out_channels, "outputs stay"


def test_classes_modes_and_names_are_as_before(pair):
    model, smaller = pair
    assert traits(smaller) == traits(model)


def test_the_smaller_model_infers_and_trains(pair):
    _, smaller = pair
    assert detect(smaller)["pred_masks"].shape[1:] == (SIDE, SIDE)
    model = copy.deepcopy(smaller)
    assert train_step(model) == (True, True)
    torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.01).step()
    model.eval()(batch())


def test_the_backbone_tells_its_new_widths(pair):
    for model in each(pair):
        told = {name: shape.channels for name, shape in model.backbone.output_shape().items()}
        with torch.no_grad():
            found = {name: x.shape[1] for name, x in model.backbone(images(model)).items()}
        assert told == found


def test_inside_it_computes_the_dense_outputs(pair):
    model, _ = pair
    x = images(model)
    with torch.no_grad():
        expected = find_adapter(model).dense(model, x, training_branches=True)
        with d2prune.traceable(model) as f:
            outputs = f(x)
    assert isinstance(outputs, tuple) and f.names == tuple(expected)
    for name, got in each(zip(f.names, outputs, strict=True)):
        assert torch.allclose(got, expected[name], rtol=1e-3, atol=1e-4), name


def test_gradients_reach_every_layer_inside():
    model = tiny_model(*FROZEN)
    with d2prune.traceable(model) as f:
        assert not model.training and all(p.requires_grad for p in model.parameters())
        sum(tensor.square().sum() for tensor in f(images(model))).backward()
        assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("train", [True, False])
def test_a_context_without_cuts_changes_nothing(train):
    model = tiny_model(*FROZEN).train(train)
    before, held = traits(model), snapshot(model)
    identities = {name: id(m) for name, m in model.named_modules()}
    with d2prune.traceable(model):
        pass
    assert traits(model) == before and equal(snapshot(model), held)
    assert {name: id(m) for name, m in model.named_modules()} == identities


def test_an_exception_inside_restores_the_model():
    model = tiny_model(*FROZEN).train()
    before, held = traits(model), snapshot(model)
    with pytest.raises(KeyError), d2prune.traceable(model):
        raise KeyError
    assert traits(model) == before and equal(snapshot(model), held)
    detect(model)


def test_a_model_without_an_adapter_is_named_and_left_alone():
    model = nn.Sequential(nn.Conv2d(3, 3, 1)).train()
    with pytest.raises(PruneError, match="no adapter for Sequential"), d2prune.traceable(model):
        pass
    assert model.training
