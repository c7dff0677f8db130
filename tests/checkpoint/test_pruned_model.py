"""META_ARCHITECTURE "PrunedModel", and that the file decides what is built."""

from __future__ import annotations

import pytest
import torch
from detectron2.modeling import build_model as detectron2_build

from d2prune.checkpoint import PruningCheckpointer, build_from_cfg, build_model, spec_of_file
from d2prune.engine import outputs
from d2prune.errors import PruneError
from d2prune.rebuild import spec_of_model
from tests.tiny_blendmask import detect, equal, tiny_cfg, tiny_model, tiny_prune


@pytest.fixture
def pruned_cfg(saved, result, tmp_path):
    """pruned.yaml, read."""
    (tmp_path / outputs.SPEC_FILE).write_text(result.spec.to_json())
    cfg = tiny_cfg()
    cfg.merge_from_file(outputs.write_pruned_config(cfg, str(tmp_path), str(saved)))
    return cfg


def test_stock_build_model_gives_the_pruned_widths(pruned_cfg, result):
    model = detectron2_build(pruned_cfg)
    assert type(model) is type(result.model) and spec_of_model(model) == result.spec
    shapes = {name: tensor.shape for name, tensor in result.model.state_dict().items()}
    assert {name: tensor.shape for name, tensor in model.state_dict().items()} == shapes


def test_the_config_is_complete_and_asks_for_no_mode(pruned_cfg):
    assert pruned_cfg.MODEL.META_ARCHITECTURE == "PrunedModel"
    assert pruned_cfg.MODEL.PRUNING.BASE == "BlendMask"
    assert not pruned_cfg.MODEL.PRUNE and not pruned_cfg.MODEL.FINETUNE
    assert equal(detect(build_from_cfg(pruned_cfg)), detect(build_from_cfg(pruned_cfg)))


def test_the_spec_may_come_from_the_weights(pruned_cfg, result):
    pruned_cfg.MODEL.PRUNING.SPEC = ""
    assert spec_of_model(detectron2_build(pruned_cfg)) == result.spec


def test_keys_that_a_patched_fork_adds_to_the_stock_config_are_filled(pruned_cfg, result, saved, tmp_path):
    pruned_cfg.MODEL.PRUNING.BASE = pruned_cfg.MODEL.PRUNING.SPEC = ""
    pruned_cfg.MODEL.WEIGHTS = str(tmp_path / saved.name)  # pruned.yaml lies beside it
    assert spec_of_model(detectron2_build(pruned_cfg)) == result.spec


@pytest.mark.parametrize("base", ["", "PrunedModel", "NoSuchModel"])
def test_an_unknown_base_is_named(pruned_cfg, base):
    pruned_cfg.MODEL.PRUNING.BASE = base
    with pytest.raises(PruneError, match=f"MODEL.PRUNING.BASE is '{base}'"):
        detectron2_build(pruned_cfg)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"version": 1}', '{"version": 3, "base": "A", "layers": {}}']
)
def test_a_damaged_spec_is_named(pruned_cfg, tmp_path, text):
    (tmp_path / outputs.SPEC_FILE).write_text(text)
    with pytest.raises(PruneError, match=f"MODEL.PRUNING.SPEC '{pruned_cfg.MODEL.PRUNING.SPEC}'"):
        detectron2_build(pruned_cfg)


def test_a_missing_spec_is_named(pruned_cfg, tmp_path):
    pruned_cfg.MODEL.PRUNING.SPEC = str(tmp_path / "gone.json")
    with pytest.raises(PruneError, match="gone.json' does not exist"):
        detectron2_build(pruned_cfg)
    pruned_cfg.MODEL.PRUNING.SPEC = pruned_cfg.MODEL.WEIGHTS = ""
    with pytest.raises(PruneError, match="needs MODEL.PRUNING.SPEC"):
        detectron2_build(pruned_cfg)


def test_a_spec_of_another_class_is_refused(pruned_cfg):
    pruned_cfg.MODEL.PRUNING.BASE = "OneStageDetector"
    with pytest.raises(PruneError, match="BlendMask.*OneStageDetector"):
        detectron2_build(pruned_cfg)


def test_a_spec_of_another_width_is_refused(pruned_cfg):
    pruned_cfg.MODEL.FPN.OUT_CHANNELS = 64
    with pytest.raises(PruneError, match="has 64 .* channels; the pruning spec was made for 32"):
        detectron2_build(pruned_cfg)


def test_spec_and_weights_of_different_prunes_are_refused(pruned_cfg, tmp_path):
    other = tiny_prune(tiny_model(), 0.3, verify=False)
    (tmp_path / outputs.SPEC_FILE).write_text(other.spec.to_json())
    with pytest.raises(PruneError, match="pruned differently"):
        build_from_cfg(pruned_cfg)


def test_the_file_decides(saved, result, tmp_path):
    torch.save({"model": tiny_model().state_dict()}, tmp_path / "x.pth")
    assert spec_of_model(build_model(tiny_cfg("MODEL.WEIGHTS", str(tmp_path / "x.pth")))) is None
    assert spec_of_model(build_model(tiny_cfg("MODEL.WEIGHTS", str(saved)))) == result.spec
    assert spec_of_model(build_model(tiny_cfg(), weights=str(saved))) == result.spec
    assert spec_of_model(build_model(tiny_cfg())) is None


def test_a_pruned_file_of_another_class_is_refused(saved):
    cfg = tiny_cfg("MODEL.WEIGHTS", str(saved), "MODEL.META_ARCHITECTURE", "OneStageDetector")
    with pytest.raises(PruneError, match="base BlendMask.*unpruned OneStageDetector"):
        build_model(cfg)


def test_a_wrong_path_is_named_before_anything_is_built(tmp_path):
    def build(cfg):
        raise AssertionError("built")

    with pytest.raises(PruneError, match="gone.pth' does not exist"):
        build_model(tiny_cfg(), str(tmp_path / "gone.pth"), build)


def test_a_pruned_model_pruned_again_is_one_prune(tmp_path, result):
    twice = tiny_prune(result.model, 0.3)
    assert twice.spec != result.spec and twice.proof.exact
    PruningCheckpointer(twice.model, str(tmp_path)).save("x")
    assert spec_of_file(str(tmp_path / "x.pth")) == twice.spec
    again = build_from_cfg(tiny_cfg("MODEL.WEIGHTS", str(tmp_path / "x.pth")))
    assert equal(detect(again), detect(twice.model))
