"""Export to ONNX and load it again."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from torch import nn
from torch.export import Dim

from d2prune.adapters import padding_step
from d2prune.errors import PruneError
from d2prune.export.decode import decoder_of
from d2prune.export.dense import DenseModel
from d2prune.export.parity import Parity, check_parity
from d2prune.export.predictor import OnnxPredictor, required
from d2prune.export.settings import (
    INPUT_NAME,
    Settings,
    describe,
    from_json,
    to_json,
)
from d2prune.files import atomic_write

NETWORK, SETTINGS = "model.onnx", "model.json"
REFERENCE = ("CPUExecutionProvider",)  # in every build of onnxruntime, and free of TF32
logger = logging.getLogger(__name__)
Size = tuple[int, int]


@dataclass(frozen=True, eq=False)
class ExportResult:
    """What an export wrote.

    Attributes:
        path: the network's file.
        settings: the content of the file beside it, which the decoder reads.
        parity: how the exported model compares with the eager one.
        predictor: the exported model, ready to run.
    """

    path: Path
    settings: Settings
    parity: Parity
    predictor: OnnxPredictor


def export_onnx(
    model: nn.Module,
    output_dir: str | os.PathLike[str],
    size: Size,
    cfg: CfgNode,
    batch: Sequence[dict[str, Any]] = (),
) -> ExportResult:
    """Write ``model.onnx`` and ``model.json``, once they are shown to do what the model does.

    The network maps raw pixels "images" (N, 3, H, W), 0..255, to the adapter's dense outputs
    ("P3/logits", ..., "bases"), normalisation included; N, H and W are dynamic, H and W multiples
    of the size divisibility. ``load_onnx`` adds the rest in Python.

    Args:
        model: pruned or not, on any device, in any mode; left untouched.
        output_dir: made if absent; files of an earlier export are replaced.
        size: (height, width) to export at, in pixels: multiples of the size divisibility.
        cfg: the model's config.
        batch: real images as Detectron2 input dicts, to compare both models on. With none, the
            dense outputs are compared on noise and the detections not at all.

    Raises:
        PruneError: the architecture can't be exported, ``size`` is not allowed, a package is missing,
            or the exported model differs from the eager one. No file is written then.
    """
    required("onnx")
    required("onnxscript")
    decoder_of(model)
    dense = DenseModel(model)
    _check_size(size, padding_step(model))
    network, names = _convert(dense, size)
    settings = describe(model, cfg, names)
    parity = check_parity(dense, OnnxPredictor(network, settings, REFERENCE), size, batch)
    logger.info("ONNX equals eager: %s", parity)
    path = _write(Path(output_dir), network, settings)
    return ExportResult(path, settings, parity, OnnxPredictor(network, settings))


def load_onnx(path: str | os.PathLike[str], providers: Sequence[str] | None = None) -> OnnxPredictor:
    """Load what ``export_onnx`` wrote.

    Args:
        path: model.onnx, or the folder that holds it and model.json.
        providers: onnxruntime's execution providers; see ``OnnxPredictor``.

    Raises:
        PruneError: a file is missing or damaged, or the two do not belong together.
    """
    file = Path(path)
    file = file / NETWORK if file.is_dir() else file
    if not file.is_file():
        raise PruneError(f"'{file}' does not exist; expected the {NETWORK} of an export")
    network = file.read_bytes()
    return OnnxPredictor(network, from_json(file.with_suffix(".json"), network), providers)


def _check_size(size: Size, step: int) -> None:
    # torch.export takes an extent of 1 for a constant, so no side may be a single step.
    if len(size) != 2 or any(side % step or side < 2 * step for side in size):
        raise PruneError(
            f"the size to export at is {tuple(size)}; expected (height, width), "
            f"multiples of {step}, at least {2 * step}"
        )


def _convert(dense: DenseModel, size: Size) -> tuple[bytes, list[str]]:
    """Return the serialised network and the names of its outputs.

    The exporter is the torch.export-based one: it proves which extents are free, where the older
    one, deprecated, bakes in whatever sizes Python saw. The opset is the exporter's own default.
    """
    step = padding_step(dense.model)
    images = torch.zeros(2, 3, *size, device=next(dense.parameters()).device)
    with torch.no_grad():
        names = list(dense.outputs(images))
    free = {0: Dim("n"), 2: step * Dim("h"), 3: step * Dim("w")}
    try:
        program = torch.onnx.export(
            dense, (images,), dynamo=True, input_names=[INPUT_NAME], output_names=names,
            dynamic_shapes=(free,), verbose=False,
        )  # fmt: skip
        assert program is not None, "torch.onnx.export returns a program when it is given no file"
        return program.model_proto.SerializeToString(), names
    except RuntimeError as error:  # OnnxExporterError, and what onnxscript raises through the exporter
        raise PruneError(_refusal(dense.model, error)) from error


def _refusal(model: nn.Module, error: BaseException) -> str:
    """Say what failed first, and with which versions: an exporter wants the onnxscript of its own time."""
    while error.__cause__ is not None:
        error = error.__cause__
    reason = str(error).strip().partition("\n")[0]
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "onnxscript", "protobuf"))
    return (
        f"torch.onnx can't convert this {type(model).__name__}: {type(error).__name__}: {reason}. Here are "
        f"{versions}; torch 2.6 needs onnxscript 0.2 and protobuf<7, a newer torch a newer onnxscript"
    )


def _write(folder: Path, network: bytes, settings: Settings) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_write(folder / NETWORK, "wb") as file:
        file.write(network)
    with atomic_write(folder / SETTINGS) as file:
        file.write(to_json(settings, network))
    return folder / NETWORK
