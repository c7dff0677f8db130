"""A pruned checkpoint fits its model, or it is refused before anything is loaded."""

from __future__ import annotations

import copy
import re

import pytest
import torch
from torch import nn

from d2prune.checkpoint import PruningCheckpointer, read_checkpoint
from d2prune.checkpoint import load as load_pruned
from d2prune.errors import PruneError
from d2prune.modeling.unfuse import thaw
from d2prune.rebuild import rebuild
from tests.checkpoint.loading import load, untouched
from tests.each import each
from tests.tiny_blendmask import detect, equal, snapshot, tiny_model, tiny_prune, train_step

LOSS = "MODEL.BASIS_MODULE.LOSS_ON"
KEY = "top_layer.bias"


def changed(saved, path, change):
    data = read_checkpoint(saved)
    data["model"] = dict(data["model"])
    change(data)
    torch.save(data, path)
    return path


@pytest.mark.parametrize(
    ("what", "change"),
    [
        ("missing", lambda weights: weights.pop(KEY)),
        ("unexpected", lambda weights: weights.update(more=torch.ones(1))),
        ("misshapen", lambda weights: weights.update({KEY: torch.ones(3)})),
        ("all", lambda weights: [weights.pop(key) for key in list(weights)]),
        ("renamed", lambda weights: weights.update({KEY + "s": weights.pop(KEY)})),
    ],
)
def test_every_key_must_fit(saved, result, tmp_path, what, change):
    path = changed(saved, tmp_path / "x.pth", lambda data: change(data["model"]))
    untouched(rebuild(tiny_model(seed=1), result.spec), path, "does not fit the pruned BlendMask")


def test_weights_without_a_spec_are_refused(saved, result, tmp_path):
    PruningCheckpointer(tiny_model(), str(tmp_path)).save("x")
    untouched(
        rebuild(tiny_model(seed=1), result.spec),
        tmp_path / "x.pth",
        re.escape(
            f"'{tmp_path / 'x.pth'}' holds no pruning spec: prune it first with MODEL.PRUNE True, or "
            "train it with MODEL.FINETUNE False"
        ),
    )


def test_a_pruned_file_is_not_half_loaded_into_an_unpruned_model(saved):
    untouched(
        tiny_model(),
        saved,
        re.escape(
            f"'{saved}' is a pruned checkpoint (spec version 2, base BlendMask); the model to load "
            "is an unpruned BlendMask"
        ),
    )


def test_another_class_is_named(saved):
    other = tiny_model("MODEL.META_ARCHITECTURE", "OneStageDetector")
    before = snapshot(other)
    expected = re.escape(
        f"'{saved}' is a pruned checkpoint (spec version 2, base BlendMask); the model to load is an "
        "unpruned OneStageDetector"
    )
    untouched(other, saved, expected)
    with pytest.raises(PruneError, match=expected):
        load_pruned(saved, other)
    assert equal(snapshot(other), before)


def test_a_model_pruned_differently_is_refused(saved):
    other = tiny_prune(tiny_model(), 0.3, verify=False).model
    untouched(other, saved, "the model to load is a BlendMask pruned differently")


def test_a_file_without_a_spec_is_refused_by_load(tmp_path):
    torch.save({"model": tiny_model().state_dict()}, tmp_path / "x.pth")
    with pytest.raises(PruneError, match="x.pth' holds no pruning spec: prune it first"):
        load_pruned(tmp_path / "x.pth", tiny_model())


def test_loss_on_may_be_turned_off(saved, result, log):
    model = rebuild(tiny_model(LOSS, False, seed=1), result.spec)
    load(model, saved)
    assert "keys dropped: basis_module.seg_head." in log.text and "added" not in log.text
    assert equal(detect(model), detect(result.model)) and train_step(model) == (True, False)


def test_loss_on_may_be_turned_on(tmp_path, log):
    result = tiny_prune(tiny_model(LOSS, False))
    PruningCheckpointer(result.model, str(tmp_path)).save("x")
    model = rebuild(tiny_model(LOSS, True, seed=1), result.spec)
    load(model, tmp_path / "x.pth")
    assert "added, with fresh values: basis_module.seg_head." in log.text
    assert "dropped" not in log.text
    assert equal(detect(model), detect(result.model)) and train_step(model) == (True, True)


@pytest.mark.parametrize("first", [True, False])
def test_a_switched_model_saves_what_loads_again(tmp_path, first):
    result = tiny_prune(tiny_model(LOSS, first))
    switched = rebuild(tiny_model(LOSS, not first, seed=1), result.spec)
    PruningCheckpointer(switched, str(tmp_path)).save("x")
    for now in (not first, first):
        again = load_pruned(tmp_path / "x.pth", tiny_model(LOSS, now, seed=2))
        assert equal(detect(again), detect(switched)) and train_step(again)[0]


@pytest.mark.parametrize("first", [True, False])
def test_a_switched_model_can_be_pruned_again(tmp_path, first):
    cut = {"backbone.fpn_output*": 0.25}  # what the branch reads
    once = tiny_prune(tiny_model(LOSS, first), 0.3, ratios=cut)
    twice = tiny_prune(rebuild(tiny_model(LOSS, not first, seed=1), once.spec), 0.3, ratios=cut)
    assert twice.model.backbone.fpn_output3.out_channels == 18
    PruningCheckpointer(twice.model, str(tmp_path)).save("x")
    for now in (not first, first):
        again = load_pruned(tmp_path / "x.pth", tiny_model(LOSS, now, seed=2))
        assert equal(detect(again), detect(twice.model)) and train_step(again)[0]


def test_only_the_branch_of_the_switch_is_lenient(saved, result, tmp_path):
    def lose(data):
        for key in [k for k in data["model"] if k.startswith("basis_module.refine.0")]:
            del data["model"][key]

    path = changed(saved, tmp_path / "x.pth", lose)
    untouched(rebuild(tiny_model(LOSS, False), result.spec), path, "basis_module.refine.0")


@pytest.mark.parametrize("thawed_first", [True, False])
def test_frozen_norms_and_batch_norms_exchange_weights(tmp_path, log, thawed_first):
    result = tiny_prune(tiny_model("MODEL.RESNETS.NORM", "FrozenBN"))
    source = copy.deepcopy(result.model)
    target = rebuild(tiny_model("MODEL.RESNETS.NORM", "FrozenBN", seed=1), result.spec)
    assert thaw(source if thawed_first else target)
    PruningCheckpointer(source, str(tmp_path)).save("x")
    load(target, tmp_path / "x.pth")
    assert ("dropped" if thawed_first else "added") in log.text and "num_batches_tracked" in log.text
    here, there = detect(source), detect(target)
    assert torch.equal(here["pred_classes"], there["pred_classes"])
    assert torch.allclose(here["pred_boxes"], there["pred_boxes"], atol=1e-3)
    kept = {k: v for k, v in snapshot(source).items() if k in snapshot(target)}
    assert all(torch.equal(snapshot(target)[k], v) for k, v in each(kept.items()))
    assert any(isinstance(m, nn.BatchNorm2d) for m in target.modules())
