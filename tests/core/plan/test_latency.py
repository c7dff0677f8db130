"""Grids of times give a price for any widths, and go through a file."""

from __future__ import annotations

import json

import pytest

from d2prune.core.plan.latency import Grid, LatencyTable
from d2prune.errors import PruneError

GRID = Grid((16, 32, 64), (16, 64), ((1.0, 2.0), (2.0, 4.0), (8.0, 10.0)))


@pytest.mark.parametrize(
    ("out", "inp", "expected"),
    [(64, 64, 10.0), (32, 16, 2.0), (48, 16, 5.0), (32, 40, 3.0), (8, 8, 1.0), (99, 99, 10.0)],
)
def test_times_are_linear_between_points_and_constant_beyond(out, inp, expected):
    assert GRID.at(out, inp) == pytest.approx(expected)


def test_a_narrower_call_is_never_priced_higher():
    grid = Grid((16, 32), (0,), ((5.0,), (4.0,)))
    assert grid.at(16, 0) == grid.at(32, 0) == 5.0


def test_widths_are_priced_as_whole_blocks():
    grid = Grid((16, 32, 64), (16, 64), GRID.ms, (16, 16), (1.5, 1.1))
    assert grid.at(33, 64) == pytest.approx(1.5 * grid.at(48, 64)) and grid.at(48, 64) == 7.0
    assert grid.at(64, 17) == pytest.approx(1.1 * grid.at(64, 32))
    assert grid.at(33, 17) == pytest.approx(1.5 * 1.1 * grid.at(48, 32))


TABLE = LatencyTable(
    {"device": "x"}, 30.0, {"call": GRID}, {"a": ("call", "call"), "b": ("call",)}, {"a": 100.0}, 0.01, 0.5
)


def test_a_layer_costs_all_its_calls_and_its_outputs_elements():
    assert TABLE.price("a", 64, 64) == pytest.approx(0.5 * (10 + 10) + 0.01 * 100 * 64)
    assert TABLE.price("b", 64, 64) == pytest.approx(5.0) and TABLE.price("unseen", 9, 9) == 0


def test_a_table_goes_through_a_file():
    TABLE.price("a", 64, 64)  # what is remembered is not written
    assert LatencyTable.from_json(TABLE.to_json(), "x.json") == TABLE


def broken(**changed):
    return json.dumps({**json.loads(TABLE.to_json()), **changed})


def grid(**changed):
    return broken(grids={"call": {**json.loads(TABLE.to_json())["grids"]["call"], **changed}})


@pytest.mark.parametrize(
    "text",
    ["", "[]", "[" * 10_000, "{}", broken(version=2), broken(grids={}), broken(more=1), broken(calls=3),
     grid(outs=[32, 16, 64]), grid(ms=[[1.0, 2.0]]), grid(ms=[[1, 2], [3, "x"], [4, 5]]), grid(blocks=[0, 1]),
     grid(ms=[[1, 2], [3, -4], [4, 5]]), grid(blocks=[16]), grid(broken=[0, 1]), grid(outs=[])],
)  # fmt: skip
def test_what_is_no_table_is_refused(text):
    with pytest.raises(PruneError, match="LATENCY_TABLE 'x.json' is no table of latencies"):
        LatencyTable.from_json(text, "x.json")
