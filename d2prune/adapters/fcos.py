"""OneStageDetector (FCOS, MEInst, FCPose) and BlendMask, d2prune's own or AdelaiDet's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor, nn

from d2prune.adapters.base import Adapter, register_adapter
from d2prune.adapters.images import features_of
from d2prune.adapters.one_stage import fcos_outputs, head_outputs
from d2prune.modeling import BlendMask, OneStageDetector


@register_adapter(OneStageDetector)
class FCOSAdapter(Adapter):
    """The adapter of OneStageDetector; outputs are named as in AdelaiDet's ONNX export (``P3/logits``)."""

    old_names: ClassVar[Mapping[str, str]] = {".centerness.": ".ctrness."}

    def dense(self, model: nn.Module, images: Tensor, training_branches: bool) -> Mapping[str, Tensor]:
        """See :meth:`Adapter.dense`."""
        features = features_of(model, images)
        return head_outputs(model.proposal_generator, features, training_branches)


@register_adapter(BlendMask)
class BlendMaskAdapter(FCOSAdapter):
    """The adapter of BlendMask: FCOS, the bases, the attention (``top_feats``), and training's branches."""

    auxiliary_losses = ("loss_basis_sem",)

    def dense(self, model: nn.Module, images: Tensor, training_branches: bool) -> Mapping[str, Tensor]:
        """See :meth:`Adapter.dense`."""
        features = features_of(model, images)
        bases, _ = model.basis_module(features)
        heads = fcos_outputs(model.proposal_generator, features, model.top_layer)
        outputs = {"bases": bases["bases"][0], **heads}
        if training_branches and getattr(model.basis_module, "seg_head", None) is not None:
            outputs["basis_sem"] = model.basis_module.seg_head(features[_seg_feature(model)])
        if hasattr(model, "panoptic_module"):
            outputs["sem_seg"] = model.panoptic_module.layers(features)
        return outputs

    def training_only(self, model: nn.Module) -> Mapping[str, str]:
        """Return the semantic branch, which only MODEL.BASIS_MODULE.LOSS_ON builds."""
        return {"basis_module.seg_head": f"backbone.fpn_output{_seg_feature(model).removeprefix('p')}"}


def _seg_feature(model: nn.Module) -> str:
    """Return the level that the semantic branch reads; AdelaiDet's always reads the first."""
    return str(getattr(model.basis_module, "seg_feature", model.basis_module.in_features[0]))
