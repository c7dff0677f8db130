"""Selecting, decoding and suppressing detections."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from detectron2.structures import pairwise_iou

from d2prune.modeling.fcos.inference import FCOSInference
from d2prune.modeling.fcos.targets import locations_on_grid
from tests.each import each

STRIDES = (8, 16)
SELECT = FCOSInference(STRIDES, 0.05, True, 1000, 0.6, 100)
SIZE = (48, 64)


def dense(top=6):
    shapes = [(6, 8), (3, 4)]
    logits = [torch.randn(2, 5, *s) - 1 for s in shapes]
    distances = [torch.rand(2, 4, *s) * 3 for s in shapes]
    ctrness = [torch.randn(2, 1, *s) for s in shapes]
    tops = [torch.randn(2, top, *s) for s in shapes] if top else []
    points = [locations_on_grid(m, s) for m, s in zip(logits, STRIDES, strict=True)]
    return points, logits, distances, ctrness, tops


def run(select, parts):
    return select(*parts, [SIZE, SIZE])


@pytest.mark.parametrize("with_ctr", [True, False])
def test_every_pair_above_the_threshold_is_decoded(with_ctr):
    parts = dense()
    select = replace(SELECT, threshold_with_ctr=with_ctr, nms_threshold=0, post_nms_topk=0)
    for image, found in each(enumerate(run(select, parts))):
        count = 0
        for level, (points, logits, dists, ctr, tops) in each(enumerate(zip(*parts, strict=True))):
            cls = logits[image].sigmoid()
            score = cls * ctr[image].sigmoid()
            chosen = (score if with_ctr else cls) > 0.05
            count += int(chosen.sum())
            here = found[found.fpn_levels == level]
            for k in range(len(here)):
                x, y = here.locations[k].tolist()
                at = (int(y) // STRIDES[level], int(x) // STRIDES[level])
                c = int(here.pred_classes[k])
                assert chosen[c, at[0], at[1]]
                assert here.scores[k] ** 2 == pytest.approx(score[c, at[0], at[1]].item(), rel=1e-4)
                left, top, right, bottom = (dists[image][:, at[0], at[1]] * STRIDES[level]).tolist()
                box = here.pred_boxes.tensor[k].tolist()
                assert box == pytest.approx([x - left, y - top, x + right, y + bottom], abs=1e-4)
                assert torch.equal(here.top_feat[k], tops[image][:, at[0], at[1]])
            assert len(points) == cls[0].numel()
        assert count == len(found) > 0


def test_scores_fall_after_nms():
    for found in each(run(SELECT, dense())):
        assert (found.scores.diff() <= 0).all()
        assert found.image_size == SIZE


def test_topk_is_per_level_and_image():
    few = run(replace(SELECT, pre_nms_topk=3, nms_threshold=0), dense())
    assert all((f.fpn_levels == level).sum() == 3 for f in each(few) for level in (0, 1))


def test_post_topk_keeps_ties():
    parts = dense(top=0)
    for maps, value in ((parts[1], 2.0), (parts[3], 2.0)):
        for m in maps:
            m.fill_(value)
    tied = run(replace(SELECT, nms_threshold=0, post_nms_topk=4), parts)
    assert len(tied[0]) == 5 * (48 + 12)
    parts[1][0][0, 2, 1, 1] = 4.0
    best = run(replace(SELECT, nms_threshold=0, post_nms_topk=1), parts)[0]
    assert len(best) == 1 and best.pred_classes.item() == 2
    assert best.locations.tolist() == [[12.0, 12.0]]


def test_nms_removes_overlaps_of_one_class_only():
    parts = dense()
    kept, everything = run(SELECT, parts)[0], run(replace(SELECT, nms_threshold=0), parts)[0]
    assert len(kept) < len(run(replace(SELECT, nms_threshold=0, post_nms_topk=0), parts)[0])
    assert len(everything) == 100
    iou = pairwise_iou(kept.pred_boxes, kept.pred_boxes) - torch.eye(len(kept))
    same = kept.pred_classes[:, None] == kept.pred_classes
    assert same.sum() > len(kept) and (iou[same] <= 0.6 + 1e-5).all()


def test_nothing_found_is_empty_with_all_fields():
    found = run(replace(SELECT, score_threshold=1.0), dense())[0]
    assert len(found) == 0 and found.pred_boxes.tensor.shape == (0, 4)
    assert found.top_feat.shape == (0, 6)
    assert found.has("locations") and found.has("fpn_levels")


def test_no_top_feat_without_top_features():
    assert not run(SELECT, dense(top=0))[0].has("top_feat")


def test_double_predictions_pass_nms():
    parts = [[m.double() for m in maps] for maps in dense()]
    found = run(SELECT, parts)[0]
    assert found.scores.dtype == torch.float64 and len(found)
