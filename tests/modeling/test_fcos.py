"""The proposal generator and the one-stage detector around it."""

from __future__ import annotations

import pytest
import torch

from d2prune.errors import PruneError
from tests.each import each
from tests.modeling.small_models import backward, build, eager, training_batch

FCOS_LOSSES = {"loss_fcos_cls", "loss_fcos_loc", "loss_fcos_ctr"}


def detector(*pairs):
    return build(*pairs, arch="OneStageDetector")


def test_detector_trains_and_detects():
    model = detector("MODEL.FCOS.USE_SCALE", True)
    batch = training_batch()
    assert set(backward(model, batch)) == FCOS_LOSSES
    assert all(p.grad is not None for p in each(p for p in model.parameters() if p.requires_grad))
    with torch.no_grad():
        results = eager(model).eval()(batch)
    assert [r["instances"].image_size for r in results] == [(96, 128), (80, 112)]
    assert not results[0]["instances"].has("top_feat")


def test_iou_quality_changes_one_loss():
    losses = backward(detector("MODEL.FCOS.BOX_QUALITY", "iou"), training_batch())
    assert set(losses) == {"loss_fcos_cls", "loss_fcos_loc", "loss_fcos_iou"}


def test_training_without_ground_truth_is_an_error():
    batch = [{"image": item["image"]} for item in training_batch()]
    with pytest.raises(PruneError, match="instances"):
        detector().train()(batch)


def test_classes_the_model_lacks_are_an_error():
    batch = training_batch()
    batch[0]["instances"].gt_classes[1] = 5
    with pytest.raises(PruneError, match="class 5; expected 0 to 4, or a larger MODEL.FCOS.NUM"):
        detector().train()(batch)


def test_training_can_yield_proposals_and_box_features():
    model = detector("MODEL.FCOS.YIELD_PROPOSAL", True, "MODEL.FCOS.YIELD_BOX_FEATURES", True)
    eager(model).train()
    seen = []
    model.proposal_generator.register_forward_hook(lambda *args: seen.append(args[2][0]))
    model(training_batch())
    assert list(seen[0]["features"]) == ["p3", "p4", "p5", "p6", "p7"]
    assert seen[0]["features"]["p3"].shape[:2] == (2, 32)
    assert len(seen[0]["proposals"]) == 2 and len(seen[0]["proposals"][0]) > 0
    assert not seen[0]["proposals"][0].scores.requires_grad


@pytest.mark.parametrize("key", ["LOC_LOSS_TYPE", "LOSS_NORMALIZER_CLS", "BOX_QUALITY"])
def test_unknown_choices_are_named(key):
    with pytest.raises(PruneError, match=f"MODEL.FCOS.{key} is 'foo'; expected one of: "):
        detector(f"MODEL.FCOS.{key}", "foo")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("IN_FEATURES", ["p3", "p4", "p5", "p6", "p8"]),
        ("FPN_STRIDES", [4, 8, 16, 32, 64]),
        ("SIZES_OF_INTEREST", [64, 128]),
    ],
)
def test_levels_that_do_not_fit_are_named(key, value):
    with pytest.raises(PruneError, match=f"MODEL.FCOS.{key}"):
        detector(f"MODEL.FCOS.{key}", value)
