"""Interactive pruning: what is refused stays whole, what is given is what goes, and the proof holds."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import d2prune
from tests.core.nets import Chain, Residual, group_norm, images, lively
from tests.each import each

MODELS = {"chain": Chain, "groups": lambda: Chain(48, norm=group_norm(16)), "residual": Residual}


def pruned(ask, build=Chain, amount=0.4, **request):
    return d2prune.prune(lively(build()), amount, example_inputs=images(), interactive=ask, **request)


def whole(result):
    return {row.name for row in result.coverage if row.before == row.after}


@pytest.mark.parametrize("answer", [True, None])
def test_accepting_all_is_the_plan_itself(answer):
    asked = []

    def ask(proposal):
        asked.append(proposal)
        return answer

    model = lively(Chain())
    result, same = (d2prune.prune(model, 0.4, example_inputs=images(), interactive=a) for a in (ask, None))
    assert result.spec == same.spec and result.reached == same.reached
    assert [p.name for p in asked] == ["0.0", "1.0", "2.0"]
    for proposal in each(asked):
        before, after = proposal.widths[proposal.name, "out"]
        assert (before, after) == next(
            (r.before, r.after) for r in result.coverage if r.name == proposal.name
        )
        assert proposal.scores.shape == (proposal.group.units,)
        assert proposal.errors[0] == 0 and proposal.errors[-1] == pytest.approx(proposal.scores.sum())
        assert set(np.argsort(proposal.scores)[: len(proposal.remove)]) == set(proposal.remove)
        assert proposal.name in str(proposal) and f"{before} -> {after}" in str(proposal)


@pytest.mark.parametrize("refusal", [False, np.bool_(False), []])
def test_what_is_refused_stays_whole(refusal):
    result = pruned(lambda p: refusal if p.name == "1.0" else True)
    row = next(row for row in result.coverage if row.name == "1.0")
    assert row.before == row.after and row.status == "protected"
    assert row.reason == "protected by the answer of interactive="
    assert result.proof.exact and {"0.0", "2.0"}.isdisjoint(whole(result))
    assert 0 < result.reached < 0.4


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("target", ["macs", "channels"])
def test_given_indices_are_what_goes(name, target, tmp_path):
    first = []

    def ask(proposal):
        if first and proposal.name != first[0]:
            return False
        first[:] = [proposal.name]
        return torch.tensor([proposal.group.units - 1, 0])

    result = pruned(ask, MODELS[name], target=target)
    layer = lively(MODELS[name]()).get_submodule(first[0])
    step = layer.out_channels // (layer.out_channels if name != "groups" else 16)
    kept = result.spec.layers[first[0]].out
    assert kept == tuple(range(step, layer.out_channels - step))
    assert result.proof.exact and 0 < result.reached < 0.4
    d2prune.save(result, tmp_path / "p.pth")
    loaded, x = d2prune.load(tmp_path / "p.pth", MODELS[name]()).eval(), images()
    assert torch.equal(loaded(x), result.model.eval()(x))


def test_groups_without_a_plan_may_be_given_one():
    def ask(proposal):
        return [1, 2, 3] if proposal.name == "0.0" else False

    result = pruned(ask, ratios={"0.0": 0.0})
    assert result.model[0][0].out_channels == 21 and result.proof.exact


def test_protected_groups_are_not_asked_about():
    names = []
    pruned(lambda p: names.append(p.name), protect=("1.*",))
    assert names == ["0.0", "2.0"]


@pytest.mark.parametrize("answer", [[24], [-1], [0, 0], [0.5], range(24), "no", 3, {"a": 1}])
def test_wrong_indices_are_an_error(answer):
    with pytest.raises(d2prune.PruneError) as info:
        pruned(lambda p: answer)
    assert str(info.value) == (
        f"interactive= gave {answer!r} for 0.0; expected True, False or the units to remove: "
        "distinct integers from 0 to 23, not all of them"
    )


def test_refusing_everything_is_an_error():
    with pytest.raises(d2prune.PruneError, match="nothing was pruned: interactive= refused all"):
        pruned(lambda p: False)
