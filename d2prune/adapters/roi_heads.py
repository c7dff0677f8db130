"""Heads that work on regions: box, mask and keypoint heads, cascades, and the shared res5 of C4 models."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from detectron2.modeling.roi_heads import Res5ROIHeads, StandardROIHeads
from torch import Tensor, nn

from d2prune.adapters import point_rend
from d2prune.adapters.base import unknown
from d2prune.adapters.rois import TRACED, fixed_boxes, pool

Features = Mapping[str, Tensor]


def roi_outputs(heads: nn.Module, features: Features, images: Tensor, proposals: int) -> dict[str, Tensor]:
    """Return all outputs of the ROI heads on fixed boxes.

    Args:
        heads: a ``StandardROIHeads`` (as cascades are), or a ``Res5ROIHeads``.
        features: the backbone's feature maps, by name.
        images: (N, 3, H, W), padded.
        proposals: when costs are counted, boxes per image for the box head; the mask and keypoint heads
            then get as many as detections are kept. With 0 all heads get a few boxes.
    """
    detections = detections_per_image(heads, proposals) if proposals else TRACED
    first, last = fixed_boxes(images, proposals or TRACED), fixed_boxes(images, detections)
    if isinstance(heads, Res5ROIHeads):
        return _res5_outputs(heads, features, first, last)
    if not isinstance(heads, StandardROIHeads):
        raise unknown(heads, "ROI heads", "a StandardROIHeads or a Res5ROIHeads")
    outputs = _box_outputs(heads, features, first)
    if heads.mask_on:
        outputs |= _mask_outputs(heads, features, last, counting=proposals > 0)
    if heads.keypoint_on:
        outputs["keypoints"] = _pooled_layers(heads, "keypoint", features, last)
    return outputs


def stages(part: Any) -> list[Any]:
    """Return a cascade's heads in order; otherwise the only one."""
    return list(part) if isinstance(part, nn.ModuleList) else [part]


def detections_per_image(heads: nn.Module, proposals: int) -> int:
    """Return TEST.DETECTIONS_PER_IMAGE of a built model; ``proposals`` if it is unlimited."""
    kept = stages(heads.box_predictor)[-1].test_topk_per_image
    return kept if kept >= 0 else proposals


def _levels(features: Features, names: Iterable[str]) -> list[Tensor]:
    return [features[name] for name in names]


def _box_outputs(heads: nn.Module, features: Features, boxes: Tensor) -> dict[str, Tensor]:
    # Stages of a cascade differ in their boxes; here all get the same.
    pooled = pool(heads.box_pooler, _levels(features, heads.box_in_features), boxes)
    pairs = list(zip(stages(heads.box_head), stages(heads.box_predictor), strict=True))
    outputs: dict[str, Tensor] = {}
    for number, (head, predictor) in enumerate(pairs, 1):
        name = f"box{number}" if len(pairs) > 1 else "box"
        outputs |= _named(name, predictor(head(pooled)))
    return outputs


def _named(name: str, predictions: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
    scores, deltas = predictions
    return {f"{name}/scores": scores, f"{name}/deltas": deltas}


def _mask_outputs(heads: nn.Module, features: Features, boxes: Tensor, counting: bool) -> dict[str, Tensor]:
    if hasattr(heads.mask_head, "roi_pooler_in_features"):  # PointRend's, which pool for themselves
        return point_rend.mask_outputs(heads.mask_head, features, boxes, counting)
    return {"mask": _pooled_layers(heads, "mask", features, boxes)}


def _pooled_layers(heads: nn.Module, kind: str, features: Features, boxes: Tensor) -> Tensor:
    pooler, names = getattr(heads, f"{kind}_pooler"), getattr(heads, f"{kind}_in_features")
    run = _layers(getattr(heads, f"{kind}_head"))
    return run(pool(pooler, _levels(features, names), boxes))


def _layers(head: nn.Module) -> Callable[[Tensor], Tensor]:
    if not hasattr(head, "layers"):
        raise unknown(head, "head", "one with a method layers(), as Detectron2's base heads have")
    return head.layers


def _res5_outputs(heads: nn.Module, features: Features, first: Tensor, last: Tensor) -> dict[str, Tensor]:
    levels = _levels(features, heads.in_features)
    regions = heads.res5(pool(heads.pooler, levels, first))
    outputs = _named("box", heads.box_predictor(regions.mean(dim=[2, 3])))
    if heads.mask_on:
        # At inference the mask head's boxes go through res5 anew.
        outputs["mask"] = _layers(heads.mask_head)(heads.res5(pool(heads.pooler, levels, last)))
    return outputs
