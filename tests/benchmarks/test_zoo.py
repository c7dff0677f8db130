"""The zoo: a quick part always, all of it with -m slow; what can't be pruned is a row with a reason."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from d2prune.benchmarks import ENTRIES, QUICK, Entry, Row, markdown, measure_entry
from d2prune.benchmarks.peer import try_torch_pruning

# What this Detectron2, or nobody, can build: the refusal names the reason.
REFUSED = {
    "Misc/mask_rcnn_R_50_FPN_1x_dconv_c3-c5.yaml": "deform",
    "Misc/panoptic_fpn_R_101_dconv_cascade_gn_3x.yaml": "deform",
    "timm convnextv2_nano": "nothing was pruned",
    "transformers ConvNextV2Model": "nothing was pruned",
    "torchvision swin_v2_t": "does not run",
}


def test_there_are_more_than_sixty():
    assert len(ENTRIES) >= 60 and set(QUICK) <= set(ENTRIES)


@pytest.mark.parametrize("name", QUICK)
def test_the_quick_part_is_green(name):
    row = measure_entry(ENTRIES[name])
    assert row.green and row.macs == pytest.approx(0.5, abs=0.02), row


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in ENTRIES if name not in QUICK])
def test_the_zoo_is_green(name):
    row = measure_entry(ENTRIES[name])
    if name in REFUSED:
        assert row.green or REFUSED[name] in row.refused.lower()
    else:
        assert row.green, row


def picture():
    return torch.rand(1, 3, 16, 16)


def test_a_model_that_cannot_be_built_is_refused_with_the_reason():
    def build():
        raise ImportError("no compiled operators\nat all")

    row = measure_entry(Entry("odd", build, picture))
    assert row.refused == "ImportError: no compiled operators" and not row.green


def test_a_model_that_cannot_be_pruned_is_refused_with_the_reason():
    row = measure_entry(Entry("small", lambda: nn.Conv2d(3, 4, 1), picture))
    assert "nothing was pruned" in row.refused or "can't be reached" in row.refused


def test_a_table_has_a_line_each_and_says_what_went_wrong():
    rows = [
        Row("a", 0.5, 0.6, 1e-15, 0.5, True, "ok", "ok", "ok", 1.0, 2.0, peer="ok"),
        Row("b", refused="Odd: no"),
    ]
    lines = markdown(rows).splitlines()
    assert lines[2] == "| a | −50.0% | −60.0% | 1e-15 | 5e-01 | yes | yes | yes | 1.0 | 2.0 | works |"
    assert "refused: Odd: no" in lines[3] and len({line.count("|") for line in lines}) == 1


def test_torch_pruning_prunes_what_it_can():
    net = Entry("plain", lambda: nn.Sequential(nn.Conv2d(3, 16, 1), nn.ReLU(), nn.Conv2d(16, 4, 1)), picture)
    assert try_torch_pruning(net) == "ok"
