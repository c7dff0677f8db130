"""A spec's text and data are read strictly: every type, every limit, and one error for all else."""

from __future__ import annotations

import json
import time

import pytest
import torch

from d2prune.core.cut.spec import PruneSpec
from d2prune.core.cut.surgery import resize
from d2prune.errors import PruneError
from tests.core.nets import Residual
from tests.each import each

CELL = {"before": 4, "after": 2, "kept": [0, 2]}
CALL = {
    "functions": ["forward"],
    "line": 3,
    "ordinal": 0,
    "text": "x.view(4)",
    "numbers": [[0, -1], [1, 2.5]],
}


def spec(**parts):
    return {"version": 2, "base": "Net", "layers": {"a": {"out": dict(CELL), "groups": 2}}, **parts}


def refused(data, match="^not a pruning spec: "):
    """As data, and as text where that can be written."""
    with pytest.raises(PruneError, match=match) as caught:
        PruneSpec.from_dict(data)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600
    try:
        text = json.dumps(data)
    except (TypeError, ValueError, RecursionError):
        return
    with pytest.raises(PruneError, match=match):
        PruneSpec.from_json(text)


def test_every_part_comes_back():
    whole = spec(
        attributes={"m": {"heads": [8, 6]}},
        scales={"a": [[0, 2, 0.5]]},
        calls={"": [CALL]},
        written_by={"torch": "2.6"},
    )
    found = PruneSpec.from_dict(whole)
    assert found.to_dict() == whole and PruneSpec.from_json(json.dumps(whole)) == found


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        '{"a":' * 100_000,
        "9" * 5000,
        '{"version": ' + "9" * 5000 + "}",
        "NaN",
        '{"a": 1, "a": 2}',
    ],
)
def test_text_that_python_can_not_read_is_refused(text):
    with pytest.raises(PruneError, match="^not a pruning spec: ") as caught:
        PruneSpec.from_json(text)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    "version",
    [True, 1.0, 2.5, 10**5000, -1, torch.ones(2), [1], {}, "x" * 10_000, "a\nb"],
    ids=lambda value: type(value).__name__,
)
def test_a_version_is_a_small_integer(version):
    refused(spec(version=version), "pruning spec version is .{1,60}; this d2prune reads versions 1 and 2")


@pytest.mark.parametrize(
    "row",
    [
        [],
        ["out"],
        "out",
        None,
        {"groups": 2},
        {"out": CELL, "groups": -3},
        {"out": CELL, "groups": 0},
        {"out": CELL, "groups": True},
        {"out": CELL, "groups": None},
        {"out": CELL, "extra": 1},
        {"out": None},
        {"out": [CELL]},
        {"out": {**CELL, "kept": {"0": 1, "2": 1}}},
        {"out": {**CELL, "kept": "02"}},
        {"out": {**CELL, "kept": [0, True]}},
        {"out": {**CELL, "kept": [2, 0]}},
        {"out": {**CELL, "kept": [0, 4]}},
        {"out": {**CELL, "kept": [0, -1]}},
        {"out": {**CELL, "before": "4"}},
        {"out": {**CELL, "before": 10**30}},
        {"out": {**CELL, "before": float("inf")}},
        {"out": {**CELL, "after": 2.0}},
        {"out": {**CELL, "more": 1}},
    ],
)
def test_a_layers_row_is_strict(row):
    refused(spec(layers={"a": row}))


