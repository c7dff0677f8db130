"""Detectron2's dense detectors: RetinaNet and its own FCOS (not AdelaiDet's, see ``fcos.py``)."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import count

from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from torch import Tensor, nn

from d2prune.adapters.base import Adapter, register_adapter
from d2prune.adapters.images import features_of

HEADS = ("logits", "deltas", "centerness")


@register_adapter(DenseDetector)
class DenseDetectorAdapter(Adapter):
    """The adapter of dense detectors; outputs are the head's, by level: ``p3/logits``, ``p3/deltas``, ..."""

    def dense(self, model: nn.Module, images: Tensor, training_branches: bool) -> Mapping[str, Tensor]:
        """See :meth:`Adapter.dense`."""
        features, levels = features_of(model, images), model.head_in_features
        lists = model.head([features[f] for f in levels])
        names = (HEADS[i] if i < len(HEADS) else f"output{i}" for i in count())
        return {
            f"{level}/{name}": tensor
            for name, tensors in zip(names, lists, strict=False)
            for level, tensor in zip(levels, tensors, strict=True)
        }
