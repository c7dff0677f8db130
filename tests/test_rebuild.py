"""Rebuilding by a spec: no tracing, no weights lost, on any device, and only on the model it was made for."""

from __future__ import annotations

import copy

import pytest
import torch
from detectron2.modeling import build_model

import d2prune
from d2prune.adapters import TraceInput
from d2prune.core.cut.spec import PruneSpec
from d2prune.errors import PruneError
from d2prune.rebuild import prune_further, spec_of_model
from tests.each import each
from tests.tiny_blendmask import SIDE, equal, snapshot, tiny_cfg, tiny_model, tiny_prune

LOSS = "MODEL.BASIS_MODULE.LOSS_ON"


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def original():
    return tiny_model()


@pytest.fixture(scope="module")
def result(original):
    return tiny_prune(original)


def shapes(model):
    return {name: tensor.shape for name, tensor in model.state_dict().items()}


def test_kept_channels_keep_their_weights(original, result):
    rebuilt = d2prune.rebuild(copy.deepcopy(original), result.spec)
    assert equal(snapshot(rebuilt), snapshot(result.model)) and rebuilt.prune_spec == result.spec


def test_it_is_in_place_and_keeps_the_mode(original, result):
    model = copy.deepcopy(original).train()
    assert d2prune.rebuild(model, result.spec) is model and model.training


def test_a_spec_that_went_through_json_rebuilds_alike(original, result):
    spec = PruneSpec.from_json(result.spec.to_json())
    assert spec == result.spec
    assert shapes(d2prune.rebuild(copy.deepcopy(original), spec)) == shapes(result.model)


def test_a_model_on_meta_is_rebuilt_and_runs(result):
    with torch.device("meta"):
        model = build_model(tiny_cfg("MODEL.DEVICE", "meta"))
    trace_input = TraceInput(model, count_size=(SIDE, SIDE))
    wide = {name: tensor.shape for name, tensor in trace_input.inference(model.eval()).items()}
    d2prune.rebuild(model, result.spec)
    assert {tensor.device.type for tensor in model.state_dict().values()} == {"meta"}
    outputs = trace_input.inference(model)
    assert {name: tensor.shape for name, tensor in outputs.items()} == wide
    assert all(tensor.is_meta for tensor in each(outputs.values()))
    assert shapes(model) == shapes(result.model)


def test_nothing_random_is_drawn(original, result):
    model, before = copy.deepcopy(original), torch.get_rng_state()
    d2prune.rebuild(model, result.spec)
    assert torch.equal(torch.get_rng_state(), before)


def test_frozen_parameters_stay_frozen(original, result):
    model = copy.deepcopy(original)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("res2" not in name)
    d2prune.rebuild(model, result.spec)
    assert all(p.requires_grad == ("res2" not in n) for n, p in model.named_parameters())


def test_another_class_is_refused(result):
    with pytest.raises(PruneError, match="spec is of a BlendMask; the model is a OneStageDetector"):
        d2prune.rebuild(tiny_model("MODEL.META_ARCHITECTURE", "OneStageDetector"), result.spec)


def test_a_pruned_model_is_refused(result):
    with pytest.raises(PruneError, match="pruned already"):
        d2prune.rebuild(copy.deepcopy(result.model), result.spec)


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        (("MODEL.FPN.OUT_CHANNELS", 64), "has 64 .* channels; the pruning spec was made for 32"),
        (("MODEL.FCOS.NUM_CLS_CONVS", 0), "cuts layer '.*cls_tower.0', which this BlendMask does not"),
    ],
)
def test_another_configuration_is_refused_and_left_as_it_was(result, pairs, message):
    model = tiny_model(*pairs)
    before = snapshot(model)
    with pytest.raises(PruneError, match=message):
        d2prune.rebuild(model, result.spec)
    assert equal(snapshot(model), before) and spec_of_model(model) is None


def test_a_missing_training_branch_is_no_error(result):
    without = d2prune.rebuild(tiny_model(LOSS, False), result.spec)
    expected = {n: s for n, s in shapes(result.model).items() if "seg_head" not in n}
    assert shapes(without) == expected


def test_a_new_training_branch_reads_what_is_left():
    result = tiny_prune(tiny_model(LOSS, False), verify=False)
    model = d2prune.rebuild(tiny_model(LOSS, True), result.spec)
    left = result.model.backbone.fpn_output3.out_channels
    assert model.basis_module.seg_head[0].in_channels == left < 32


def test_integers_that_repeat_a_width_are_brought_up_to_date(original, result):
    image = torch.rand(1, 3, SIDE, SIDE, device=original.device)
    for model in (result.model, d2prune.rebuild(copy.deepcopy(original), result.spec)):
        for backbone in (model.backbone, model.backbone.bottom_up):
            told = {name: shape.channels for name, shape in backbone.output_shape().items()}
            with torch.no_grad():
                assert told == {name: x.shape[1] for name, x in backbone(image).items()}


def test_two_prunes_make_one_spec(original, result):
    step = tiny_prune(result.model, 0.3, verify=False)
    assert step.step != step.spec and spec_of_model(step.model) == step.spec
    once = d2prune.rebuild(copy.deepcopy(original), step.spec)
    assert equal(snapshot(once), snapshot(step.model))
    assert equal(snapshot(prune_further(copy.deepcopy(result.model), step.step)), snapshot(step.model))
