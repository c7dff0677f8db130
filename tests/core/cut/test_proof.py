"""The proof must fail where it should: sabotage, non-finite outputs, and tests that can't fail."""

from __future__ import annotations

import copy
import dataclasses
import re

import pytest
import torch
from torch import nn

from d2prune.adapters import TraceInput
from d2prune.core.cut.proof import control_plan, verify
from d2prune.core.cut.spec import spec_of
from d2prune.core.cut.surgery import mask, resize
from d2prune.core.plan.costs import measure
from d2prune.core.plan.criteria import criterion_of, rank_groups
from d2prune.core.plan.limits import limits_of
from d2prune.core.plan.planner import plan
from d2prune.core.types import Request
from d2prune.errors import PruneError
from d2prune.pruning import find_groups, prune
from tests.core.nets import Chain, Residual, TwoOutputs, images, lively
from tests.each import each

NOT_EQUAL = re.compile(
    r"^the pruned model is not equal to the masked one: "
    r"error \d\.\de[+-]\d\d at (\S+) \(allowed 1e-09\)$"
)


class Case:
    """A plan for a model, and the ways to carry it out wrongly."""

    def __init__(self, model, amount=0.4):
        self.model, self.target = lively(model), TraceInput(model, images())
        request = Request(amount=amount)
        groups = find_groups(self.model, self.target)
        costs = measure(copy.deepcopy(self.model).eval(), self.target.inference)
        names = [name for name, _ in self.model.named_modules()]
        scores = rank_groups(self.model, groups, criterion_of("magnitude"))
        self.plan = plan(groups, scores, limits_of(groups, request, names), costs, request)
        self.spec = spec_of(self.plan, type(model).__name__, self.model)
        self.pruned = resize(copy.deepcopy(self.model), self.spec)

    def verify(self):
        return verify(
            self.model, self.pruned, self.plan, self.spec, self.target.forwards(False), self.target.varied
        )

    def fails(self):
        with pytest.raises(PruneError) as info:
            self.verify()
        return NOT_EQUAL.match(str(info.value)).group(1)


def test_an_honest_prune_is_exact_and_its_control_errs():
    proof = Case(Residual()).verify()
    assert proof.exact and proof.error <= 1e-9 and proof.control_error >= 1000 * proof.error
    assert proof.dtype == "float64" and proof.compared == ("output",)


def test_the_verdict_is_plain_data():
    model = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 2))
    with torch.no_grad():
        model[0].weight.fill_(1), model[2].weight.fill_(1)  # sums of whole numbers: no error at all
    proof = prune(model, 0.3, example_inputs=torch.ones(1, 2)).proof
    assert type(proof.exact) is bool and type(proof.error) is type(proof.control_error) is float


def test_one_changed_weight_is_found():
    case = Case(Residual())
    with torch.no_grad():
        case.pruned.two[0][0].weight[0, 0, 1, 1] += 1e-4
    assert case.fails() == "output"


def test_the_wrong_channel_kept_is_found():
    case = Case(Chain())
    keep = case.spec.layers["1.0"]
    gone = next(i for i in range(48) if i not in keep.out)
    wrong = dataclasses.replace(keep, out=tuple(sorted({*keep.out[1:], gone})))
    layers = {**case.spec.layers, "1.0": wrong}
    case.pruned = resize(copy.deepcopy(case.model), dataclasses.replace(case.spec, layers=layers))
    assert case.fails() == "output"


def test_the_wrong_statistics_are_found():
    case = Case(Chain())
    case.pruned[1][1].running_mean[0] += 1e-3
    assert case.fails() == "output"


def test_the_output_that_differs_is_named():
    case = Case(TwoOutputs())
    with torch.no_grad():
        case.pruned.boxes.bias[1] += 1e-3
    assert case.fails() == "output.boxes"


def test_outputs_of_another_shape_are_unequal():
    case = Case(Chain())
    case.pruned.append(nn.MaxPool2d(2))
    with pytest.raises(PruneError, match="error inf at output"):
        case.verify()


def test_a_dead_consumer_is_inconclusive():
    model = Residual()
    with torch.no_grad():
        model.head.weight.zero_()
    proof = Case(model).verify()
    assert not proof.exact and proof.error == 0 and proof.constant == ("output",)
    assert proof.reason == ("inconclusive: the output is constant: initialise the head or load weights")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_outputs_that_are_not_finite_are_refused(value):
    case = Case(Chain())
    with torch.no_grad():
        case.model[3].bias[0] = value
    with pytest.raises(PruneError, match="output 'output' is not finite"):
        case.verify()


def test_neither_model_is_touched():
    case = Case(Residual())
    before = [{k: v.clone() for k, v in m.state_dict().items()} for m in (case.model, case.pruned)]
    case.model.train()
    case.verify()
    assert case.model.training
    for old, model in zip(before, (case.model, case.pruned), strict=True):
        assert all(torch.equal(old[k], v) for k, v in each(model.state_dict().items()))


def test_the_control_masks_as_many_kept_units():
    case = Case(Residual())
    control = spec_of(control_plan(case.plan), "Residual", case.model)
    for name, keep in each(control.layers.items()):
        real = case.spec.layers[name]
        width = case.spec.widths[name][1]
        if keep.inp is None:
            continue
        gone, held = set(range(width)) - set(real.inp), set(range(width)) - set(keep.inp)
        assert not gone & held and len(held) == min(len(gone), len(real.inp))


def test_what_rounding_decides_on_another_input_proves_nothing():
    case = Case(Residual())
    first = case.target.outputs
    masked = mask(copy.deepcopy(case.model).double().eval(), case.spec, case.plan)
    with torch.no_grad():
        exactly = first(masked)["output"]

    def decided(model):
        return {"output": (first(model)["output"] == exactly).double()}  # as top-k of equal scores

    proof = verify(
        case.model, case.pruned, case.plan, case.spec, {"a": first, "b": decided}, case.target.varied
    )
    assert proof.exact and proof.error < 1e-12
    with pytest.raises(PruneError, match="not equal"):
        verify(case.model, case.pruned, case.plan, case.spec, {"a": decided}, case.target.varied)
