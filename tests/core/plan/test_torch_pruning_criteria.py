"""torch-pruning's importances score our groups as they score torch-pruning's own."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
import torch_pruning as tp
from torch import nn

import d2prune
from d2prune.adapters import TraceInput
from d2prune.core.plan.criteria import criterion_of
from d2prune.core.plan.torch_pruning_criteria import _classes
from d2prune.core.trace.tracer import trace_groups
from d2prune.engine.settings import request_from_cfg
from d2prune.errors import PruneError
from d2prune.pruning import prune_model
from tests.each import each

NAMES = sorted(_classes())
X = torch.rand(2, 3, 12, 12, generator=torch.Generator().manual_seed(0))


class Residual(nn.Module):
    """Two blocks whose sums tie the channels of three convolutions."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.blocks = nn.ModuleList(self.block() for _ in range(2))
        self.down = nn.ConvTranspose2d(8, 6, 2)
        self.head = nn.Linear(6, 4)

    def block(self):
        convs = nn.Conv2d(8, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU(), nn.Conv2d(12, 8, 1, bias=False)
        return nn.Sequential(*convs, nn.BatchNorm2d(8))

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = torch.relu(x + block(x))
        return self.head(torch.relu(self.down(x)).mean((2, 3)))


def plain():
    convs = [
        nn.Conv2d(3, 8, 3),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 6, 3),
        nn.BatchNorm2d(6),
        nn.ReLU(),
    ]
    head = [nn.Flatten(), nn.Linear(6 * 64, 10), nn.LayerNorm(10), nn.Linear(10, 4)]
    return nn.Sequential(*convs, *head)


def grouped():
    """Units of several channels: the groups of a GroupNorm, and of a grouped convolution."""
    norm = [nn.Conv2d(3, 8, 3), nn.GroupNorm(4, 8), nn.ReLU(), nn.Conv2d(8, 12, 3), nn.ReLU()]
    return nn.Sequential(*norm, nn.Conv2d(12, 9, 3, groups=3), nn.Flatten(), nn.Linear(9 * 36, 4))


def lively(build, gradients=True):
    torch.manual_seed(1)
    model = build()
    for p in model.parameters():
        nn.init.normal_(p)
    model.eval()
    if gradients:
        model(X).square().sum().backward()
    return model


def groups_of(model):
    return [g for g in trace_groups(model, lambda m: {"out": m(X)}) if not g.fixed]


def theirs(model, group):
    """torch-pruning's own group of the same channels."""
    graph, layer = tp.DependencyGraph().build_dependency(model, X), model.get_submodule(group.name)
    linear = isinstance(layer, nn.Linear)
    prune = tp.prune_linear_out_channels if linear else tp.prune_conv_out_channels
    return graph.get_pruning_group(layer, prune, list(range(group.width)))


def refusal(criterion, model, **options):
    with pytest.raises(PruneError) as caught:
        d2prune.prune(model, 0.3, example_inputs=X, criterion=criterion, **options)
    return str(caught.value)


@pytest.mark.parametrize("build, count", [(plain, 3), (Residual, 4), (grouped, 3)])
@pytest.mark.parametrize("name", NAMES)
def test_scores_are_the_means_of_torch_prunings_own(name, build, count):
    model = lively(build)
    groups = groups_of(model)
    assert len(groups) == count
    for group in each(groups):
        torch.manual_seed(2)
        try:
            wanted = _classes()[name]()(theirs(model, group))
        except RuntimeError as error:
            assert "FPGM" in name and build is grouped, "it can't do grouped convolutions"
            wanted = str(error)
        torch.manual_seed(2)
        if wanted is None or isinstance(wanted, str):
            with pytest.raises(PruneError, match=wanted or "it scores none of their layers"):
                criterion_of(name).function(model, group)
        else:
            own = wanted.double().numpy()[group.members[0].indices].mean(1)
            assert np.allclose(criterion_of(name).function(model, group), own, rtol=1e-6, atol=1e-6)


def test_the_names_are_those_that_need_no_preparing():
    assert {"torch_pruning.LAMPImportance", "torch_pruning.FPGMImportance"} < set(NAMES)
    assert not {"torch_pruning.Importance", "torch_pruning.OBDCImportance"} & set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_prune_by_any_is_exact(name):
    model = lively(Residual)
    gradients = {n: p.grad.clone() for n, p in model.named_parameters()}
    whole = ["down"] if "BNScale" in name else []  # it has no BatchNorm
    result = d2prune.prune(model, 0.3, example_inputs=X, criterion=name, protect=whole)
    assert result.proof.exact and result.request.criterion == name
    assert all(torch.equal(p.grad, gradients[n]) for n, p in model.named_parameters())


