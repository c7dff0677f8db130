"""An old checkpoint in a narrower model: what is taken, sliced, skipped, and what stays fresh."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from d2prune.checkpoint import load_narrower, loading_table


def net(width=4, kernel=3, extra=False):
    layers = {"a": nn.Conv2d(3, width, kernel), "n": nn.BatchNorm2d(width), "b": nn.Linear(width, 2)}
    return nn.ModuleDict({**layers, **({"c": nn.Linear(2, 2)} if extra else {})})


def fates(rows):
    return {row.name: row.how for row in rows}


def test_every_tensor_has_a_row():
    wide, narrow = net(8, extra=True), net(4)
    rows = load_narrower(narrow, wide.state_dict())
    assert sorted(fates(rows)) == sorted(wide.state_dict()) and len(rows) == len(wide.state_dict())


def test_larger_tensors_give_their_leading_channels_and_equal_ones_are_taken():
    wide, narrow = net(8), net(4)
    rows = load_narrower(narrow, wide.state_dict())
    assert torch.equal(narrow["a"].weight, wide["a"].weight[:4])
    assert torch.equal(narrow["b"].weight, wide["b"].weight[:, :4])
    assert torch.equal(narrow["b"].bias, wide["b"].bias)
    assert {name for name, how in fates(rows).items() if how == "taken"} == {
        "b.bias",
        "n.num_batches_tracked",
    }
    assert set(fates(rows).values()) == {"taken", "sliced"}


@pytest.mark.parametrize("other", [net(2), net(4, kernel=5)], ids=["narrower", "another kernel"])
def test_what_does_not_fit_is_skipped_and_stays_as_it_was(other):
    model = net(4)
    before = model["a"].weight.clone()
    rows = load_narrower(model, other.state_dict())
    assert fates(rows)["a.weight"] == "skipped" and torch.equal(model["a"].weight, before)


def test_what_only_one_side_has_is_said():
    assert fates(load_narrower(net(), net(extra=True).state_dict()))["c.weight"] == "skipped"
    assert fates(load_narrower(net(extra=True), net().state_dict()))["c.weight"] == "fresh"


def test_a_prefix_finds_a_backbones_place():
    model, backbone = nn.ModuleDict({"backbone": net(4)}), net(8)
    rows = load_narrower(model, backbone.state_dict(), prefix="backbone.")
    assert fates(rows)["backbone.a.weight"] == "sliced"
    assert "fresh" not in fates(rows).values()


def test_the_table_counts_all_and_names_the_rest():
    text = loading_table(load_narrower(net(4, extra=True), net(8).state_dict()))
    assert text.startswith("11 tensors: 2 taken, 7 sliced, 0 skipped, 2 fresh")
    assert "sliced  a.weight: 8×3×3×3 → 4×3×3×3" in text and "fresh   c.weight: none → 2×2" in text
    assert "b.bias" not in text
