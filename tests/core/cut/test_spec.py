"""Specs outlive the trace: as text, on fresh models, composed, and refused where they don't fit."""

from __future__ import annotations

import copy
import json
import pickle

import pytest
import torch
from torch import nn

from d2prune.core.cut.spec import PruneSpec
from d2prune.errors import PruneError
from d2prune.pruning import prune
from d2prune.rebuild import rebuild, spec_of_model
from tests.core.nets import CONVOLUTIONAL, Chain, Dense, Grouped, Mobile, Residual, group_norm, images, lively
from tests.each import each


def pruned(make=Residual, **request):
    return prune(lively(make()), **{"amount": 0.4, "example_inputs": images(), **request})


def same_outputs(one, two):
    with torch.no_grad():
        a, b = one.eval()(images()), two.eval()(images())
    pairs = zip(*(list(x.values()) if isinstance(x, dict) else x for x in (a, b)), strict=True)
    return all(torch.equal(x, y) for x, y in pairs)


@pytest.mark.parametrize("name", CONVOLUTIONAL)
def test_text_and_back_and_onto_a_fresh_model(name):
    result = pruned(CONVOLUTIONAL[name])
    spec = PruneSpec.from_json(result.spec.to_json())
    assert spec == result.spec and spec == PruneSpec.from_dict(json.loads(json.dumps(spec.to_dict())))
    fresh = rebuild(CONVOLUTIONAL[name](), spec)
    fresh.load_state_dict(result.model.state_dict(), strict=True)
    assert same_outputs(fresh, result.model)


def test_rebuilding_keeps_the_weights_of_kept_channels():
    model = lively(Residual())
    result = prune(model, 0.4, example_inputs=images())
    again = rebuild(copy.deepcopy(model), result.spec)
    state = result.model.state_dict()
    assert all(torch.equal(state[k], v) for k, v in each(again.state_dict().items()))


def test_rebuilding_works_in_place_on_meta():
    result = pruned(Mobile)
    with torch.device("meta"):
        model = Mobile()
    weight = model.head.weight
    assert rebuild(model, result.spec) is model
    assert all(t.is_meta for t in each(model.state_dict().values())) and model.head.weight is not weight
    shapes = {k: v.shape for k, v in result.model.state_dict().items()}
    assert {k: v.shape for k, v in model.state_dict().items()} == shapes


def test_copies_keep_the_spec():
    model = pruned().model
    assert spec_of_model(model) is not None and spec_of_model(Residual()) is None
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert spec_of_model(twin) == spec_of_model(model) and same_outputs(twin, model)


@pytest.mark.parametrize("make", [Residual, Grouped, Dense, Mobile, lambda: Chain(48, norm=group_norm(12))])
def test_pruning_twice_composes(make):
    first = pruned(make, amount=0.25)
    frozen = first.spec.to_json()
    second = prune(first.model, 0.25, example_inputs=images())
    assert second.proof.exact and second.before == first.after
    assert spec_of_model(first.model).to_json() == frozen
    spec = spec_of_model(second.model)
    assert spec == second.spec
    fresh = rebuild(make(), PruneSpec.from_json(spec.to_json()))
    fresh.load_state_dict(second.model.state_dict(), strict=True)
    assert same_outputs(fresh, second.model)


def intact(model, spec, match):
    before = {k: (v, v.clone()) for k, v in model.state_dict(keep_vars=True).items()}
    with pytest.raises(PruneError, match=match):
        rebuild(model, spec)
    after = model.state_dict(keep_vars=True)
    assert all(after[k] is v and torch.equal(v, old) for k, (v, old) in each(before.items()))
    assert spec_of_model(model) is None


def test_a_spec_of_another_class_is_refused():
    intact(Chain(), pruned().spec, "the pruning spec is of a Residual; the model is a Chain")


def test_a_spec_of_other_widths_is_refused():
    intact(Residual(24), pruned().spec, r"layer '\S+' has \d+ \w+ channels; the pruning spec was made")


def test_a_spec_of_other_layers_is_refused():
    model = Residual()
    model.shortcut = nn.Identity()
    intact(model, pruned().spec, "cuts layer 'shortcut\\S*', which this Residual does not have")


def test_a_misfit_in_the_last_layer_is_found_before_the_first_is_cut():
    model = Residual()
    model.head = nn.Conv2d(31, 4, 1)
    intact(model, pruned().spec, "layer 'head' has 31 input channels")


def test_a_pruned_model_is_not_rebuilt_again():
    result = pruned()
    with pytest.raises(PruneError, match="this Residual is pruned already"):
        rebuild(result.model, result.spec)


def broken(change):
    data = pruned().spec.to_dict()
    change(data, data["layers"]["stem.0"])
    return json.dumps(data)


def unsorted(data, row):
    row["out"]["kept"].reverse()


def doubled(data, row):
    row["out"]["kept"][1] = row["out"]["kept"][0]


def beyond(data, row):
    row["out"]["kept"][-1] = row["out"]["before"]


def negative(data, row):
    row["out"]["kept"][0] = -1


def emptied(data, row):
    row["out"]["kept"] = []


def worded(data, row):
    row["out"]["kept"] = "all"


def unsized(data, row):
    del row["out"]["before"]


def fractional(data, row):
    row["out"]["kept"][0] += 0.5


def miscounted(data, row):
    row["out"]["after"] += 1


def grouped_by_words(data, row):
    row["groups"] = "2"


def not_a_row(data, row):
    data["layers"]["stem.0"] = 3


def not_layers(data, row):
    data["layers"] = []


@pytest.mark.parametrize(
    "change",
    [
        unsorted,
        doubled,
        beyond,
        negative,
        emptied,
        worded,
        unsized,
        fractional,
        miscounted,
        grouped_by_words,
        not_a_row,
        not_layers,
    ],
)
def test_malformed_rows_are_refused(change):
    with pytest.raises(PruneError, match="^not a pruning spec: "):
        PruneSpec.from_json(broken(change))


@pytest.mark.parametrize("text", ["", "garbage", "3", "[]", "null", "{}", '{"version": 1}', "\x00"])
def test_garbage_is_refused(text):
    with pytest.raises(PruneError, match="^not a pruning spec"):
        PruneSpec.from_json(text)


@pytest.mark.parametrize("version", [0, 3, "1", None])
def test_other_versions_are_refused(version):
    with pytest.raises(PruneError, match="pruning spec version is .*; this d2prune reads versions 1 and 2"):
        PruneSpec.from_json(json.dumps({"version": version, "base": "X", "layers": {}}))


def test_text_has_one_layer_a_line():
    spec = pruned().spec
    assert (
        len(spec.to_json().splitlines()) == len(spec.layers) + 5
    )  # version, base, who wrote it, and the ends
