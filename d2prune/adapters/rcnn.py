"""R-CNNs of Detectron2: GeneralizedRCNN, ProposalNetwork and PanopticFPN, with any of its heads."""

from __future__ import annotations

from collections.abc import Mapping

from detectron2.modeling.meta_arch import GeneralizedRCNN, ProposalNetwork
from detectron2.modeling.proposal_generator import RPN
from detectron2.modeling.roi_heads import FastRCNNConvFCHead
from torch import Tensor, nn

from d2prune.adapters.base import Adapter, register_adapter, unknown
from d2prune.adapters.images import padded
from d2prune.adapters.roi_heads import roi_outputs
from d2prune.adapters.segmentation import semantic_outputs

PRECOMPUTED = 1000
"""Boxes per image if no proposal network runs: Detectron2's PRECOMPUTED_PROPOSAL_TOPK_TEST."""


@register_adapter(GeneralizedRCNN, ProposalNetwork)
class RCNNAdapter(Adapter):
    """The adapter of R-CNNs; it stops before proposals are chosen, and runs heads for regions on fixed boxes.

    A PanopticFPN is a GeneralizedRCNN with a semantic head.
    """

    def dense(self, model: nn.Module, images: Tensor, training_branches: bool) -> Mapping[str, Tensor]:
        """See :meth:`Adapter.dense`."""
        images = padded(model, images)
        features = model.backbone(images)
        outputs, proposals = _proposal_outputs(model.proposal_generator, features)
        if hasattr(model, "sem_seg_head"):
            outputs |= semantic_outputs(model.sem_seg_head, features, counting=not training_branches)
        if hasattr(model, "roi_heads"):
            count = 0 if training_branches else proposals
            outputs |= roi_outputs(model.roi_heads, features, images, count)
        return outputs

    def after_resize(self, model: nn.Module) -> None:
        """Update the widths that the backbone and the box heads report."""
        super().after_resize(model)
        for head in model.modules():
            if isinstance(head, FastRCNNConvFCHead):
                _refresh_box_head(head)


def _proposal_outputs(
    generator: nn.Module | None, features: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], int]:
    """Return the proposal network's outputs, and the number of proposals per image at inference."""
    if generator is None:
        return {}, PRECOMPUTED
    if not isinstance(generator, RPN):
        raise unknown(generator, "proposal generator", "an RPN")
    levels = generator.in_features
    lists = generator.rpn_head([features[f] for f in levels])
    outputs = {
        f"{level}/{name}": tensor
        for name, tensors in zip(("objectness", "deltas"), lists, strict=True)
        for level, tensor in zip(levels, tensors, strict=True)
    }
    return outputs, generator.post_nms_topk[False]


def _refresh_box_head(head: nn.Module) -> None:
    if head.fcs:
        head._output_size = head.fcs[-1].out_features
    else:
        head._output_size = (head.conv_norm_relus[-1].out_channels, *head._output_size[1:])
