"""The BlendMask architecture (arXiv 2001.00309)."""

from __future__ import annotations

from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import (
    Backbone,
    build_backbone,
    build_proposal_generator,
    build_sem_seg_head,
    detector_postprocess,
)
from detectron2.modeling.meta_arch.panoptic_fpn import combine_semantic_and_instance_outputs
from detectron2.modeling.postprocessing import sem_seg_postprocess
from detectron2.structures import ImageList, Instances
from torch import Tensor, nn

from d2prune.errors import PruneError

from .basis_sem import basis_sem_from_instances
from .blender import Blender
from .protonet import build_basis_module

Batch = list[dict[str, Any]]


class BlendMask(nn.Module):
    """A detector with FCOS boxes, bases from the FPN, and masks blended from both.

    With a panoptic module it also learns and predicts a semantic map, and combines the two.
    """

    pixel_mean: Tensor
    pixel_std: Tensor
    panoptic_module: Any  # absent, not None, where there is none: so are its state-dict keys

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        proposal_generator: nn.Module,
        basis_module: nn.Module,
        blender: Blender,
        top_in_channels: int,
        panoptic_module: nn.Module | None = None,
        panoptic_thresholds: tuple[float, float, float] = (0.5, 4096, 0.5),
        instance_loss_weight: float = 1.0,
        pixel_mean: list[float],
        pixel_std: list[float],
        visualize: bool = False,
    ) -> None:
        """Store the parts, and build the top layer.

        Args:
            backbone: FPN.
            proposal_generator: FCOS, run with this model's top layer.
            basis_module: ProtoNet, or another with its interface.
            blender: bases and coefficients to masks.
            top_in_channels: channels of the box tower, the FPN's.
            panoptic_module: Detectron2's semantic head, or None.
            panoptic_thresholds: overlap (fraction), stuff area (pixels), instance score.
            instance_loss_weight: factor of the mask loss.
            pixel_mean: per channel.
            pixel_std: per channel.
            visualize: whether evaluation adds each image's "bases" ``(B, H / 4, W / 4)``.
        """
        super().__init__()
        self.backbone = backbone
        self.proposal_generator = proposal_generator
        self.basis_module = basis_module
        self.blender = blender
        if panoptic_module is not None:
            self.panoptic_module = panoptic_module
        self.combine_on = panoptic_module is not None
        self.panoptic_thresholds = panoptic_thresholds
        self.instance_loss_weight = instance_loss_weight
        self.visualize = visualize
        self.top_layer = nn.Conv2d(top_in_channels, blender.num_coefficients, 3, padding=1)
        nn.init.normal_(self.top_layer.weight, std=0.01)
        assert self.top_layer.bias is not None
        nn.init.zeros_(self.top_layer.bias)
        for name, values in (("pixel_mean", pixel_mean), ("pixel_std", pixel_std)):
            self.register_buffer(name, torch.tensor(values).view(-1, 1, 1), persistent=False)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Build the parts that the config names.

        Raises:
            PruneError: with MODEL.FCOS.BOX_QUALITY "iou": the mask loss weighs by centre-ness.
        """
        if cfg.MODEL.FCOS.BOX_QUALITY != "ctrness":
            raise PruneError(
                f"MODEL.FCOS.BOX_QUALITY is {cfg.MODEL.FCOS.BOX_QUALITY!r}; BlendMask expects "
                "'ctrness', which weighs its mask loss"
            )
        backbone = build_backbone(cfg)
        shape = backbone.output_shape()
        combine = cfg.MODEL.PANOPTIC_FPN.COMBINE
        return {
            "backbone": backbone,
            "proposal_generator": build_proposal_generator(cfg, shape),
            "basis_module": build_basis_module(cfg, shape),
            "blender": Blender(cfg),
            "top_in_channels": cfg.MODEL.FPN.OUT_CHANNELS,
            "panoptic_module": build_sem_seg_head(cfg, shape) if combine.ENABLED else None,
            "panoptic_thresholds": (
                combine.OVERLAP_THRESH,
                combine.STUFF_AREA_LIMIT,
                combine.INSTANCES_CONFIDENCE_THRESH,
            ),
            "instance_loss_weight": cfg.MODEL.BLENDMASK.INSTANCE_LOSS_WEIGHT,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "visualize": cfg.MODEL.BLENDMASK.VISUALIZE,
        }

    @property
    def device(self) -> torch.device:
        """The device of the model, to which batches are moved."""
        return self.pixel_mean.device

    def forward(self, batched_inputs: Batch) -> Any:
        """Return losses in training, detections in evaluation; ``self.training`` alone decides.

        Args:
            batched_inputs: per image "image" ``(C, H, W)``; in training "instances" with
                ``gt_boxes``, ``gt_classes`` and ``gt_masks``, optionally "basis_sem" ``(H, W)`` long
                (made from the instances where absent), and "sem_seg" ``(H, W)`` long with a
                panoptic module; for evaluation optionally "height" and "width" of the output.

        Returns:
            In training a dict of scalar losses. In evaluation per image ``{"instances": Instances}``
            with pred_boxes, scores, pred_classes, pred_masks (n, height, width) bool, locations,
            fpn_levels and top_feat; with a panoptic module also "sem_seg" and "panoptic_seg".

        Raises:
            PruneError: when training lacks ground truth.
        """
        images = self.preprocess_image(batched_inputs)
        features = self.backbone(images.tensor)
        if self.training:
            return self._losses(batched_inputs, images, features)
        return self._detect(batched_inputs, images, features)

    def preprocess_image(self, batched_inputs: Batch) -> ImageList:
        """Normalise the images, then pad them with zeros at the bottom and right."""
        images = [item["image"].to(self.device) for item in batched_inputs]
        return self._pad([(image - self.pixel_mean) / self.pixel_std for image in images])

    def _pad(self, tensors: list[Tensor], value: float = 0.0) -> ImageList:
        return ImageList.from_tensors(
            tensors,
            self.backbone.size_divisibility,
            pad_value=value,
            padding_constraints=self.backbone.padding_constraints,
        )

    def _losses(self, batch: Batch, images: ImageList, features: dict[str, Tensor]) -> dict[str, Tensor]:
        gt_instances = [gt.to(self.device) for gt in _ground_truth(batch, "instances", _INSTANCES)]
        losses = self._panoptic_losses(batch, features)
        bases, basis_losses = self.basis_module(features, self._basis_sem(batch, gt_instances))
        proposals, proposal_losses = self.proposal_generator(images, features, gt_instances, self.top_layer)
        mask_losses = self.blender.losses(
            bases["bases"], proposals["instances"], proposals["loss_denorm"], gt_instances
        )
        losses.update(basis_losses)
        losses.update({k: self.instance_loss_weight * v for k, v in mask_losses.items()})
        losses.update(proposal_losses)
        return losses

    def _basis_sem(self, batch: Batch, gt_instances: list[Instances]) -> Tensor | None:
        if not self.basis_module.loss_on:
            return None
        maps = [
            item["basis_sem"].to(self.device)
            if "basis_sem" in item
            else basis_sem_from_instances(gt, tuple(item["image"].shape[-2:]))
            for item, gt in zip(batch, gt_instances, strict=True)
        ]
        return self._pad(maps).tensor.long()

    def _panoptic_losses(self, batch: Batch, features: dict[str, Tensor]) -> dict[str, Tensor]:
        if not self.combine_on:
            return {}
        maps = [m.to(self.device) for m in _ground_truth(batch, "sem_seg", _SEM_SEG)]
        wanted = self._pad(maps, self.panoptic_module.ignore_value).tensor
        return dict(self.panoptic_module(features, wanted)[1])

    def _detect(self, batch: Batch, images: ImageList, features: dict[str, Tensor]) -> list[dict[str, Any]]:
        bases = self.basis_module(features)[0]["bases"]
        proposals, _ = self.proposal_generator(images, features, None, self.top_layer)
        detections = self.blender.add_masks(bases, proposals)
        semantic = self.panoptic_module(features)[0] if self.combine_on else None
        results = []
        for i, (item, found, size) in enumerate(zip(batch, detections, images.image_sizes, strict=True)):
            output_size = item.get("height", size[0]), item.get("width", size[1])
            result = {"instances": detector_postprocess(found, *output_size)}
            if semantic is not None:
                self._add_panoptic(result, semantic[i], size, output_size)
            if self.visualize:
                result["bases"] = bases[0][i]
            results.append(result)
        return results

    def _add_panoptic(
        self,
        result: dict[str, Any],
        semantic: Tensor,
        size: tuple[int, int],
        output_size: tuple[int, int],
    ) -> None:
        result["sem_seg"] = sem_seg_postprocess(semantic, size, *output_size)
        result["panoptic_seg"] = combine_semantic_and_instance_outputs(
            result["instances"], result["sem_seg"].argmax(dim=0), *self.panoptic_thresholds
        )


_INSTANCES = "give ground truth in every item, or call model.eval() to detect"
_SEM_SEG = "give it in every item, or set MODEL.PANOPTIC_FPN.COMBINE.ENABLED False"


def _ground_truth(batch: Batch, key: str, remedy: str) -> list[Any]:
    for item in batch:
        if key not in item:
            raise PruneError(f"training needs {key!r}, but an item has only {sorted(item)}; {remedy}")
    return [item[key] for item in batch]
