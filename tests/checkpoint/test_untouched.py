"""A file that can't be loaded leaves the model as it was, so that a good file loads afterwards."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import d2prune
from d2prune.checkpoint import PruningCheckpointer, read_checkpoint, read_spec
from d2prune.errors import PruneError
from d2prune.pruning import prune
from d2prune.rebuild import rebuild, spec_of_model
from tests.checkpoint.hostile import Reduce
from tests.checkpoint.loading import untouched
from tests.core.nets import Residual, images, lively
from tests.each import each


@pytest.fixture(scope="module")
def small():
    return prune(lively(Residual()), 0.4, example_inputs=images())


def intact(model, path, match):
    """d2prune.load fails in one line and changes nothing: values, tensors, classes, attributes."""
    before = {k: (v, v.clone()) for k, v in model.state_dict(keep_vars=True).items()}
    modules = [(type(m), {k: v for k, v in vars(m).items() if type(v) is int}) for m in model.modules()]
    with pytest.raises(PruneError, match=match) as caught:
        d2prune.load(path, model)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    after = model.state_dict(keep_vars=True)
    assert after.keys() == before.keys() and spec_of_model(model) is None
    assert all(after[k] is v and torch.equal(v, old) for k, (v, old) in each(before.items()))
    assert modules == [
        (type(m), {k: v for k, v in vars(m).items() if type(v) is int}) for m in model.modules()
    ]


def drop(data):
    data["model"].popitem()


def more(data):
    data["model"]["more"] = torch.ones(1)


def misshapen(data):
    data["model"]["head.bias"] = torch.ones(1, 1)


def boolean(data):
    data["model"]["head.bias"] = data["model"]["head.bias"].bool()


def endless(data):
    data["model"]["head.bias"] = data["model"]["head.bias"] / 0


def no_weights(data):
    data["model"] = {"head.bias": [1.0]}


def one_tensor(data):
    data["model"] = torch.ones(3)


def unlike(data):
    data["prune_spec"]["layers"]["head"]["in"]["before"] += 1


def scalar(data):
    data["prune_spec"]["layers"]["scale"] = {"out": {"before": 1, "after": 1, "kept": [0]}}


def grouped(data):
    data["prune_spec"]["layers"]["stem.0"]["groups"] = 7


def no_number(data):
    data["prune_spec"]["attributes"] = {"head": {"weight": [1, 2]}}


def no_rows(data):
    data["prune_spec"]["scales"] = {"scaled": [[0, 1, 2.0]]}


def no_code(data):
    data["prune_spec"]["calls"] = {
        "": [{"functions": ["forward"], "line": 1, "ordinal": 0, "text": "(" * 900, "numbers": [[0, 1]]}] * 2
    }


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (drop, "does not fit the pruned Residual: 1 keys are missing"),
        (more, "does not fit the pruned Residual: 1 keys"),
        (misshapen, "does not fit the pruned Residual: 1 keys .* head.bias"),
        (boolean, "holds torch.bool for 'head.bias'"),
        (endless, "holds NaN or infinity in 'head.bias'"),
        (no_weights, "holds no weights under 'model'"),
        (one_tensor, "holds no weights under 'model'"),
        (unlike, "layer 'head' has"),
        (scalar, "cuts layer 'scale', which this Residual does not have"),
        (grouped, "layer 'stem.0' would have None groups; the pruning spec has 7"),
        (no_number, "attribute weight of 'head' is a Parameter; the pruning spec was made for 1"),
        (no_rows, "its pruning spec does not fit this Residual"),
        (no_code, "its pruning spec does not fit this Residual|the pruning spec"),
    ],
)
def test_a_bad_file_changes_nothing_and_a_good_one_loads_then(small, tmp_path, change, match):
    d2prune.save(small, tmp_path / "good.pth")
    data = copy.deepcopy(read_checkpoint(tmp_path / "good.pth"))
    model = Residual()
    model.register_parameter("scale", nn.Parameter(torch.ones(())))
    model.scaled = nn.ParameterDict({"x": nn.Parameter(torch.ones(()))})
    rest = {name: tensor for name, tensor in model.state_dict().items() if name.startswith("scale")}
    data["model"] = {**data["model"], **rest}
    torch.save(data, tmp_path / "whole.pth")
    change(data)
    torch.save(data, tmp_path / "x.pth")
    intact(model, tmp_path / "x.pth", match)
    loaded = d2prune.load(tmp_path / "whole.pth", model)
    assert spec_of_model(loaded) == small.spec
    assert torch.equal(loaded.head.bias, small.model.head.bias)


@pytest.mark.parametrize("spec", ["None", "unknown", "text", "list"])
def test_a_spec_that_is_none_is_no_missing_spec(saved, result, tmp_path, spec):
    from tests.tiny_blendmask import tiny_model

    held = {"None": None, "unknown": Reduce(tmp_path / "ran"), "text": "spec", "list": []}[spec]
    for data in ({**read_checkpoint(saved), "prune_spec": held}, {"model": {}, "prune_spec": held}):
        torch.save(data, tmp_path / "x.pth")
        match = "x.pth': 'prune_spec' is a .*; expected a dict"
        with pytest.raises(PruneError, match=match):
            read_spec(tmp_path / "x.pth")
        for model in (tiny_model(), rebuild(tiny_model(seed=1), result.spec)):
            untouched(model, tmp_path / "x.pth", match)
        with pytest.raises(PruneError, match=match):
            d2prune.load(tmp_path / "x.pth", tiny_model())
    assert not (tmp_path / "ran").exists()


def test_a_malformed_spec_is_named_with_its_file(saved, tmp_path):
    data = read_checkpoint(saved)
    data["prune_spec"] = {**data["prune_spec"], "version": torch.ones(1)}
    torch.save(data, tmp_path / "x.pth")
    for read in (read_spec, lambda path: PruningCheckpointer(nn.Linear(1, 1)).load(str(path))):
        with pytest.raises(PruneError, match="x.pth': pruning spec version is a Tensor; this d2prune reads"):
            read(tmp_path / "x.pth")
