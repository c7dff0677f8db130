"""The tracer finds the groups that torch-pruning's dependency graph finds, where that is right."""

from __future__ import annotations

import pytest
import torch
import torch_pruning
import torchvision
from torch import nn

from d2prune.adapters.base import flatten
from d2prune.core.layers.kinds import has_inputs
from d2prune.core.trace.tracer import trace_groups
from tests.core import nets

# What torch-pruning takes for channels although it is none, or knows nothing of; test_graph.py has these.
APART = {
    "prelu": "one slope for all channels has no channels",
    "bare parameter": "parameters outside of layers are not in the graph",
    "one gate": "a gate of one channel is cut with what it gates",
}
NETS = {name: make for name, make in nets.CONVOLUTIONAL.items() if name not in APART}
MODELS = {"resnet18": 32, "mobilenet_v2": 32, "densenet121": 32, "googlenet": 64, "mobilenet_v3_small": 32}


def ours(model, images):
    groups = trace_groups(model, lambda model: flatten(model(images)))
    return {frozenset(member.site for member in group.members) for group in groups}


def theirs(model, images):
    graph = torch_pruning.DependencyGraph().build_dependency(model, example_inputs=images)
    names = {module: name for name, module in model.named_modules() if any(True for _ in module.parameters())}
    found = set()
    for group in graph.get_all_groups(root_module_types=[nn.Conv2d, nn.ConvTranspose2d, nn.Linear]):
        places = [(d.target.module, graph.is_out_channel_pruning_fn(d.handler)) for d, _ in group]
        found.add(frozenset(site(names[m], m, out) for m, out in places if m in names))
    return found


def site(name, layer, out):
    return name, "out" if out or not has_inputs(layer) else "in"


@pytest.mark.parametrize("name", NETS)
def test_plain_nets(name):
    model = NETS[name]().eval()
    assert ours(model, nets.images()) == theirs(model, nets.images())


@pytest.mark.parametrize("name", MODELS)
def test_models_of_torchvision(name):
    options = {"init_weights": False} if name == "googlenet" else {}
    model = torchvision.models.get_model(name, weights=None, **options).eval()
    images = torch.rand(2, 3, MODELS[name], MODELS[name])
    assert len(ours(model, images)) > 10 and ours(model, images) == theirs(model, images)
