"""The blending of bases inside each box (BlendMask, arXiv 2001.00309, section 3.2)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.modeling.poolers import ROIPooler
from detectron2.structures import Instances
from torch import Tensor

from d2prune.errors import PruneError


class Blender:
    """A function of bases and per-instance attention to masks, without parameters."""

    @configurable
    def __init__(
        self,
        *,
        num_bases: int,
        attention_size: int,
        resolution: int,
        pooler_type: str = "ROIAlignV2",
        sampling_ratio: int = 1,
        scales: tuple[float, ...] = (0.25,),
        interpolation: str = "bilinear",
    ) -> None:
        """Set up the blender.

        Args:
            num_bases: B.
            attention_size: A, side of an instance's coefficient maps.
            resolution: R, side of the blended mask.
            pooler_type: any of Detectron2's ROIPooler.
            sampling_ratio: of the pooler.
            scales: of the bases to the input image; one per tensor of bases.
            interpolation: how coefficients grow from A to R.
        """
        self.num_bases = num_bases
        self.attention_size = attention_size
        self.resolution = resolution
        self.interpolation = interpolation
        self.pooler = ROIPooler(resolution, scales, sampling_ratio, pooler_type, canonical_level=2)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Read MODEL.BLENDMASK."""
        blend = cfg.MODEL.BLENDMASK
        return {
            "num_bases": cfg.MODEL.BASIS_MODULE.NUM_BASES,
            "attention_size": blend.ATTN_SIZE,
            "resolution": blend.BOTTOM_RESOLUTION,
            "pooler_type": blend.POOLER_TYPE,
            "sampling_ratio": blend.POOLER_SAMPLING_RATIO,
            "scales": blend.POOLER_SCALES,
            "interpolation": blend.TOP_INTERP,
        }

    @property
    def num_coefficients(self) -> int:
        """Number of channels of the top layer: B * A * A."""
        return self.num_bases * self.attention_size**2

    def add_masks(self, bases: list[Tensor], detections: list[Instances]) -> list[Instances]:
        """Set ``pred_masks`` (n, 1, R, R), probabilities, on each image's detections, in place.

        Args:
            bases: ``[(N, B, H / 4, W / 4)]``.
            detections: per image, with ``pred_boxes`` and ``top_feat`` (n, B * A * A).
        """
        coefficients = torch.cat([d.top_feat for d in detections])
        rois = self.pooler(bases, [d.pred_boxes for d in detections])
        masks = self.blend(rois, coefficients).sigmoid()[:, None]
        for found, mask in zip(detections, masks.split([len(d) for d in detections]), strict=True):
            found.pred_masks = mask
        return detections

    def losses(
        self,
        bases: list[Tensor],
        positives: Instances,
        denorm: Tensor,
        gt_instances: list[Instances],
    ) -> dict[str, Tensor]:
        """Compare the blends at all positive locations with the ground truth masks.

        Args:
            bases: ``[(N, B, H / 4, W / 4)]``.
            positives: with ``top_feats`` (P, B * A * A), ``gt_inds`` and ``gt_ctrs`` (P,).
            denorm: what the sum is divided by.
            gt_instances: per image, with ``gt_boxes`` and ``gt_masks``.
        """
        if len(positives) == 0:
            # Nothing to learn, but DDP wants a gradient for the basis module and the top layer.
            return {"loss_mask": sum(b[:0].sum() for b in bases) + positives.top_feats.sum()}
        rois = self.pooler(bases, [gt.gt_boxes for gt in gt_instances])
        # index_select: the backward of indexing by brackets is many times slower on a CPU.
        rois = rois.index_select(0, positives.gt_inds)
        wanted = self._gt_masks(gt_instances)[positives.gt_inds]
        logits = self.blend(rois, positives.top_feats)
        loss = F.binary_cross_entropy_with_logits(logits, wanted.to(logits.dtype), reduction="none").mean(
            dim=(1, 2)
        )
        return {"loss_mask": (loss * positives.gt_ctrs).sum() / denorm}

    def blend(self, rois: Tensor, coefficients: Tensor) -> Tensor:
        """Return mask logits (n, R, R) of pooled bases (n, B, R, R), coefficients (n, B*A*A).

        Coefficients are base-major; at every pixel they compete by a softmax over the bases.
        """
        size = self.attention_size
        maps = coefficients.reshape(len(rois), self.num_bases, size, size)
        grow = self._growing_matrix(maps)
        maps = grow @ maps @ grow.T
        return (rois * maps.softmax(dim=1)).sum(dim=1)

    def _growing_matrix(self, like: Tensor) -> Tensor:
        """Return (R, A): interpolation from A to R values, as a product.

        As matrices on both sides it grows all maps at once: on a CPU a tenth of the time that
        F.interpolate and its backward take for so many small maps.
        """
        unit = torch.eye(self.attention_size, dtype=like.dtype, device=like.device)
        grown = F.interpolate(unit[None, :, :, None], (self.resolution, 1), mode=self.interpolation)
        return grown[0, :, :, 0].T

    def _gt_masks(self, gt_instances: list[Instances]) -> Tensor:
        """Return the masks inside their own boxes (G, R, R), bool."""
        cropped = []
        for gt in gt_instances:
            if len(gt) == 0:
                continue  # Detectron2's mapper gives no gt_masks to images without instances
            if not gt.has("gt_masks"):
                raise PruneError(
                    "the ground truth has no 'gt_masks', which BlendMask learns from; "
                    "set MODEL.MASK_ON True and use annotations with segmentation"
                )
            cropped.append(gt.gt_masks.crop_and_resize(gt.gt_boxes.tensor, self.resolution))
        return torch.cat(cropped)
