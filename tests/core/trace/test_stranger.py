"""docs/tracing.md: its example followed to the letter, and its pictures looked up in real traces."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch import nn

import d2prune
from d2prune.core.layers import table as layers
from d2prune.core.trace.operators import table as operators
from d2prune.core.trace.tracer import trace_groups

DOCUMENT = Path(__file__).parents[3] / "docs" / "tracing.md"


@pytest.fixture(scope="module")
def steps(tmp_path_factory):
    """What each block of code leaves behind, after it ran: one namespace a step."""
    section = DOCUMENT.read_text(encoding="utf-8").split("## Adding an operator, and a layer\n")[1]
    blocks = re.findall(r"```python\n(.*?)```", section.split("\n## ")[0], re.DOTALL)
    torch.manual_seed(0)
    namespace: dict = {"__name__": "stranger"}
    left = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layers, "ROWS", dict(layers.ROWS))
        patch.setattr(operators, "HANDLERS", dict(operators.HANDLERS))
        patch.chdir(tmp_path_factory.mktemp("stranger"))
        for block in blocks:
            exec(compile(block, str(DOCUMENT), "exec"), namespace)
            left.append(dict(namespace))
    return left


def reason(result, name):
    (row,) = (row for row in result.coverage if row.name == name)
    assert row.status == "skipped" and row.before == row.after
    return row.reason


def test_unknown_to_d2prune_the_operator_keeps_the_channels(steps):
    result = steps[0]["unknown"]
    assert result.proof.exact
    assert (
        reason(result, "first") == "its channels go through mylib::scale, which d2prune does not know, in Net"
    )


def test_with_the_operator_registered_it_is_the_layer_that_keeps_them(steps):
    result = steps[1]["halfway"]
    assert result.proof.exact and reason(result, "first").endswith("do not shrink with them, in second")
    assert reason(result, "second") == "Dense is not a layer d2prune can cut"


def test_with_both_it_is_pruned_exactly(steps):
    result, x = steps[2]["result"], steps[2]["x"]
    assert result.proof.exact and result.proof.control_error > 1e-3
    assert {row.name for row in result.coverage if row.status == "pruned"} == {
        "first",
        "gain",
        "second",
        "third",
    }
    again = steps[2]["again"]
    assert again.second.outputs == result.model.second.kernel.shape[1] < 24
    assert torch.equal(again(x), result.model(x))


def test_the_document_names_every_rule():
    named = re.findall(r"^\| `([a-z ]+)` \|", DOCUMENT.read_text(encoding="utf-8"), re.MULTILINE)
    assert named == list(operators.NAMED)


class Residual(nn.Module):
    """The document's first picture."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2, self.norm = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.GroupNorm(4, 4)
        self.conv3, self.head = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 2, 1)

    def forward(self, x):
        x = self.conv1(x)
        return self.head(x + self.conv3(self.norm(self.conv2(x))))


class Attention(nn.Module):
    """The second."""

    def __init__(self):
        super().__init__()
        self.q, self.k, self.v, self.proj = nn.Linear(3, 4), nn.Linear(3, 4), nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x):
        q, k, v = (f(x).view(*x.shape[:2], 2, -1).transpose(1, 2) for f in (self.q, self.k, self.v))
        return self.proj(((q @ k.mT).softmax(-1) @ v).transpose(1, 2).flatten(2))


PICTURES = {
    Residual: (
        (2, 3, 4, 4),
        4,
        [
            {("conv1", "out"), ("conv3", "out"), ("conv2", "in"), ("head", "in")},
            {("conv2", "out"), ("norm", "out"), ("conv3", "in")},
        ],
    ),
    Attention: ((2, 5, 3), 2, [{("q", "out"), ("k", "out")}, {("v", "out"), ("proj", "in")}]),
}


@pytest.mark.parametrize("net", PICTURES)
def test_the_pictures_are_true(net):
    shape, units, drawn = PICTURES[net]
    model, x = net().eval(), torch.rand(shape)
    groups = trace_groups(model, lambda model: {"output": model(x)})
    found = {frozenset(m.site for m in group.members): group.units for group in groups if not group.fixed}
    assert found == {frozenset(sites): units for sites in drawn}


@pytest.mark.parametrize(
    "names, rule, said",
    [
        (
            "mylib::scael",
            "same",
            "got 'mylib::scael', which is not defined; expected an operator's full name",
        ),
        (["aten::relu", "relu"], "same", "got 'relu', which is not defined"),
        ([], "same", r"got \[\]; expected a name such as"),
        (7, "same", "got 7; expected a name such as"),
        (
            "aten::relu",
            "pointwize",
            r"the rule 'pointwize'; expected one of: pointwise, same, .*; or a function",
        ),
        ("aten::relu", lambda labels: None, "expected one of"),
    ],
)
def test_a_rule_that_is_none_is_refused(names, rule, said):
    before = dict(operators.HANDLERS)
    with pytest.raises(d2prune.PruneError, match=r"^register_operator.*" + said):
        d2prune.register_operator(names, rule)
    assert before == operators.HANDLERS
