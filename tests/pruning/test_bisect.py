"""Channels that code counts on are found by trial, and only those are left whole."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from d2prune.adapters import TraceInput
from d2prune.core.cut.proof import MisfitError
from d2prune.pruning import find_groups, prune, run
from d2prune.pruning.bisect import without_misfits

IMAGES = torch.rand(1, 3, 12, 12, generator=torch.Generator().manual_seed(0))


class Stubborn(nn.Module):
    """Of eight layers, two whose width the code counts on in a way that no call shows."""

    def __init__(self, width=8):
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(3 if i == 0 else width, width, 1) for i in range(8))
        self.head = nn.Conv2d(width, 2, 1)

    def forward(self, x):
        for i, layer in enumerate(self.layers):
            x = layer(x)
            if i == 2:
                x = x + torch.ones(x.shape[1] // 8)
            if i == 5:
                x = x * (x.shape[1] / 8)
        return self.head(x)


def test_only_the_misfits_are_left_whole():
    model = Stubborn()
    trace_input = TraceInput(model, IMAGES)
    groups = without_misfits(model, find_groups(model, trace_input), trace_input)
    fixed = {group.name: group.fixed for group in groups if group.fixed and group.name != "head"}
    assert set(fixed) == {"layers.2", "layers.5"}
    assert "does not run (" in fixed["layers.2"] and "mixes up others" in fixed["layers.5"]


def test_a_model_with_misfits_is_pruned_all_the_same(caplog):
    result = prune(Stubborn(), 0.3, allocation="uniform", example_inputs=IMAGES)
    rows = {row.name: row for row in result.coverage}
    assert result.proof.exact and {n for n, r in rows.items() if r.status == "skipped"} == {
        "layers.2", "layers.5",
    }  # fmt: skip
    assert "layers.2 is left whole: without some of its channels" in caplog.text


def test_inexact_groups_only_have_to_run():
    model = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 8), nn.Tanh())
    model += nn.Sequential(nn.LayerNorm(8, elementwise_affine=False), nn.Linear(8, 2))
    result = prune(
        model, 0.4, allocation="uniform", target="params", allow_inexact=True, example_inputs=torch.rand(3, 4)
    )
    rows = {row.name: row for row in result.coverage}
    assert rows["0"].status == "pruned" and "LayerNorm" in result.proof.reason
    assert "does not run (Given normalized_shape=[8]" in rows["2"].reason


def test_nothing_is_tried_where_nothing_fails(monkeypatch):
    monkeypatch.setattr(run, "without_misfits", None)
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 2, 1))
    assert prune(model, 0.3, example_inputs=IMAGES).proof.exact


def test_an_error_that_no_group_explains_is_passed_on(monkeypatch):
    monkeypatch.setattr(run, "without_misfits", lambda *_: None)
    with pytest.raises(MisfitError, match="does not run"):
        prune(Stubborn(), 0.3, allocation="uniform", example_inputs=IMAGES)
