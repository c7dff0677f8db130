"""Plans: the amount is hit, the constraints hold, and what can't be met is said."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch import nn

from d2prune.adapters import TraceInput
from d2prune.core.plan.criteria import CRITERIA, register_criterion
from d2prune.core.plan.limits import limits_of
from d2prune.core.plan.planner import ALLOCATIONS, TARGETS, plan
from d2prune.core.plan.ranking import Ranking, by_score
from d2prune.core.types import Request
from d2prune.errors import PruneError
from d2prune.pruning import find_groups, measure_model, prune
from tests.core.nets import Chain, Dense, Mobile, Residual, block, group_norm, images, lively
from tests.each import each

WIDE = {"chain": lambda: Chain(64), "residual": lambda: Residual(48), "mobile": lambda: Mobile(24)}


class Detector(nn.Module):
    """Names as a detector has them, for patterns."""

    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(block(3, 16, 2), block(16, 32, 2))
        self.head = nn.Sequential(block(32, 24), nn.Conv2d(24, 4, 1))

    def forward(self, x):
        return self.head(self.backbone(x))


def detector(**request):
    return prune(lively(Detector()), example_inputs=images(), **request)


def widths(result):
    return {row.name: (row.before, row.after) for row in result.coverage}


def text_of(**request):
    with pytest.raises(PruneError) as info:
        detector(**request)
    return str(info.value)


@pytest.mark.parametrize("name", WIDE)
def test_the_amount_is_hit_within_a_point(name):
    rng = random.Random(name)
    for _ in range(8):
        amount, target = rng.uniform(0.05, 0.7), rng.choice([name for name in TARGETS if name != "latency"])
        allocation = rng.choice(list(ALLOCATIONS))
        result = prune(
            lively(WIDE[name](), rng.randrange(99)), amount, target, allocation=allocation,
            max_ratio=0.9, example_inputs=images(16, 1), verify=False,
        )  # fmt: skip
        assert abs(result.reached - amount) <= 0.01, (amount, target, allocation)
        if target != "channels":
            before, after = (getattr(t, target) for t in (result.before, result.after))
            assert result.reached == pytest.approx(1 - after / before, abs=1e-9)


@pytest.mark.parametrize("name", WIDE)
@pytest.mark.parametrize("round_to", [4, 8])
def test_widths_are_multiples_of_round_to(name, round_to):
    result = prune(lively(WIDE[name]()), 0.4, round_to=round_to, example_inputs=images(16, 1))
    pruned = [row for row in result.coverage if row.status == "pruned"]
    assert pruned and all(row.after % round_to == 0 for row in pruned)


def test_rounding_goes_with_whole_normalisation_groups():
    model = lively(Chain(48, norm=group_norm(16)))  # steps of 3 and 6: multiples of 4 are 12, 24, ...
    result = prune(model, 0.4, round_to=4, example_inputs=images())
    assert all(row.after % 12 == 0 for row in each(row for row in result.coverage if row.status == "pruned"))


def test_a_group_with_no_allowed_width_says_so():
    result = detector(amount=0.4, round_to=16)
    assert widths(result)["backbone.1.0"] == (32, 16) and widths(result)["head.0.0"] == (
        24,
        24,
    )  # 0.43 goes; with 16, 0.52
    reason = {row.name: row.reason for row in result.coverage}["backbone.0.0"]
    assert reason == ("no width from 4 to 15 is a multiple of ROUND_TO 16 (step 1, MAX_RATIO 0.75)")
    assert "multiple of ROUND_TO 32" in text_of(amount=0.4, round_to=32)


@pytest.mark.parametrize("max_ratio", [0.25, 0.5, 0.75])
def test_no_group_loses_more_than_max_ratio(max_ratio):
    result = detector(amount=max_ratio, target="channels", max_ratio=max_ratio)
    assert all(after >= before * (1 - max_ratio) for before, after in each(widths(result).values()))
    assert widths(result)["backbone.0.0"][1] == 16 * (1 - max_ratio)


def test_ratios_are_exact_and_take_no_part_in_the_rest():
    result = detector(amount=0.5, ratios={"backbone.0.*": 0.25, "head.*": 0})
    assert widths(result)["backbone.0.0"] == (16, 12)
    assert widths(result)["head.0.0"] == (24, 24)
    assert abs(result.reached - 0.5) <= 0.02


def test_ratios_may_go_beyond_max_ratio():
    assert widths(detector(amount=0.5, ratios={"backbone.1.0": 0.875}))["backbone.1.0"] == (32, 4)


def test_protected_layers_keep_their_channels():
    result = detector(amount=0.3, protect=("backbone.*",))
    rows = {row.name: row for row in result.coverage}
    assert rows["backbone.1.0"].after == 32 and rows["backbone.1.0"].status == "protected"
    assert rows["backbone.1.0"].reason == "protected by 'backbone.*'"
    assert rows["head.0.0"].status == "pruned"


def test_protecting_one_of_tied_layers_keeps_them_all():
    result = prune(lively(Residual()), 0.3, protect=("shortcut",), example_inputs=images())
    assert result.model.two[1].out_channels == result.model.shortcut.out_channels == 32


def test_include_leaves_everything_else_whole():
    result = detector(amount=0.3, include=("backbone.*",))
    assert widths(result)["head.0.0"] == (24, 24) and widths(result)["backbone.0.0"][1] < 16
    reason = {row.name: row.reason for row in result.coverage}["head.0.0"]
    assert reason == "head.0.0 is outside of INCLUDE"


def test_global_follows_the_scores_and_uniform_does_not():
    model = lively(Residual(32))
    with torch.no_grad():
        for parameter in (model.stem[0].weight, model.stem[1].weight):
            parameter[::2] *= 0.01
    kept = prune(model, 0.2, example_inputs=images()).spec.layers["stem.0"].out
    assert sum(i % 2 for i in kept) > len(kept) / 2
    uniform = prune(model, 0.5, "channels", allocation="uniform", example_inputs=images())
    assert {round(r.after / r.before, 1) for r in uniform.coverage if r.status == "pruned"} == {0.5}


def test_a_criterion_from_outside_decides():
    def last(model, group):
        return -torch.arange(group.units).double().numpy()

    if "last channels" not in CRITERIA:
        register_criterion("last channels")(last)
    result = prune(lively(Chain()), 0.4, criterion="last channels", example_inputs=images())
    for name in ("0.0", "1.0", "2.0"):
        kept = result.spec.layers[name].out
        assert kept is None or kept == tuple(range(len(kept)))


def test_prunes_are_the_same_twice():
    model = lively(Dense())
    first, second = (prune(model, 0.4, example_inputs=images()) for _ in range(2))
    assert first.spec == second.spec and first.proof == second.proof


def test_unknown_names_say_what_there_is():
    names = ", ".join(CRITERIA)
    assert names.startswith("reconstruction, fisher")
    text = f"MODEL.PRUNING.CRITERION is 'foo'; expected one of: {names}"
    assert text_of(criterion="foo") == text
    text = "MODEL.PRUNING.ALLOCATION is 'foo'; expected one of: uniform, global, per_cost"
    assert text_of(allocation="foo") == text
    text = "MODEL.PRUNING.TARGET is 'flops'; expected one of: channels, params, macs, latency"
    assert text_of(target="flops") == text


@pytest.mark.parametrize("amount", [1.3, 1, 0, -0.1, float("nan")])
def test_amounts_are_fractions_removed(amount):
    text = f"MODEL.PRUNING.AMOUNT is {amount}; expected a fraction removed, 0 < AMOUNT < 1"
    assert text_of(amount=amount) == text


def test_other_numbers_out_of_range():
    assert text_of(max_ratio=1).startswith("MODEL.PRUNING.MAX_RATIO is 1; expected")
    assert text_of(round_to=0).startswith("MODEL.PRUNING.ROUND_TO is 0; expected")
    assert text_of(ratios={"head.*": 1.0}).startswith("MODEL.PRUNING.RATIOS gives 1.0 for 'head.*'")


def test_everything_protected_is_an_error():
    assert text_of(amount=0.3, protect=("backbone.*", "head.*")) == (
        "nothing was pruned: 4 of 4 groups are protected or skipped; "
        "the first: backbone.0.0 (protected by 'backbone.*')"
    )


def test_less_than_one_channel_is_an_error():
    assert text_of(amount=0.001).startswith("nothing was pruned: AMOUNT 0.001 of macs is less than")


@pytest.mark.parametrize(
    "key, given",
    [("PROTECT", {"protect": ("bakbone.*",)}), ("INCLUDE", {"include": ("bakbone.*",)}),
     ("RATIOS", {"ratios": {"bakbone.*": 0.5}})],
)  # fmt: skip
def test_patterns_that_match_nothing_get_a_suggestion(key, given):
    text = f"MODEL.PRUNING.{key} pattern 'bakbone.*' matches no module; did you mean 'backbone.*'?"
    assert text_of(amount=0.3, **given) == text


def test_a_pattern_like_nothing_gets_no_suggestion():
    text = "MODEL.PRUNING.PROTECT pattern 'xyz' matches no module"
    assert text_of(amount=0.3, protect=("xyz",)) == text


def test_amounts_out_of_reach_say_what_can_be_had():
    text = text_of(amount=0.9, protect=("backbone.1.*",))
    start = "AMOUNT 0.9 of macs can't be reached: at most 0."
    assert text.startswith(start)
    assert text.endswith(" with MAX_RATIO 0.75 and the protected layers")
    most = float(text[len(start) - 2 :].split()[0])
    assert detector(amount=most, protect=("backbone.1.*",)).reached == pytest.approx(most, abs=0.011)


def test_per_cost_takes_the_least_error_per_cost_and_looks_past_a_single_dear_step():
    """Two groups of one shape: where one unit is dear but those after it are free, a longer step pays."""
    model = lively(Chain())
    groups = [g for g in find_groups(model, TraceInput(model, images())) if not g.fixed]
    costs = measure_model(model, TraceInput(model, images()))
    request = Request(0.1, "channels", allocation="per_cost")
    limits = limits_of(groups, request, [name for name, _ in model.named_modules()])
    rankings = [by_score(np.full(group.units, 2.0)) for group in groups]
    dear = np.array([3.0, *[0.0] * (groups[0].units - 1)])
    rankings[0] = Ranking(np.arange(groups[0].units), dear)
    decided = plan(groups, rankings, limits, costs, request)
    gone = [group.units - len(kept) for group, kept in zip(groups, decided.kept, strict=True)]
    assert gone[0] > 1 and sum(gone[1:]) == 0