@pytest.mark.parametrize(
    "parts",
    [
        {"base": 3},
        {"base": None},
        {"base": "x" * 100_000},
        {"layers": [["a", {}]]},
        {"unknown": {}},
        {"layers": {"x" * 100_000: {}}},
        {"written_by": {"torch": 2.6}},
        {"written_by": [1]},
        {"attributes": {"m": {"heads": [8]}}},
        {"attributes": {"m": {"heads": [8, 6, 4]}}},
        {"attributes": {"m": {"heads": [8, True]}}},
        {"attributes": {"m": {"__class__": [8, 6]}}},
        {"attributes": {"m": {"a.b": [8, 6]}}},
        {"attributes": {"m": [1]}},
        {"scales": {"a": [[2, 2, 1.0]]}},
        {"scales": {"a": [[-1, 2, 1.0]]}},
        {"scales": {"a": [[0, 2, "1"]]}},
        {"scales": {"a": [[0, 2, float("nan")]]}},
        {"scales": {"a": [0, 2, 1.0]}},
        {"calls": {"": CALL}},
        {"calls": {"": [{**CALL, "line": -1}]}},
        {"calls": {"": [{**CALL, "text": 5}]}},
        {"calls": {"": [{**CALL, "text": "(" * 100_000}]}},
        {"calls": {"": [{**CALL, "functions": "forward"}]}},
        {"calls": {"": [{**CALL, "numbers": []}]}},
        {"calls": {"": [{**CALL, "numbers": [[0, None]]}]}},
        {"calls": {"": [{**CALL, "more": 1}]}},
        {"corrections": {"": [[1]]}},
        {"corrections": {"": "0123456789"}},
        {"corrections": {"": ["0123456789"]}},
        {"corrections": {"": [["view", 1, 1, 1, 5, 1, 1, 1, 1, 1]]}},
    ],
)
def test_every_other_part_is_strict(parts):
    refused(spec(**parts))


@pytest.mark.parametrize("value", [torch.ones(1), (1, 2), {1}, b"x", 1j, object(), 10**400, -(2**63)])
def test_only_plain_data_is_read(value):
    refused(spec(written_by={"x": value}))
    refused(spec(layers={"a": {"out": {**CELL, "kept": [value]}}}))


def test_keys_are_text():
    for data in ({**spec(), 3: {}}, spec(layers={3: {}}), {**spec(), torch.float32: {}}):
        with pytest.raises(PruneError, match="^not a pruning spec: (unknown key of type|a key is no text)"):
            PruneSpec.from_dict(data)


def nested(depth):
    value = []
    for _ in range(depth):
        value = [value]
    return value


def circular():
    value = []
    value.append(value)
    return value


def multiplied(times):
    """A list that holds itself ten times over, at every level: ten to the power of ``times`` values."""
    value = list(range(10))
    for _ in range(times - 1):
        value = [value] * 10
    return value


@pytest.mark.parametrize("part", [nested(100_000), circular(), multiplied(7), [[0] * 3000] * 3000])
def test_what_is_deep_circular_or_vast_is_refused_at_once(part):
    start = time.perf_counter()
    with pytest.raises(PruneError, match="nested deeper than 8 levels|more than 5000000 values"):
        PruneSpec.from_dict(spec(layers=part))
    assert time.perf_counter() - start < 5


@pytest.mark.parametrize("groups", [1, 3, 4])
def test_groups_that_do_not_follow_are_refused_before_a_cut(groups):
    model = Residual()
    before = {name: tensor.shape for name, tensor in model.state_dict().items()}
    name, layer = next((n, m) for n, m in model.named_modules() if isinstance(m, torch.nn.Conv2d))
    cell = {"before": layer.out_channels, "after": 2, "kept": [0, 1]}
    wrong = PruneSpec.from_dict(spec(layers={name: {"out": cell, "groups": groups}}))
    with pytest.raises(
        PruneError, match=f"layer '{name}' would have None groups; the pruning spec has {groups}"
    ):
        resize(model, wrong)
    assert all(tensor.shape == before[name] for name, tensor in each(model.state_dict().items()))


def test_a_whole_number_is_an_integer_however_it_is_written():
    """Code that was made with 4.0 would be taken for that with 4, which is equal."""
    call = {
        "functions": ["forward"],
        "line": 1,
        "ordinal": 0,
        "text": "x.view(4)",
        "numbers": [[0, 4.0], [1, 0.5]],
    }
    spec = PruneSpec.from_dict({"version": 2, "base": "x", "layers": {}, "calls": {"": [call]}})
    (change,) = spec.calls[""]
    assert [(n, type(n)) for _, n in change.numbers] == [(4, int), (0.5, float)]
