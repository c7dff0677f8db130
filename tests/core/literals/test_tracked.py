"""Integers that know where they come from."""

from __future__ import annotations

import copy

import pytest
from torch import nn

from d2prune.core.literals.tracked import TrackedInt, attributes_in, evaluate, expression_of, tracked


class Module(nn.Module):
    def __init__(self):
        super().__init__()
        self.heads, self.dim, self.level, self.flag, self.inner = 4, 32, 1, True, nn.Linear(8, 8)


def test_attributes_know_their_names_and_are_put_back():
    model = nn.Sequential(Module())
    with tracked(model):
        assert model[0].heads.expression == ("0", "heads")
        others = (model[0].level, model[0].flag, model[0].inner.in_features)
        assert all(type(value) is not TrackedInt for value in others)
        assert type(copy.deepcopy(model)[0].heads) is int
    assert type(model[0].heads) is int


@pytest.mark.parametrize(
    "work, values, result",
    [
        (lambda h, d: d // h, {"h": 2}, 16),
        (lambda h, d: 3 * h * d, {"d": 16}, 192),
        (lambda h, d: (d - h) % 5, {"h": 3}, 4),
        (lambda h, d: 64 // h + d, {"h": 8}, 40),
    ],
)
def test_expressions_come_to_what_the_code_would(work, values, result):
    h, d = TrackedInt(4, ("", "h")), TrackedInt(32, ("", "d"))
    number = work(h, d)
    assert number == work(4, 32) and set(attributes_in(number.expression)) == {("", "h"), ("", "d")} - (
        set() if "d" in str(number.expression) else {("", "d")}
    )
    known = {("", "h"): 4, ("", "d"): 32, **{("", name): value for name, value in values.items()}}
    assert evaluate(number.expression, known) == result


def test_what_no_attribute_has_part_in_is_itself():
    assert expression_of(7) == 7 and attributes_in(7) == () and evaluate(7, {}) == 7
    assert TrackedInt(8, ("", "x")) * 0.5 == 4.0
