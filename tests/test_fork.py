"""What the patches call, on d2prune's own BlendMask: nothing happens that was not asked for."""

from __future__ import annotations

import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from torch import nn

import d2prune
from d2prune import fork
from d2prune.adapters import TraceInput
from d2prune.errors import PruneError
from d2prune.rebuild import spec_of_model
from tests.each import each
from tests.tiny_blendmask import SIDE, snapshot, tiny_cfg, tiny_model, tiny_prune


@pytest.fixture(scope="module")
def result():
    return tiny_prune(tiny_model())


@pytest.fixture(scope="module")
def saved(result, tmp_path_factory):
    path = tmp_path_factory.mktemp("fork") / "model_pruned.pth"
    d2prune.save(result, path)
    return str(path)


@pytest.fixture
def unpruned(tmp_path):
    path = tmp_path / "unpruned.pth"
    torch.save({"model": {}}, path)
    return str(path)


def fitted(*pairs):
    model = tiny_model()
    fork.fit_to_weights(model, tiny_cfg(*pairs))
    return model


@pytest.mark.parametrize("finetune", [False, True])
def test_a_pruned_file_gives_its_widths(result, saved, finetune):
    model = fitted("MODEL.WEIGHTS", saved, "MODEL.FINETUNE", finetune)
    assert spec_of_model(model) == result.spec
    shapes = [{name: tensor.shape for name, tensor in snapshot(m).items()} for m in (model, result.model)]
    assert shapes[0] == shapes[1]
    fork.fit_to_weights(model, tiny_cfg("MODEL.WEIGHTS", saved))  # by Detectron2's patch and AdelaiDet's


def test_a_resized_model_loads_as_a_fresh_one_does(result, saved):
    loaded = d2prune.load(saved, fitted("MODEL.WEIGHTS", saved))
    want, got = snapshot(result.model), snapshot(loaded)
    assert all(torch.equal(want[name], got[name]) for name in each(want))


UNTOUCHED = {
    "no weights": ("MODEL.WEIGHTS", ""),
    "not here": ("MODEL.WEIGHTS", "gone.pth"),
    "elsewhere": ("MODEL.WEIGHTS", "https://nowhere.invalid/x.pth", "MODEL.FINETUNE", True),
    "a base": ("MODEL.PRUNING.BASE", "BlendMask"),
    "a struct": ("MODEL.PRUNING.TRUST_STRUCT", True, "MODEL.FINETUNE", True),
    "both modes": ("MODEL.PRUNE", True, "MODEL.FINETUNE", True),
}


@pytest.mark.parametrize("case", UNTOUCHED)
def test_else_the_model_stays(case, saved, unpruned):
    pairs = UNTOUCHED[case]
    file = unpruned if case == "both modes" else saved
    model = fitted(*(pairs if "MODEL.WEIGHTS" in pairs else ("MODEL.WEIGHTS", file, *pairs)))
    assert spec_of_model(model) is None


def test_configs_without_the_keys_are_taken(saved):
    cfg, model = tiny_cfg("MODEL.WEIGHTS", saved), tiny_model()
    for key in ("PRUNE", "FINETUNE", "PRUNING"):
        del cfg.MODEL[key]
    fork.fit_to_weights(model, cfg)
    assert spec_of_model(model) is not None


def test_finetune_insists_on_a_pruned_file(unpruned):
    with pytest.raises(PruneError, match="unpruned.pth' holds no pruning spec"):
        fitted("MODEL.WEIGHTS", unpruned, "MODEL.FINETUNE", True)
    with pytest.raises(PruneError, match="MODEL.FINETUNE needs MODEL.WEIGHTS"):
        fitted("MODEL.FINETUNE", True)
    with pytest.raises(PruneError, match="gone.pth"):
        fitted("MODEL.WEIGHTS", "gone.pth", "MODEL.FINETUNE", True)


def test_another_models_file_is_refused(saved):
    with pytest.raises(PruneError, match="base BlendMask"):
        fork.fit_to_weights(nn.Linear(1, 1), tiny_cfg("MODEL.WEIGHTS", saved))


def test_a_checkpointer_knows_pruned_models(result, tmp_path):
    class Own(DetectionCheckpointer):
        def own(self):
            return "own"

    checkpointer = Own(result.model, str(tmp_path))
    fork.know_pruned_models(checkpointer)
    fork.know_pruned_models(checkpointer)
    checkpointer.save("x")
    assert isinstance(checkpointer, d2prune.PruningCheckpointer) and checkpointer.own() == "own"
    assert {"model", "struct", "prune_spec"} <= torch.load(tmp_path / "x.pth", weights_only=False).keys()


def test_dense_outputs_are_those_that_are_proved():
    model, images = tiny_model(), torch.rand(1, 3, SIDE, SIDE) * 255
    want, got = TraceInput(model).dense(model, images), fork.dense_outputs(model, images)
    assert want.keys() == got.keys() and all(torch.equal(want[name], got[name]) for name in each(want))
    with pytest.raises(PruneError, match="no adapter for Linear"):
        fork.dense_outputs(nn.Linear(1, 1), images)
