"""FCOS as a Detectron2 proposal generator."""

from __future__ import annotations

from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.structures import ImageList, Instances
from torch import Tensor, nn

from d2prune.errors import PruneError

from .head import FCOSHead, HeadOutput
from .inference import FCOSInference
from .losses import LOC_LOSSES, NORMALIZERS, QUALITIES, FCOSLoss
from .targets import TargetAssigner, locations_on_grid


class FCOS(nn.Module):
    """A detector of boxes at every location of the pyramid (arXiv 1904.01355)."""

    @configurable
    def __init__(
        self,
        *,
        fcos_head: FCOSHead,
        in_features: list[str],
        in_channels: int,
        assign: TargetAssigner,
        loss: FCOSLoss,
        select_train: FCOSInference,
        select_test: FCOSInference,
        yield_proposal: bool = False,
        yield_box_features: bool = False,
    ) -> None:
        """Store the parts.

        Args:
            fcos_head: the dense network.
            in_features: names of the pyramid levels it reads, in order.
            in_channels: what a top module on the box tower receives.
            assign: ground truth to targets.
            loss: targets and predictions to losses.
            select_train: predictions to proposals while training.
            select_test: predictions to detections.
            yield_proposal: whether training also returns proposals.
            yield_box_features: whether training also returns the box tower's features.
        """
        super().__init__()
        self.fcos_head = fcos_head
        self.in_features = list(in_features)
        self.in_channels_to_top_module = in_channels
        self.assign = assign
        self.loss = loss
        self.select_train = select_train
        self.select_test = select_test
        self.yield_proposal = yield_proposal
        self.yield_box_features = yield_box_features

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        """Read MODEL.FCOS and check it against the backbone's ``input_shape``."""
        fcos = cfg.MODEL.FCOS
        _check(fcos, input_shape)
        shapes = [input_shape[name] for name in fcos.IN_FEATURES]
        return {
            "fcos_head": FCOSHead(cfg, shapes),
            "in_features": fcos.IN_FEATURES,
            "in_channels": shapes[0].channels,
            "assign": TargetAssigner(
                strides=tuple(fcos.FPN_STRIDES),
                sizes_of_interest=tuple(fcos.SIZES_OF_INTEREST),
                num_classes=fcos.NUM_CLASSES,
                center_radius=fcos.POS_RADIUS if fcos.CENTER_SAMPLE else None,
            ),
            "loss": _loss(fcos),
            "select_train": FCOSInference.from_config(fcos, "TRAIN"),
            "select_test": FCOSInference.from_config(fcos, "TEST"),
            "yield_proposal": fcos.YIELD_PROPOSAL,
            "yield_box_features": fcos.YIELD_BOX_FEATURES,
        }

    def forward_head(self, features: dict[str, Tensor], top_module: nn.Module | None = None) -> HeadOutput:
        """Run the head alone on the backbone's features; see ``FCOSHead.forward``."""
        towers = self.yield_proposal or self.yield_box_features
        return self.fcos_head([features[f] for f in self.in_features], top_module, towers)

    def forward(
        self,
        images: ImageList,
        features: dict[str, Tensor],
        gt_instances: list[Instances] | None = None,
        top_module: nn.Module | None = None,
    ) -> tuple[Any, dict[str, Tensor]]:
        """Detect, or compute losses; ``self.training`` alone decides.

        Args:
            images: the padded batch.
            features: the backbone's, ``(N, C, H_l, W_l)`` by name.
            gt_instances: per image, needed in training, otherwise ignored.
            top_module: applied to the box tower, its output kept per detection.

        Returns:
            In evaluation ``(list[Instances], {})``, see ``FCOSInference``. In training
            ``(results, losses)``, see ``FCOSLoss``; results has also "proposals", list[Instances],
            with yield_proposal, and "features", the box tower by level name, with
            yield_box_features.

        Raises:
            PruneError: in training without ground truth, or with classes the model does not have.
        """
        logits, distances, ctrness, top_feats, towers = self.forward_head(features, top_module)
        locations = [locations_on_grid(m, s) for m, s in zip(logits, self.assign.strides, strict=True)]
        dense = (logits, distances, ctrness, top_feats)
        if not self.training:
            return self.select_test(locations, *dense, images.image_sizes), {}
        gt_instances = _checked(gt_instances, self.assign.num_classes)
        losses, results = self.loss(self.assign(locations, gt_instances), *dense)
        if self.yield_proposal:
            with torch.no_grad():
                results["proposals"] = self.select_train(locations, *dense, images.image_sizes)
        if self.yield_box_features:
            results["features"] = dict(zip(self.in_features, towers, strict=True))
        return results, losses


def _checked(gt_instances: list[Instances] | None, num_classes: int) -> list[Instances]:
    """Raise PruneError without ground truth, or for classes out of range: one would mean background."""
    if gt_instances is None:
        raise PruneError(
            "the batch has no 'instances', which FCOS learns from; "
            "give ground truth in every item, or call model.eval() to detect"
        )
    classes = torch.cat([gt.gt_classes for gt in gt_instances])
    if len(classes) and classes.max() >= num_classes:
        raise PruneError(
            f"the ground truth has class {int(classes.max())}; expected 0 to {num_classes - 1}, "
            "or a larger MODEL.FCOS.NUM_CLASSES"
        )
    return gt_instances


def _loss(fcos: CfgNode) -> FCOSLoss:
    return FCOSLoss(
        num_classes=fcos.NUM_CLASSES,
        alpha=fcos.LOSS_ALPHA,
        gamma=fcos.LOSS_GAMMA,
        cls_normalizer=fcos.LOSS_NORMALIZER_CLS,
        cls_weight=fcos.LOSS_WEIGHT_CLS,
        loc_loss=fcos.LOC_LOSS_TYPE,
        quality=fcos.BOX_QUALITY,
    )


def _check(fcos: CfgNode, input_shape: dict[str, ShapeSpec]) -> None:
    """Raise PruneError for levels that do not fit together: the boxes would be silently wrong."""
    choices = (
        ("LOC_LOSS_TYPE", LOC_LOSSES),
        ("LOSS_NORMALIZER_CLS", NORMALIZERS),
        ("BOX_QUALITY", QUALITIES),
    )
    for key, allowed in choices:
        if fcos[key] not in allowed:
            raise PruneError(f"MODEL.FCOS.{key} is {fcos[key]!r}; expected one of: {', '.join(allowed)}")
    missing = [name for name in fcos.IN_FEATURES if name not in input_shape]
    if missing:
        raise PruneError(
            f"MODEL.FCOS.IN_FEATURES names {missing}; the backbone gives {list(input_shape)} "
            "(see MODEL.FCOS.TOP_LEVELS and MODEL.FPN.IN_FEATURES)"
        )
    strides = [input_shape[name].stride for name in fcos.IN_FEATURES]
    if strides != list(fcos.FPN_STRIDES):
        raise PruneError(
            f"MODEL.FCOS.FPN_STRIDES is {list(fcos.FPN_STRIDES)}; "
            f"expected {strides} for IN_FEATURES {list(fcos.IN_FEATURES)}"
        )
    if len(fcos.SIZES_OF_INTEREST) != len(strides) - 1:
        raise PruneError(
            f"MODEL.FCOS.SIZES_OF_INTEREST is {list(fcos.SIZES_OF_INTEREST)}; "
            f"expected {len(strides) - 1} bounds for {len(strides)} levels"
        )