def test_an_instance_brings_its_own_settings():
    model = lively(Residual)
    first = tp.importance.GroupMagnitudeImportance(p=1, group_reduction="first")
    result = d2prune.prune(model, 0.3, example_inputs=X, criterion=first)
    assert result.proof.exact and result.request.criterion == "torch_pruning.GroupMagnitudeImportance"
    hessian = tp.importance.GroupHessianImportance()
    for loss in model(X).square().sum(1):
        model.zero_grad()
        loss.backward(retain_graph=True)
        hessian.accumulate_grad(model)
    assert d2prune.prune(model, 0.3, example_inputs=X, criterion=hessian).proof.exact


def test_a_frozen_layer_is_named():
    model = lively(plain, gradients=False)
    model[3].weight.requires_grad_(False)
    model(X).square().sum().backward()
    text = refusal("torch_pruning.TaylorImportance", model)
    assert text.endswith("3 has no gradient: call loss.backward() on the model first; this layer is frozen")


def test_a_config_names_it():
    cfg, model = d2prune.get_cfg(), lively(plain)
    cfg.merge_from_list(["MODEL.PRUNING.CRITERION", "torch_pruning.LAMPImportance"])
    cfg.merge_from_list(["MODEL.PRUNING.ROUND_TO", 1, "MODEL.PRUNING.AMOUNT", 0.3])
    result = prune_model(model, request_from_cfg(cfg), TraceInput(model, X))
    own = d2prune.prune(model, 0.3, example_inputs=X, criterion=tp.importance.LAMPImportance())
    assert result.proof.exact and result.spec == own.spec


def test_an_importance_of_the_users_own():
    class LastStay(tp.importance.Importance):
        def __call__(self, group):
            dep, idxs = group[0]
            assert dep.target.module.weight.shape[0] == len(idxs) and dep.handler == dep.pruning_fn
            return torch.tensor(idxs)

    result = d2prune.prune(lively(plain), 0.3, example_inputs=X, criterion=LastStay())
    assert result.proof.exact and result.request.criterion == "tests.LastStay"
    kept = result.spec.layers["0"].out
    assert kept == tuple(range(8 - len(kept), 8))


@pytest.mark.parametrize("kind", ["Taylor", "GroupTaylor", "Hessian", "GroupHessian"])
def test_missing_gradients_are_named(kind):
    text = refusal(f"torch_pruning.{kind}Importance", lively(plain, gradients=False))
    assert text.startswith(
        f"MODEL.PRUNING.CRITERION 'torch_pruning.{kind}Importance' can't score the channels of 0:"
    )
    assert text.endswith("0 has no gradient: call loss.backward() on the model first")


def test_what_it_can_not_score_is_refused():
    text = refusal("torch_pruning.BNScaleImportance", lively(Residual))
    assert "channels of down: it scores none of their layers (ConvTranspose2d, Linear)" in text

    class Odd(tp.importance.Importance):
        def __init__(self, answer):
            self.answer = answer

        def __call__(self, group):
            return self.answer(len(group[0].idxs))

    assert "it gave 3 finite scores in a tensor of shape (3,), for 8 channels" in refusal(
        Odd(lambda n: torch.ones(3)), lively(plain)
    )
    assert "it gave 0 finite scores in a tensor of shape (8,)" in refusal(
        Odd(lambda n: torch.full((n,), float("nan"))), lively(plain)
    )
    assert "ZeroDivisionError: division by zero" in refusal(Odd(lambda n: n / 0), lively(plain))


def test_what_is_no_criterion_is_refused():
    text = refusal("torch_pruning.Foo", lively(plain))
    assert text == f"MODEL.PRUNING.CRITERION is 'torch_pruning.Foo'; expected one of: {', '.join(NAMES)}"
    for wrong in (5, tp.importance.LAMPImportance):
        assert "expected a name, or an instance of torch-pruning's Importance" in refusal(
            wrong, lively(plain)
        )


def test_torch_pruning_is_not_imported_before():
    code = "import sys, d2prune; assert 'torch_pruning' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
