"""BlendMask whole: modes, empty images, copies, precision, devices."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from detectron2.structures import PolygonMasks

from d2prune.errors import PruneError
from d2prune.modeling import basis_sem_from_instances
from tests.each import each
from tests.modeling.small_models import LEVELS_550, PANOPTIC, RT, backward, build, eager, training_batch

LOSSES = {"loss_basis_sem", "loss_mask", "loss_fcos_cls", "loss_fcos_loc", "loss_fcos_ctr"}
ODD = (
    "MODEL.BLENDMASK.ATTN_SIZE", 7,
    "MODEL.BLENDMASK.BOTTOM_RESOLUTION", 33,
    "MODEL.BASIS_MODULE.NUM_BASES", 3,
    "MODEL.FCOS.USE_SCALE", True,
)  # fmt: skip
BN_HEAD = ("MODEL.FCOS.NORM", "BN", *RT)
SYNC = ("MODEL.FCOS.NORM", "SyncBN", "MODEL.RESNETS.NORM", "SyncBN", *RT)


def missing_gradients(model):
    return [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]


def detections(model, batch):
    with torch.no_grad():
        return [r["instances"] for r in model.eval()(batch)]


def same(one, two):
    return all(
        torch.equal(a.scores, b.scores) and torch.equal(a.pred_masks, b.pred_masks)
        for a, b in zip(one, two, strict=True)
    )


@pytest.mark.parametrize("pairs", [(), ODD, LEVELS_550, RT, BN_HEAD, SYNC])
def test_every_family_trains_and_detects(pairs):
    model, batch = build(*pairs), training_batch()
    losses = backward(model, batch)
    assert set(losses) == LOSSES and all(v.isfinite() for v in each(losses.values()))
    assert missing_gradients(model) == []
    found = detections(eager(model), [{**batch[0], "height": 60, "width": 80}, batch[1]])
    assert [f.pred_masks.shape[1:] for f in found] == [(60, 80), (80, 112)]
    assert len(found[0]) > 0 and found[0].pred_masks.dtype == torch.bool


@pytest.mark.parametrize("empty", [(0,), (1,), (0, 1)])
@pytest.mark.parametrize("pairs", [(), ODD, BN_HEAD])
def test_images_without_instances_still_reach_every_parameter(empty, pairs):
    model = build(*pairs)
    losses = backward(model, training_batch(empty))
    assert set(losses) == LOSSES and all(v.isfinite() for v in each(losses.values()))
    assert missing_gradients(model) == []


def test_mode_follows_training_alone():
    model, batch = eager(build()), training_batch()
    assert same(detections(model, batch), detections(model, [{"image": b["image"]} for b in batch]))
    with pytest.raises(PruneError, match="'instances'.*model.eval"):
        model.train()([{"image": b["image"]} for b in batch])


def test_basis_sem_is_derived_where_absent():
    model, batch = build(), training_batch()
    derived = model.train()(batch)["loss_basis_sem"]
    for item in batch:
        size = tuple(item["image"].shape[-2:])
        item["basis_sem"] = basis_sem_from_instances(item["instances"], size)
    torch.testing.assert_close(model(batch)["loss_basis_sem"], derived)
    batch[0]["basis_sem"] = torch.full_like(batch[0]["basis_sem"], 3)
    assert model(batch)["loss_basis_sem"] != derived


def test_loss_off_needs_no_semantic_map_and_detects_the_same():
    on, off = eager(build()), build("MODEL.BASIS_MODULE.LOSS_ON", False)
    kept = {k: v for k, v in on.state_dict().items() if "seg_head" not in k}
    off.load_state_dict(kept, strict=True)
    batch = training_batch()
    assert same(detections(on, batch), detections(off, batch))
    assert set(backward(off, batch)) == LOSSES - {"loss_basis_sem"}
    assert missing_gradients(off) == []


def test_polygons_and_bitmasks_give_nearly_one_loss():
    model, batch = build("MODEL.BASIS_MODULE.LOSS_ON", False), training_batch()
    bits = model.train()(batch)["loss_mask"]
    for item in batch:
        item["instances"].gt_masks = PolygonMasks(
            [
                [[x0, y0, x1, y0, x1, y1, x0, y1]]
                for x0, y0, x1, y1 in item["instances"].gt_boxes.tensor.double().tolist()
            ]
        )
    torch.testing.assert_close(model(batch)["loss_mask"], bits, rtol=0.05, atol=0)


def test_instance_weight_scales_the_mask_loss():
    model, batch = build(), training_batch()
    one = model.train()(batch)
    model.instance_loss_weight = 2.0
    two = model(batch)
    torch.testing.assert_close(two["loss_mask"], 2 * one["loss_mask"])
    torch.testing.assert_close(two["loss_fcos_loc"], one["loss_fcos_loc"])


def test_nothing_found_keeps_the_output_shape():
    model = build("MODEL.FCOS.INFERENCE_TH_TEST", 1.0)
    found = detections(model, training_batch())
    assert [f.pred_masks.shape for f in found] == [(0, 96, 128), (0, 80, 112)]
    assert found[0].pred_masks.dtype == torch.bool


def test_nms_can_be_switched_off():
    batch = training_batch()
    model = eager(build("MODEL.FCOS.NMS_TH", 0.0, "MODEL.FCOS.POST_NMS_TOPK_TEST", 50))
    assert len(detections(model, batch)[0]) > 0


def test_visualize_adds_the_bases():
    model = build("MODEL.BLENDMASK.VISUALIZE", True).eval()
    with torch.no_grad():
        results = model(training_batch())
    assert [r["bases"].shape for r in results] == [(4, 24, 32)] * 2


def test_iou_quality_is_refused_at_build_time():
    with pytest.raises(PruneError, match="MODEL.FCOS.BOX_QUALITY is 'iou'"):
        build("MODEL.FCOS.BOX_QUALITY", "iou")


def test_panoptic_module_learns_and_predicts():
    model, batch = build(*PANOPTIC), training_batch()
    assert [n for n, _ in model.named_children()][:5] == [
        "backbone",
        "proposal_generator",
        "basis_module",
        "panoptic_module",
        "top_layer",
    ]
    with pytest.raises(PruneError, match="MODEL.PANOPTIC_FPN.COMBINE.ENABLED"):
        model.train()(batch)
    for item in batch:
        item["sem_seg"] = torch.randint(0, 3, item["image"].shape[-2:])
    assert set(backward(model, batch)) == LOSSES | {"loss_sem_seg"}
    assert missing_gradients(model) == []
    with torch.no_grad():
        result = eager(model).eval()(batch)[1]
    assert result["sem_seg"].shape == (3, 80, 112)
    assert result["panoptic_seg"][0].shape == (80, 112)


def test_whole_model_survives_saving_and_copying():
    model, batch = eager(build(*ODD)), training_batch()
    before = detections(model, batch)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    assert same(before, detections(torch.load(file, weights_only=False), batch))
    assert same(before, detections(copy.deepcopy(model), batch))


def test_pixel_statistics_move_but_are_not_saved():
    model = build()
    assert not [k for k in model.state_dict() if "pixel" in k]
    assert model.double().pixel_mean.dtype == torch.float64
    assert model.to("meta").device.type == "meta"


def test_double_agrees_with_float():
    model, batch = eager(build()), training_batch()
    single = model.eval().backbone(model.preprocess_image(batch).tensor)
    model.double()
    double = model.backbone(model.preprocess_image(batch).tensor)
    assert all(f.dtype == torch.float64 for f in each(double.values()))
    torch.testing.assert_close(single["p3"].double(), double["p3"], rtol=1e-3, atol=1e-3)
    head = model.proposal_generator.fcos_head(list(double.values()), model.top_layer)
    bases, _ = model.basis_module(double)
    assert {t.dtype for maps in head for t in maps} == {bases["bases"][0].dtype} == {torch.float64}
    assert len(detections(model, batch)[0]) > 0


def test_dense_part_runs_on_meta():
    model = build(*ODD).to("meta").eval()
    features = model.backbone(torch.empty(2, 3, 64, 96, device="meta"))
    outputs = model.proposal_generator.fcos_head(list(features.values()), model.top_layer)
    bases, _ = model.basis_module(features)
    assert outputs[3][0].shape == (2, 3 * 49, 8, 12) and bases["bases"][0].is_meta
    assert model.basis_module.seg_head(features["p3"]).shape == (2, 6, 8, 12)


def test_loss_keys_come_in_the_documented_order():
    names = list(build().train()(training_batch()))
    assert names[:2] == ["loss_basis_sem", "loss_mask"]
