"""An exported network and its decoder, called like a Detectron2 model."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import torch
from detectron2.structures import ImageList
from torch import Tensor

from d2prune.errors import PruneError
from d2prune.export.decode import build_decoder
from d2prune.export.settings import Settings


class OnnxPredictor:
    """Detections from onnxruntime: ``predictor(batch)`` as ``model(batch)`` of the eager model."""

    def __init__(self, network: bytes, settings: Settings, providers: Sequence[str] | None = None) -> None:
        """Open a session; see ``load_onnx``, which reads both from files.

        Args:
            network: the content of model.onnx.
            settings: the content of model.json.
            providers: onnxruntime's execution providers, the preferred one first; by default all
                that this onnxruntime has except TensorRT, which first compiles for minutes.
        """
        runtime = required("onnxruntime")
        options = runtime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()  # it does not read OMP_NUM_THREADS
        self.session = runtime.InferenceSession(
            network, options, providers=list(providers or _providers(runtime))
        )
        self.settings = settings
        self.decoder = build_decoder(settings["decoder"])

    def dense(self, images: Tensor) -> dict[str, Tensor]:
        """Run the network on raw pixels (N, 3, H, W) of a size that it takes; outputs by name."""
        feed = {self.settings["input"]["name"]: images.float().numpy(force=True)}
        names = self.settings["outputs"]
        arrays = self.session.run(names, feed)
        return {n: torch.from_numpy(array) for n, array in zip(names, arrays, strict=True)}

    @torch.no_grad()
    def __call__(self, batch: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Detect.

        Args:
            batch: per image "image" (3, H, W), raw pixels in the order of the settings' "format",
                and optionally "height" and "width" of the output, in pixels.

        Returns:
            Per image {"instances": Instances}, in host memory.
        """
        images = self.pad([item["image"] for item in batch])
        sizes = images.image_sizes
        wanted = [
            (item.get("height", size[0]), item.get("width", size[1]))
            for item, size in zip(batch, sizes, strict=True)
        ]
        return self.decoder(self.dense(images.tensor), sizes, wanted)

    def pad(self, images: list[Tensor]) -> ImageList:
        """Pad at the bottom and right to one size that the network takes."""
        how = self.settings["input"]
        constraints = {key: how[key] for key in ("size_divisibility", "square_size")}
        padded = ImageList.from_tensors([image.float() for image in images], padding_constraints=constraints)
        fill = padded.tensor.new_tensor(how["pad_value"])[:, None, None]
        for image, (height, width) in zip(padded.tensor, padded.image_sizes, strict=True):
            image[:, height:] = fill
            image[:, :, width:] = fill
        return padded


def required(package: str) -> ModuleType:
    """Import an optional package.

    Raises:
        PruneError: it is not installed.
    """
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise PruneError(
            f"ONNX needs the package {package!r} ({error}); pip install 'd2prune[export]'"
        ) from error


def _providers(runtime: ModuleType) -> list[str]:
    return [name for name in runtime.get_available_providers() if "Tensorrt" not in name]
