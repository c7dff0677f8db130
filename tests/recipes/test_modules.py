"""The table of a model's parts: complete, with the share that really can go, and the reasons."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import d2prune
from d2prune.adapters import TraceInput
from d2prune.engine.settings import trace_input_from_cfg
from d2prune.pruning import find_groups, measure_model
from d2prune.recipes import grouped, module_rows, module_table
from tests.tiny_lsknet import tiny_lsk, tiny_lsk_cfg


@pytest.fixture(scope="module")
def analyzed():
    cfg = tiny_lsk_cfg()
    model = tiny_lsk(cfg)
    trace_input = trace_input_from_cfg(cfg, model)
    return model, trace_input, module_rows(model, trace_input, find_groups(model, trace_input))


def test_every_parameter_and_every_mac_is_in_a_row(analyzed):
    model, trace_input, rows = analyzed
    whole = measure_model(model, trace_input).totals
    for part in (rows, grouped(rows, 1), grouped(rows, 3), grouped(rows, 0)):
        assert (sum(r.params for r in part), sum(r.macs for r in part)) == (whole.params, whole.macs)
    assert [row.name for row in grouped(rows, 1)] == ["backbone", "proposal_generator", "roi_heads"]


def test_what_can_go_is_what_a_prune_takes(analyzed):
    model, trace_input, rows = analyzed
    most = sum(row.removable for row in rows)
    share = most / sum(row.params for row in rows)
    result = d2prune.prune(model, share, "params", ratios={"*": 0.75}, input_size=(64, 64), verify=False)
    assert result.before.params - result.after.params == most


@pytest.mark.parametrize(
    "end, reason",
    [
        ("mlp.fc1", "free"),
        ("box_head.fc1", "free"),
        ("fpn_lateral2", "free"),
        ("spatial_gating_unit.conv1", "mixed by aten::mean"),
        ("patch_embed3.proj", "LayerNorm"),
        ("cls_score", "is the model's output"),
    ],
)
def test_constraints_are_said(analyzed, end, reason):
    row = next(row for row in analyzed[2] if row.name.endswith(end))
    assert reason in row.constraint and (row.constraint == "free") == (reason == "free")


def test_a_model_of_ones_own_needs_no_config():
    model = nn.Sequential(nn.Conv2d(3, 8, 3, groups=1), nn.Conv2d(8, 8, 3, groups=2), nn.Conv2d(8, 4, 1))
    trace_input = TraceInput(model, torch.rand(1, 3, 16, 16))
    rows = module_rows(model, trace_input, find_groups(model, trace_input))
    assert [row.constraint for row in rows] == [
        "free in steps of 2",
        "free in steps of 2",
        "is the model's output 'output'",
    ]
    text = module_table(rows)
    assert text.splitlines()[-1].startswith("in all") and "100.0%" in text and "free in steps of 2" in text
