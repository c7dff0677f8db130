"""AdelaiDet's OneStageRCNN, a one-stage detector with a second stage: BAText (ABCNet) is one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from d2prune.adapters.base import Adapter, register_adapter, unknown
from d2prune.adapters.images import padded
from d2prune.adapters.one_stage import fcos_outputs
from d2prune.adapters.rois import TRACED, fixed_boxes, pool


@register_adapter("adet.modeling.one_stage_detector.OneStageRCNN")
class OneStageRCNNAdapter(Adapter):
    """The adapter of OneStageRCNN; text is read from fixed boxes instead of Bezier curves.

    The recurrent part of the recognizer is left whole (Liu et al., arXiv 2002.10200).
    """

    def dense(self, model: nn.Module, images: Tensor, training_branches: bool) -> Mapping[str, Tensor]:
        """See :meth:`Adapter.dense`."""
        generator, heads = model.proposal_generator, model.roi_heads
        if not hasattr(generator, "fcos_head"):
            raise unknown(generator, "proposal generator", "BAText's or FCOS's")
        if not hasattr(heads, "recognizer"):
            raise unknown(heads, "ROI heads", "a TextHead")
        images = padded(model, images)
        features = model.backbone(images)
        count = TRACED if training_branches else generator.post_nms_topk_test
        outputs = fcos_outputs(generator, features, model.top_module)
        return outputs | {"text": _text(heads, features, fixed_boxes(images, count), not training_branches)}


def _text(heads: Any, features: Mapping[str, Tensor], boxes: Tensor, counting: bool) -> Tensor:
    """Return the (T, R, V) scores of each character of the texts in boxes (R, 5)."""
    levels = [features[name] for name in heads.in_features]
    if heads.coordconv:
        levels = [level + heads.mask_head(level) for level in levels]
    pooled = heads.tower(pool(heads.pooler, levels, boxes))
    reader = heads.recognizer
    if not hasattr(reader, "attention"):
        columns, _ = reader.rnn(reader.convs(pooled).squeeze(2).permute(2, 0, 1))
        return reader.clf(columns)
    return _spelled(reader.attention, reader.CRNN(pooled), reader.attention.max_len if counting else 1)


def _spelled(attention: Any, columns: Tensor, steps: int) -> Tensor:
    """Return the scores of ``steps`` characters, each read as if the one before had class 0."""
    regions = columns.shape[1]
    state = columns.new_zeros(1, regions, attention.hidden_size)
    before = torch.zeros(regions, dtype=torch.long, device=columns.device)
    spelled = []
    for _ in range(steps):
        scores, state, _ = attention(before, state, columns)
        spelled.append(scores)
    return torch.stack(spelled)
