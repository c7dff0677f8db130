"""Operators: labels go where elements go. Tensors here hold their own labels as values."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from d2prune.core.trace.labels import LabelStore, spread
from d2prune.core.trace.operators import HANDLERS, follow, register_operator, table

CHANNELS = 8


class Labels(TorchDispatchMode):
    """A trace of nothing but labels."""

    def __init__(self):
        super().__init__()
        self.store = LabelStore(lambda: "here")
        self.maps = {}

    def of(self, tensor):
        return self.maps.get(id(tensor), (None, ()))[1]

    def set(self, tensor, maps):
        self.maps[id(tensor)] = (tensor, maps)  # kept alive, so that no id comes twice

    def labelled(self, *shape, dim=1):
        label_map = spread(self.store.new(shape[dim]), dim, len(shape), torch.empty(0))
        tensor = label_map.expand(shape).double().contiguous()
        self.set(tensor, (label_map,))
        return tensor

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        follow(self, func, args, kwargs or {}, out)
        return out

    def kept(self):
        return {int(i): why for ids, why in self.store.kept for i in ids}


@pytest.fixture
def labels():
    return Labels()


@pytest.mark.parametrize("name", HANDLERS)
def test_every_name_in_the_table_is_an_operator(name):
    space, _, leaf = name.partition("::")
    assert hasattr(getattr(torch.ops, space), leaf)


MOVES = {
    "permute": lambda x: x.permute(0, 2, 3, 1),
    "transpose": lambda x: x.flatten(2).transpose(1, 2),
    "flatten": lambda x: x.flatten(1),
    "flatten and back": lambda x: x.flatten(1).view(x.shape),
    "squeeze": lambda x: x[:1].squeeze(0).unsqueeze(-1),
    "flip": lambda x: x.flip(1),
    "roll": lambda x: x.roll(3, 1),
    "pad": lambda x: F.pad(x, (1, 1, 0, 2)),
    "picture slices": lambda x: x[:, :, 1:3, ::2],
    "stack": lambda x: torch.stack([x, x], 2),
    "cat": lambda x: torch.cat([x, x.flip(1)], 1),
    "repeat": lambda x: x.repeat(1, 1, 2, 1),
    "expand": lambda x: x[:, :, None].expand(-1, -1, 3, -1, -1),
    "index": lambda x: x[:, :, torch.tensor([1, 0, 1])],
    "one picture position": lambda x: x[:, :, 2],
    "unbind": lambda x: x.unbind(2)[1],
    "max pool": lambda x: F.max_pool2d(x, 2),
    "nearest": lambda x: F.interpolate(x, scale_factor=2, mode="nearest"),
    "mean over the picture": lambda x: x.mean((2, 3)),
    "largest, dimension kept": lambda x: x.amax((2, 3), keepdim=True),
    "clone": lambda x: x.contiguous().clone().detach(),
    "copied": lambda x: torch.empty_like(x).copy_(x),
    "relu": lambda x: x.relu_(),
    "topk over positions": lambda x: x.flatten(2).topk(3, dim=2).values,
    "window partition": lambda x: x.view(2, CHANNELS, 2, 2, 2, 2).permute(0, 2, 4, 3, 5, 1).reshape(-1, 4, 8),
}


@pytest.mark.parametrize("name", MOVES)
def test_labels_go_where_elements_go(labels, name):
    x = labels.labelled(2, CHANNELS, 4, 4)
    with labels, torch.no_grad():
        out = MOVES[name](x)
    (label_map,) = labels.of(out)
    want = label_map.expand(out.shape).double()
    if name == "pad":
        want = want * (out > 0)
    assert torch.equal(want, out) and not labels.store.kept and not labels.store.inexact


def test_equal_parts_lose_the_same_positions(labels):
    x = labels.labelled(1, 6)
    with labels:
        one, two = x.chunk(2, 1)
    assert [s.tolist() for t in (one, two) for s in labels.of(t)] == [[[1, 2, 3]], [[4, 5, 6]]]
    assert labels.store.roots().tolist() == [0, 1, 2, 3, 1, 2, 3] and not labels.store.kept


def test_unequal_parts_go_each_by_its_own(labels):
    x = labels.labelled(1, 6)
    with labels:
        one, two = x.split([2, 4], 1)
    assert [s.tolist() for t in (one, two) for s in labels.of(t)] == [[[1, 2]], [[3, 4, 5, 6]]]
    assert labels.store.roots().tolist() == list(range(7)) and not labels.store.kept


def test_every_other_channel_leaves_pairs(labels):
    x = labels.labelled(1, 6)
    with labels:
        out = x[:, 1::2]
    assert [s.tolist() for s in labels.of(out)] == [[[2, 4, 6]]] and not labels.store.kept
    assert labels.store.roots().tolist() == [0, 1, 1, 3, 3, 5, 5]


@pytest.mark.parametrize("take", [lambda x: x[:, 2], lambda x: x[:, ::3]])
def test_single_channels_taken_by_position_stay(labels, take):
    x = labels.labelled(1, CHANNELS)
    with labels:
        take(x)
    assert len(labels.kept()) == CHANNELS and "are taken apart by position" in labels.kept()[1]


def test_a_product_ties_what_is_summed_over_and_keeps_the_rest(labels):
    x, weight = labels.labelled(5, CHANNELS), labels.labelled(CHANNELS, 3, dim=0)
    rows = spread(labels.store.new(3), 1, 2, torch.empty(0))
    labels.set(weight, (*labels.of(weight), rows))
    with labels:
        out = x @ weight
    (label_map,) = labels.of(out)
    assert label_map.tolist() == [[17, 18, 19]]
    assert labels.store.roots()[9:17].tolist() == list(range(1, 9)) and not labels.store.kept


def test_a_product_over_several_heads_keeps_none_of_its_positions(labels):
    query, key = labels.labelled(1, 6, 4, dim=1), labels.labelled(1, 6, 4, dim=1)
    with labels:
        scores = query.view(1, 2, 3, 4).transpose(2, 3) @ key.view(1, 2, 3, 4)
    assert labels.of(scores) == ()
    assert [labels.store.roots()[i] for i in (4, 7, 10)] == [1, 1, 1]


def test_a_weight_without_labels_keeps_what_it_reads(labels):
    x = labels.labelled(1, CHANNELS, 4, 4)
    with labels:
        F.conv2d(x, torch.ones(3, CHANNELS, 1, 1, dtype=torch.float64))
    assert "values that do not shrink with them" in labels.kept()[1]


@pytest.mark.parametrize("mixing", [lambda x: x.softmax(1), lambda x: x.sum(1), lambda x: x.cumsum(1)])
def test_what_mixes_channels_is_noted(labels, mixing):
    x = labels.labelled(2, CHANNELS, 4)
    with labels:
        mixing(x)
    assert {int(i) for ids, _ in labels.store.inexact for i in ids} == set(range(1, 9))


def test_an_unknown_operator_keeps_all_that_goes_into_it(labels):
    x = labels.labelled(2, CHANNELS, 4)
    with labels:
        out = torch.fft.fft(x)
    assert "go through aten::_fft" in labels.kept()[1] and labels.of(out) == ()


def test_writing_into_a_part_keeps_what_is_written(labels):
    x = labels.labelled(2, CHANNELS, 4)
    with labels, torch.no_grad():
        canvas = torch.zeros(2, CHANNELS, 9, dtype=torch.float64)
        canvas[:, :, 2:6].copy_(x)
    assert len(labels.kept()) == CHANNELS


@torch.library.custom_op("d2prune_tests::own", mutates_args=())
def own(x: torch.Tensor, dim: int) -> torch.Tensor:
    """Does nothing that anyone could know of; no integers either."""
    assert x.is_floating_point()
    return x.flip(dim)


@torch.library.custom_op("d2prune_tests::own_", mutates_args=("x",))
def own_(x: torch.Tensor, by: torch.Tensor) -> None:
    x.mul_(by)


BY_RULE = {
    "pointwise": [1, 2, 3, 4, 5, 6, 7, 8],
    "same": [1, 2, 3, 4, 5, 6, 7, 8],
    "constant": None,
    "view": [1, 2, 3, 4, 5, 6, 7, 8],
    "moves elements": [8, 7, 6, 5, 4, 3, 2, 1],
    "by channel": [1, 2, 3, 4, 5, 6, 7, 8],
    "reduces": None,
    "mixes": [1, 2, 3, 4, 5, 6, 7, 8],
}


@pytest.fixture
def open_table(monkeypatch):
    monkeypatch.setattr(table, "HANDLERS", dict(HANDLERS))


@pytest.mark.parametrize("rule", table.NAMED)
def test_an_operator_of_ones_own_follows_the_rule_it_was_given(labels, open_table, rule):
    register_operator(["d2prune_tests.own"], rule)
    x = labels.labelled(2, CHANNELS)
    with labels, torch.no_grad():
        out = own(x, 1)
    (found,) = [s.flatten().tolist() for s in labels.of(out)] or [None]
    assert found == BY_RULE[rule] and not labels.store.kept
    assert bool(labels.store.inexact) == (rule in ("reduces", "mixes"))


def test_the_latest_rule_wins_and_may_be_a_function(labels, open_table):
    register_operator("d2prune_tests::own", "same")
    register_operator("d2prune_tests::own", lambda labels, func, bound, out: labels.set(out, ()))
    with labels, torch.no_grad():
        out = own(labels.labelled(2, CHANNELS), 1)
    assert labels.of(out) == () and not labels.store.kept


def test_an_operator_that_writes_into_its_argument(labels, open_table):
    register_operator("d2prune_tests::own_", "pointwise")
    x, by = labels.labelled(2, CHANNELS), labels.labelled(CHANNELS, dim=0)
    with labels, torch.no_grad():
        own_(x, by)
    assert len(labels.of(x)) == 1 and not labels.store.kept
    assert labels.store.roots()[9:17].tolist() == list(range(1, 9))
