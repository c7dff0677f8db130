"""FCOS: fully convolutional one-stage object detection (arXiv 1904.01355, 2006.09214).

head        features -> logits, distances, centre-ness, top features: per level
targets     locations, ground truth -> class, distances, instance: per location
losses      predictions at the positive locations -> losses
inference   predictions -> Instances
fcos        the proposal generator that ties them together
"""

from __future__ import annotations

from .fcos import FCOS
from .head import FCOSHead

__all__ = ["FCOS", "FCOSHead"]
