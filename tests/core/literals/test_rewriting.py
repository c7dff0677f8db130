"""Code is compiled again with other numbers, and is otherwise what it was."""

from __future__ import annotations

import copy
import dataclasses
import pickle

import pytest
import torch
from torch import nn

import d2prune
from d2prune.core.literals.rewriting import change_code
from d2prune.core.literals.written import CallChange, UnchangeableError, merged


def fold(x, width):
    return x.view(-1, 16, *x.shape[2:]) + 0 * width


class Base(nn.Module):
    def forward(self, x):
        return 2 * x


class Layers(Base):
    """What a rewritten function must not lose: super(), private names, defaults, what it closes over."""

    __bias = 1.0

    def forward(self, x, *, factor=2.0):
        wide = super().forward(x)
        return factor * wide.reshape(x.shape[0], 16, *x.shape[2:]) + self.__bias


class Helper(nn.Module):
    def forward(self, x):
        return fold(self._fold(x), 16)

    def _fold(self, x):
        shape = (-1, 16, x.shape[2], x.shape[3])
        return x.view(shape)


class Loop(nn.Module):
    def forward(self, x):
        return sum(part.reshape(-1, 16, 8, 8) for part in (x, 2 * x))


class Parts(nn.Module):
    def forward(self, x):
        one, two = x.split([6, 10], 1)
        return torch.cat([one, 2 * two, x[:, 6:16] * 3, x.narrow(1, 0, 6)], 1)


class Through(nn.Module):
    """``middle`` between two convolutions, its code's width that of the first."""

    def __init__(self, middle, factor=1):
        super().__init__()
        self.first, self.middle, self.last = nn.Conv2d(3, 16, 1), middle(), nn.Conv2d(16 * factor, 4, 1)

    def forward(self, x):
        return self.last(self.middle(self.first(x)))


def pruned(middle, factor=1):
    torch.manual_seed(0)
    model = Through(middle, factor).eval()
    return d2prune.prune(model, 0.3, "channels", example_inputs=torch.rand(2, 3, 8, 8))


@pytest.mark.parametrize("middle, factor", [(Layers, 1), (Helper, 1), (Loop, 1), (Parts, 2)])
def test_calls_are_changed_wherever_they_stand(middle, factor, tmp_path):
    result = pruned(middle, factor)
    changes = result.spec.calls["middle"]
    assert result.proof.exact and result.reached > 0.2 and changes
    model, x = result.model.eval(), torch.rand(3, 3, 8, 8)
    assert isinstance(model.middle, middle) and type(model.middle).__name__ == middle.__name__
    d2prune.save(result, tmp_path / "p.pth")
    again = [d2prune.load(tmp_path / "p.pth", Through(middle, factor)).eval()]
    again += [pickle.loads(pickle.dumps(model)), copy.deepcopy(model)]
    for other in again:
        assert torch.equal(other(x), model(x))
    second = d2prune.prune(model, 0.2, "channels", example_inputs=torch.rand(2, 3, 8, 8))
    assert second.proof.exact and len(second.spec.calls["middle"]) == len(changes)


def test_the_original_class_is_untouched():
    before = vars(Helper).copy()
    pruned(Helper)
    assert vars(Helper) == before and Helper()(torch.rand(1, 16, 8, 8)).shape == (1, 16, 8, 8)


def test_code_that_has_changed_since_is_refused():
    result = pruned(Loop)
    (change,) = result.spec.calls["middle"]
    calls = {"middle": (dataclasses.replace(change, text="x.view(1)"),)}
    other = dataclasses.replace(result.spec, calls=calls)
    with pytest.raises(d2prune.PruneError, match=r"has no call 'x.view\(1\)' on line .* has changed since"):
        d2prune.rebuild(Through(Loop), other)


@pytest.mark.parametrize("functions", [("forward", "nothing"), ("backward",)])
def test_functions_that_are_not_there_are_refused(functions):
    with pytest.raises(UnchangeableError):
        change_code(Loop(), [CallChange(functions, 1, 0, "x", ((0, 3),))])


@pytest.mark.parametrize(
    "text, first, second, both",
    [
        ("x.view(a, b)", ((0, 3), (1, 5)), ((1, 4),), ((0, 3), (1, 4))),
        ("x.view(a, b)", ((0, 3),), ((1, 4),), ((0, 3), (1, 4))),
        ("x.split(n, 1)", ((0, 3), (1, 2)), ((0, 2),), ((0, 2),)),
    ],
)
def test_later_numbers_of_a_call_win_and_others_stay(text, first, second, both):
    one = CallChange(("forward",), 1, 0, text, first)
    elsewhere = dataclasses.replace(one, line=2)
    found = merged([one, elsewhere], [dataclasses.replace(one, numbers=second)])
    assert found == (dataclasses.replace(one, numbers=both), elsewhere)
