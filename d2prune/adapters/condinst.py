"""AdelaiDet's CondInst, and BoxInst, which is the same class with other losses."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from d2prune.adapters.base import register_adapter
from d2prune.adapters.fcos import FCOSAdapter
from d2prune.adapters.images import features_of
from d2prune.adapters.one_stage import fcos_outputs


@register_adapter("adet.modeling.condinst.condinst.CondInst")
class CondInstAdapter(FCOSAdapter):
    """The adapter of CondInst; it stops before each instance's filter is applied to the mask features.

    Both are outputs: the config fixes how many numbers a filter has (Tian et al., arXiv 2003.05664).
    """

    def dense(self, model: nn.Module, images: Tensor, training_branches: bool) -> Mapping[str, Tensor]:
        """See :meth:`Adapter.dense`."""
        features = features_of(model, images)
        branch = model.mask_branch
        masks, _ = branch(features)
        outputs = {"masks": masks, **fcos_outputs(model.proposal_generator, features, model.controller)}
        if training_branches and hasattr(branch, "seg_head"):
            outputs["semantic"] = branch.logits(branch.seg_head(features[branch.in_features[0]]))
        return outputs

    def training_only(self, model: nn.Module) -> Mapping[str, str]:
        """Return the semantic branch's layers: only MODEL.CONDINST.MASK_BRANCH.SEMANTIC_LOSS_ON builds it."""
        level = model.mask_branch.in_features[0].removeprefix("p")
        return {
            "mask_branch.seg_head": f"backbone.fpn_output{level}",
            "mask_branch.logits": "mask_branch.seg_head.1.0",
        }
