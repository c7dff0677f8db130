"""Adapters: one class per meta-architecture, with all its special cases."""

from d2prune.adapters.base import Adapter, find_adapter, register_adapter
from d2prune.adapters.images import padding_step
from d2prune.adapters.trace_input import TraceInput, padded_size
from d2prune.optional import HAS_DETECTRON2

if HAS_DETECTRON2:  # AdelaiDet's models are Detectron2's, too
    from d2prune.adapters import (  # noqa: F401  (they register)
        batext,
        condinst,
        fcos,
        rcnn,
        retinanet,
        segmentation,
        solov2,
    )

__all__ = ["Adapter", "TraceInput", "find_adapter", "padded_size", "padding_step", "register_adapter"]
