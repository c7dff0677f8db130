"""Detections of the masked and the pruned model on real images, end to end in float32.

The proof stops at dense outputs, before top-k and NMS, where rounding may swap what is nearly equal.
This says how far that reaches: detections are matched by class and IoU.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from detectron2.structures import Instances
from torch import nn

from d2prune.core.cut.surgery import mask
from d2prune.errors import PruneError
from d2prune.pruning import PruneResult
from d2prune.report.matching import match


@dataclass(frozen=True)
class Agreement:
    """How two models' detections compare, over all images.

    Attributes:
        masked: number of detections of the masked model.
        pruned: of the pruned one.
        matched: pairs of one class that overlap enough; each detection is in one pair at most.
        score: largest difference of the scores of a pair.
    """

    masked: int
    pruned: int
    matched: int
    score: float

    @property
    def complete(self) -> bool:
        """Whether every detection of either model has its match."""
        return self.masked == self.pruned == self.matched

    def __str__(self) -> str:
        return (
            f"{self.matched} detections match, of {self.masked} of the masked model and {self.pruned} of "
            f"the pruned one; scores differ by {self.score:.1e} at most"
        )


def compare_detections(
    model: nn.Module, result: PruneResult[Any], inputs: Sequence[Mapping[str, Any]], iou: float = 0.95
) -> Agreement:
    """Run both models on ``inputs`` as Detectron2 does.

    Args:
        model: ``result.reference``: the one that was pruned, with repaired weights if it was repaired.
        result: what :func:`d2prune.prune` made of it.
        inputs: Detectron2's list[dict]: "image" (3, H, W), and what else the model wants.
        iou: how much a pair's boxes overlap at least.

    Raises:
        PruneError: for a model that returns no "instances".
    """
    masked = mask(copy.deepcopy(model).float(), result.step, result.plan).eval()
    pruned = copy.deepcopy(result.model).float().eval()
    pairs = zip(_instances(masked, inputs), _instances(pruned, inputs), strict=True)
    parts = [_agreement(one, two, iou) for one, two in pairs]
    return Agreement(
        sum(part.masked for part in parts),
        sum(part.pruned for part in parts),
        sum(part.matched for part in parts),
        max((part.score for part in parts), default=0.0),
    )


def _instances(model: nn.Module, inputs: Sequence[Mapping[str, Any]]) -> list[Instances]:
    with torch.no_grad():
        outputs = model([dict(item) for item in inputs])
    if not isinstance(outputs, list) or not all("instances" in output for output in outputs):
        raise PruneError(f"{type(model).__name__} returns no 'instances': there are no detections to compare")
    return [output["instances"] for output in outputs]


def _agreement(one: Instances, two: Instances, iou: float) -> Agreement:
    scores = [abs(float(one.scores[i]) - float(two.scores[j])) for i, j in match(one, two, iou)]
    return Agreement(len(one), len(two), len(scores), max(scores, default=0.0))
