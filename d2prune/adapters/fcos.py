"""FCOS (OneStageDetector) and BlendMask, d2prune's own or AdelaiDet's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor, nn

from d2prune.adapters.base import Adapter, register_adapter
from d2prune.adapters.shapes import refresh_shapes
from d2prune.modeling import BlendMask, OneStageDetector

HEADS = ("logits", "bbox_reg", "centerness", "top_feats")


@register_adapter(OneStageDetector)
class FCOSAdapter(Adapter):
    """Names its outputs as AdelaiDet's ONNX export does: ``P3/logits``, ``P3/bbox_reg`` and so on."""

    old_names: ClassVar[Mapping[str, str]] = {".centerness.": ".ctrness."}

    def dense(self, model: nn.Module, images: Tensor, training_branches: bool) -> Mapping[str, Tensor]:
        """See :meth:`Adapter.dense`."""
        return self._heads(model, self._features(model, images), None)

    def after_resize(self, model: nn.Module) -> None:
        """Tells the backbone's new widths."""
        refresh_shapes(model.backbone)

    def _features(self, model: nn.Module, images: Tensor) -> Mapping[str, Tensor]:
        if hasattr(model, "normalizer"):
            # AdelaiDet's BlendMask hides mean and std in a lambda: float32, on the device it was built
            # for. Counting on meta needs no values, other dtypes a cast.
            normalized = images if images.is_meta else model.normalizer(images).to(images.dtype)
            return model.backbone(normalized)
        return model.backbone((images - model.pixel_mean) / model.pixel_std)

    def _heads(
        self, model: nn.Module, features: Mapping[str, Tensor], top_layer: nn.Module | None
    ) -> dict[str, Tensor]:
        generator = model.proposal_generator
        levels = generator.in_features
        lists = generator.fcos_head([features[f] for f in levels], top_layer, False)
        return {
            f"{level.upper()}/{head}": tensor
            for head, tensors in zip(HEADS, lists[:4], strict=True)
            for level, tensor in zip(levels, tensors, strict=False)
        }


@register_adapter(BlendMask)
class BlendMaskAdapter(FCOSAdapter):
    """Adds the bases, the attention (``top_feats``), and the branches that only training runs."""

    def dense(self, model: nn.Module, images: Tensor, training_branches: bool) -> Mapping[str, Tensor]:
        """See :meth:`Adapter.dense`."""
        features = self._features(model, images)
        bases, _ = model.basis_module(features)
        outputs = {"bases": bases["bases"][0], **self._heads(model, features, model.top_layer)}
        if training_branches and getattr(model.basis_module, "seg_head", None) is not None:
            outputs["basis_sem"] = model.basis_module.seg_head(features[_seg_feature(model)])
        if hasattr(model, "panoptic_module"):
            outputs["sem_seg"] = model.panoptic_module.layers(features)
        return outputs

    def training_only(self, model: nn.Module) -> Mapping[str, str]:
        """The semantic branch exists with MODEL.BASIS_MODULE.LOSS_ON only."""
        return {"basis_module.seg_head": f"backbone.fpn_output{_seg_feature(model).removeprefix('p')}"}


def _seg_feature(model: nn.Module) -> str:
    """The level that the semantic branch reads; AdelaiDet's always reads the first."""
    return str(getattr(model.basis_module, "seg_feature", model.basis_module.in_features[0]))
