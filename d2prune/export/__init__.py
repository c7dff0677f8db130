"""Models that run without PyTorch, each format a pair: one function exports, one loads.

dense       images -> dense outputs: what is exported
decode      dense outputs -> detections, in Python, as the eager model makes them
settings    the plain data that the decoder needs, written beside the model
onnx        the pair for ONNX
predictor   an ONNX file and its decoder, called like a Detectron2 model
parity      eager against exported, on real images
evaluation  their AP side by side
"""

from __future__ import annotations

from collections.abc import Callable

from d2prune.errors import PruneError
from d2prune.export.evaluation import average_precisions
from d2prune.export.onnx import ExportResult, export_onnx, load_onnx
from d2prune.export.parity import Parity
from d2prune.export.predictor import OnnxPredictor

__all__ = [
    "FORMATS",
    "ExportResult",
    "OnnxPredictor",
    "Parity",
    "average_precisions",
    "export_onnx",
    "exporter",
    "load_onnx",
]

FORMATS: dict[str, Callable[..., ExportResult]] = {"onnx": export_onnx}


def exporter(name: str) -> Callable[..., ExportResult]:
    """Return the function that exports to the format ``name``.

    Raises:
        PruneError: there is no such format.
    """
    if name not in FORMATS:
        raise PruneError(f"--format is {name!r}; expected one of: {', '.join(FORMATS)}")
    return FORMATS[name]
