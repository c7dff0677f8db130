"""The channels that layers have, and the layers that can't be cut."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.weak import WeakTensorKeyDictionary

from d2prune.core.trace.labels import LabelStore, support
from d2prune.core.trace.weights import label_layers, whole_layers


def labelled(module):
    store, maps = LabelStore(lambda: "here"), WeakTensorKeyDictionary()
    return label_layers(module, whole_layers(module), store, maps), maps, store


def test_a_convolution_has_rows_columns_and_a_bias():
    conv = nn.Conv2d(4, 6, 3)
    axes, maps, _ = labelled(conv)
    assert {site: len(axis.ids) for site, axis in axes.items()} == {("", "out"): 6, ("", "in"): 4}
    assert [support(s) for s in maps[conv.weight]] == [(0,), (1,)]
    assert torch.equal(maps[conv.bias][0], maps[conv.weight][0].flatten())


def test_columns_held_once_for_all_groups_have_one_label_for_all():
    axes, _, _ = labelled(nn.Conv2d(8, 12, 1, groups=4))
    columns = axes["", "in"].ids.reshape(4, 2)
    assert (columns == columns[0]).all() and len(np.unique(columns)) == 2


def test_a_transposed_convolution_has_its_columns_first():
    conv = nn.ConvTranspose2d(8, 12, 2, groups=2)
    axes, maps, _ = labelled(conv)
    assert (len(axes["", "out"].ids), len(axes["", "in"].ids)) == (12, 8)
    assert maps[conv.weight][0].shape == (1, 6, 1, 1) and maps[conv.bias][0].shape == (12,)


@pytest.mark.parametrize("kind", [nn.Conv2d, nn.ConvTranspose2d])
def test_a_depthwise_convolution_keeps_channels_apart(kind):
    axes, maps, _ = labelled(conv := kind(6, 6, 3, groups=6))
    assert list(axes) == [("", "out")] and not axes["", "out"].makes("out")
    assert [support(s) for s in maps[conv.weight]] == [(0,)]


def test_statistics_have_the_labels_of_their_channels():
    norm = nn.BatchNorm2d(5)
    _, maps, _ = labelled(norm)
    rows = [maps[t][0].tolist() for t in (norm.weight, norm.bias, norm.running_mean, norm.running_var)]
    assert rows == [[1, 2, 3, 4, 5]] * 4


def test_a_single_channel_is_never_cut():
    axes, maps, store = labelled(conv := nn.Conv2d(4, 1, 1))
    assert len(maps[conv.weight]) == 1 and [why for _, why in store.kept] == ["has a single channel"]
    assert axes["", "out"].makes("out")


def test_bare_parameters_are_axes_of_their_own():
    class Net(nn.Module):
        pass

    net = Net()
    net.scale, net.number = nn.Parameter(torch.rand(1, 5, 1, 1)), nn.Parameter(torch.rand(1))
    axes, _, _ = labelled(net)
    assert list(axes) == [("scale", "out")] and len(axes["scale", "out"].ids) == 5


WHOLE = {
    "gru": (nn.GRU(8, 8), "a GRU"),
    "bilinear": (nn.Bilinear(8, 8, 4), "a Bilinear"),
    "computed": (nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)), "whose weight is computed"),
}


@pytest.mark.parametrize("name", WHOLE)
def test_layers_without_a_rule_are_named(name):
    layer, kind = WHOLE[name]
    why = whole_layers(nn.ModuleDict({"layer": layer}))["layer"]
    assert kind in why and why.endswith("d2prune can't cut")


def test_shared_weights_are_named():
    one, two = nn.Linear(4, 4), nn.Linear(4, 4)
    two.weight = one.weight
    assert set(whole_layers(nn.Sequential(one, two))) == {"0", "1"}
