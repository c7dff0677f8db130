"""Semantic segmentation of Detectron2 and its projects: SemanticSegmentor, DeepLab, Panoptic-DeepLab."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from detectron2.layers import ASPP
from detectron2.modeling.meta_arch import SemanticSegmentor
from torch import Tensor, nn

from d2prune.adapters import point_rend
from d2prune.adapters.base import Adapter, register_adapter, unknown
from d2prune.adapters.images import features_of


@register_adapter(SemanticSegmentor)
class SemanticSegmentorAdapter(Adapter):
    """The adapter of semantic segmentors; outputs are logits before upsampling, which mixes no channels."""

    def dense(self, model: nn.Module, images: Tensor, training_branches: bool) -> Mapping[str, Tensor]:
        """See :meth:`Adapter.dense`."""
        with pooled_whole(model):
            features = features_of(model, images)
            return semantic_outputs(model.sem_seg_head, features, counting=not training_branches)


@register_adapter("detectron2.projects.panoptic_deeplab.panoptic_seg.PanopticDeepLab")
class PanopticDeepLabAdapter(SemanticSegmentorAdapter):
    """The adapter of Panoptic-DeepLab: semantic logits, and centers and offsets of instances."""

    def dense(self, model: nn.Module, images: Tensor, training_branches: bool) -> Mapping[str, Tensor]:
        """See :meth:`Adapter.dense`."""
        with pooled_whole(model):
            features = features_of(model, images)
            center, offset = model.ins_embed_head.layers(features)
            return {"sem_seg": model.sem_seg_head.layers(features), "center": center, "offset": offset}


def semantic_outputs(head: nn.Module, features: Mapping[str, Tensor], counting: bool) -> dict[str, Tensor]:
    """Return the logits of a semantic head, and for PointRend those of its points."""
    if hasattr(head, "coarse_sem_seg_head"):
        return point_rend.semantic_outputs(head, features, counting)
    if hasattr(head, "layers"):
        return {"sem_seg": head.layers(features)}
    if hasattr(head, "aspp"):  # DeepLabV3Head
        return {"sem_seg": head.predictor(head.aspp(features[head.in_features[0]]))}
    raise unknown(head, "semantic head", "one with a method layers(), as Detectron2's have")


@contextmanager
def pooled_whole(model: nn.Module) -> Iterator[None]:
    """Make ASPP modules pool the whole image while the context lasts.

    Built with a crop size, ASPP pools windows of that size and refuses images that are no multiple of it,
    such as the small ones of proofs. Either way every channel is pooled alone.
    """
    windows = [m for m in model.modules() if isinstance(m, ASPP) and m.pool_kernel_size is not None]
    pools = [(aspp, aspp.pool_kernel_size, aspp.convs[-1][0]) for aspp in windows]
    try:
        for aspp, _, _ in pools:
            aspp.pool_kernel_size, aspp.convs[-1][0] = None, nn.AdaptiveAvgPool2d(1)
        yield
    finally:
        for aspp, size, pool in pools:
            aspp.pool_kernel_size, aspp.convs[-1][0] = size, pool
