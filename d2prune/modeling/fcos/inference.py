"""Detections from FCOS's dense predictions."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from detectron2.config import CfgNode
from detectron2.layers import batched_nms
from detectron2.structures import Boxes, Instances
from torch import Tensor


@dataclass(frozen=True)
class FCOSInference:
    """The selection, decoding and non-maximum suppression of detections.

    Attributes:
        strides: of the levels, in pixels.
        score_threshold: above which a (location, class) pair is a candidate.
        threshold_with_ctr: whether the threshold sees class score times centre-ness.
        pre_nms_topk: candidates kept per image and level.
        nms_threshold: IoU; <= 0: no suppression.
        post_nms_topk: detections kept per image; <= 0: all. Ties at the last place all stay.
    """

    strides: tuple[int, ...]
    score_threshold: float
    threshold_with_ctr: bool
    pre_nms_topk: int
    nms_threshold: float
    post_nms_topk: int

    @classmethod
    def from_config(cls, fcos: CfgNode, phase: str) -> FCOSInference:
        """Read MODEL.FCOS for ``phase`` "TRAIN" or "TEST"."""
        return cls(
            strides=tuple(fcos.FPN_STRIDES),
            score_threshold=fcos[f"INFERENCE_TH_{phase}"],
            threshold_with_ctr=fcos.THRESH_WITH_CTR,
            pre_nms_topk=fcos[f"PRE_NMS_TOPK_{phase}"],
            nms_threshold=fcos.NMS_TH,
            post_nms_topk=fcos[f"POST_NMS_TOPK_{phase}"],
        )

    def __call__(
        self,
        locations: list[Tensor],
        logits: list[Tensor],
        distances: list[Tensor],
        ctrness: list[Tensor],
        top_feats: list[Tensor],
        image_sizes: list[tuple[int, int]],
    ) -> list[Instances]:
        """Return per image pred_boxes (not clipped), scores, pred_classes, locations and fpn_levels.

        Args are lists over levels of what ``FCOSHead`` returns, with ``locations`` (H_l * W_l, 2) and
        ``image_sizes`` (height, width) without padding. With top features also ``top_feat`` (n, T).
        """
        scores = [s.sigmoid() for s in logits]
        quality = [c.sigmoid() for c in ctrness]
        results = []
        for image, size in enumerate(image_sizes):
            levels = []
            for level, points in enumerate(locations):
                found = self._one_level(
                    level, points, scores[level][image], quality[level][image],
                    distances[level][image], size,
                )  # fmt: skip
                if top_feats:
                    found.top_feat = top_feats[level][image].flatten(1)[:, found.index].t()
                found.remove("index")
                levels.append(found)
            results.append(self._suppress(Instances.cat(levels)))
        return results

    def _one_level(
        self,
        level: int,
        points: Tensor,
        scores: Tensor,
        quality: Tensor,
        distances: Tensor,
        size: tuple[int, int],
    ) -> Instances:
        """Select one image's candidates of one level; ``index`` is their row in ``points``."""
        classes = scores.flatten(1).t()  # (H * W, K)
        combined = classes * quality.flatten(1).t()
        seen = combined if self.threshold_with_ctr else classes
        index, label = torch.nonzero(seen > self.score_threshold, as_tuple=True)
        score = combined[index, label]
        if len(score) > self.pre_nms_topk:
            score, best = score.topk(self.pre_nms_topk, sorted=False)
            index, label = index[best], label[best]
        found = Instances(size)
        found.pred_boxes = Boxes(_decode(points[index], distances.flatten(1).t()[index], self.strides[level]))
        found.scores = torch.sqrt(score)
        found.pred_classes = label
        found.locations = points[index]
        found.fpn_levels = torch.full_like(label, level)
        found.index = index
        return found

    def _suppress(self, found: Instances) -> Instances:
        if self.nms_threshold > 0:
            # NMS takes boxes and scores of one type, and its boxes are made float32.
            scores = found.scores.float()
            boxes, classes = found.pred_boxes.tensor, found.pred_classes
            found = found[batched_nms(boxes, scores, classes, self.nms_threshold)]
        excess = len(found) - self.post_nms_topk
        if excess > 0 and self.post_nms_topk > 0:
            last = found.scores.kthvalue(excess + 1).values
            found = found[found.scores >= last]
        return found


def _decode(points: Tensor, distances: Tensor, stride: int) -> Tensor:
    """Return corner boxes (n, 4) in pixels from distances (n, 4) in strides."""
    pixels = distances * stride
    return torch.cat((points - pixels[:, :2], points + pixels[:, 2:]), dim=1)
