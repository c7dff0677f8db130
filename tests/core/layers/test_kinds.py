"""The table of layer kinds: cut by its row, a layer computes what the whole one does on what is left."""

from __future__ import annotations

import copy
import re
from pathlib import Path

import pytest
import torch
import torchvision
from torch import nn

from d2prune.core.layers import table
from d2prune.core.layers.kinds import (
    Keep,
    axis_width,
    cut,
    groups_after,
    has_inputs,
    is_layer,
    widths_of,
    zero_inputs,
    zero_outputs,
)
from d2prune.core.layers.table import ATTENTION, CHANNEL_NORM, UNKNOWN, kind_of
from d2prune.errors import PruneError
from tests.core.nets import lively
from tests.each import each

FROZEN = torchvision.ops.FrozenBatchNorm2d
IMAGE, TOKENS = (2, 8, 5, 5), (2, 5, 8)
HALVES = (0, 2, 5, 7)  # the same positions of both groups of four
LAYERS = {
    "conv": (nn.Conv2d(8, 8, 3), IMAGE, True),
    "grouped": (nn.Conv2d(8, 8, 3, groups=2, bias=False), IMAGE, True),
    "transposed": (nn.ConvTranspose2d(8, 8, 2), IMAGE, True),
    "transposed and grouped": (nn.ConvTranspose2d(8, 8, 2, groups=2), IMAGE, True),
    "depthwise": (nn.Conv2d(8, 8, 3, groups=8), IMAGE, False),
    "transposed and depthwise": (nn.ConvTranspose2d(8, 8, 3, groups=8), IMAGE, False),
    "linear": (nn.Linear(8, 8), TOKENS, True),
    "batch norm": (nn.BatchNorm2d(8), IMAGE, False),
    "batch norm without weights": (nn.BatchNorm2d(8, affine=False), IMAGE, False),
    "torchvision's frozen norm": (FROZEN(8), IMAGE, False),
    "group norm": (nn.GroupNorm(8, 8), IMAGE, False),
    "prelu": (nn.PReLU(8), IMAGE, False),
}
PAIRED = {"grouped", "transposed and grouped"}


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def kept_of(name):
    return (0, 2, 4, 6) if name in PAIRED else HALVES


@pytest.mark.parametrize("name", LAYERS)
def test_cut_it_computes_what_is_left(name):
    layer, shape, apart = LAYERS[name]
    layer, x, kept = lively(copy.deepcopy(layer)).double().eval(), torch.rand(shape).double(), kept_of(name)
    dim = 2 if shape is TOKENS else 1
    whole, small = copy.deepcopy(layer), copy.deepcopy(layer)
    assert is_layer(layer) and has_inputs(layer) == apart
    zero_inputs(whole, [i for i in range(8) if i not in kept])
    cut(small, Keep(kept, kept if apart else None, groups_after(layer, 4)))
    picked = torch.tensor(kept)
    torch.testing.assert_close(small(x.index_select(dim, picked)), whole(x).index_select(dim, picked))
    assert axis_width(small, "out") == axis_width(small, "in") == 4
    assert widths_of(nn.Sequential(small), "0") == (4, 4 if apart else None)


@pytest.mark.parametrize("name", [name for name in LAYERS if "prelu" not in name])
def test_silenced_its_channels_are_zero_for_no_input(name):
    layer, shape, _ = LAYERS[name]
    layer = lively(copy.deepcopy(layer)).eval()
    gone = [i for i in range(8) if i not in kept_of(name)]
    zero_outputs(layer, gone)
    with torch.no_grad():
        out = layer(torch.zeros(shape))
    assert not out.index_select(2 if shape is TOKENS else 1, torch.tensor(gone)).any()


def test_what_has_no_row_or_no_channels_is_no_layer():
    computed = nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))
    for layer in (nn.GRU(4, 4), nn.PReLU(), nn.ReLU(), computed, nn.Sequential(nn.BatchNorm2d(4)), 7):
        assert not is_layer(layer)
    with pytest.raises(PruneError, match="can't take channels out of a GRU"):
        cut(nn.GRU(4, 4), Keep((0, 1)))


def test_attention_of_other_widths_has_no_row():
    assert kind_of(nn.MultiheadAttention(8, 2)) is ATTENTION
    assert kind_of(nn.MultiheadAttention(8, 2, kdim=4)) is UNKNOWN


@pytest.mark.parametrize(
    "norm", [nn.BatchNorm1d(4), nn.SyncBatchNorm(4), FROZEN(4), nn.InstanceNorm2d(4, affine=True)]
)
def test_channel_norms_are_known_by_their_shape(norm):
    assert kind_of(norm) is CHANNEL_NORM


def test_only_the_table_asks_what_kind_of_layer_it_has_before_it():
    asks = re.compile(r"isinstance\([^)]*nn\.(Conv|Linear|\w*Norm|PReLU|Embedding)")
    package = Path(table.__file__).parents[2]
    files = (package.glob("*.py"), (package / "core").rglob("*.py"), (package / "recipes").rglob("*.py"))
    parts = [path for some in files for path in each(some)]
    assert [path.name for path in parts if asks.search(path.read_text(encoding="utf-8"))] == []
