"""Detections of two models on one image, paired."""

from __future__ import annotations

from detectron2.structures import Instances, pairwise_iou


def match(one: Instances, two: Instances, iou: float) -> list[tuple[int, int]]:
    """Return index pairs of one class that overlap by ``iou`` at least, the best first, each index once."""
    overlap = pairwise_iou(one.pred_boxes, two.pred_boxes)
    overlap = overlap * (one.pred_classes[:, None] == two.pred_classes[None])
    pairs: list[tuple[int, int]] = []
    while overlap.numel() and overlap.max() >= iou:
        i, j = divmod(int(overlap.argmax()), overlap.shape[1])
        pairs.append((i, j))
        overlap[i] = overlap[:, j] = 0
    return pairs
