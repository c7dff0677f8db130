"""Models of torchvision, timm and transformers, as they come; the latter two need not be installed."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import nn

Build = Callable[[], nn.Module]
ZOO = json.loads(Path(__file__).with_name("zoo.json").read_text(encoding="utf-8"))
"""Names of Detectron2's configs, and by library the models: their input's side and their options."""


def noise_image(size: int) -> torch.Tensor:
    """Return one image of noise (1, 3, size, size)."""
    return torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(0))


def _torchvision(name: str, size: int, options: Mapping[str, Any]) -> nn.Module:
    return torchvision.models.get_model(name, weights=None, **options)


def _timm(name: str, size: int, options: Mapping[str, Any]) -> nn.Module:
    model: nn.Module = importlib.import_module("timm").create_model(name, pretrained=False, **options)
    return model


def _transformers(kind: str, size: int, options: Mapping[str, Any]) -> nn.Module:
    """``kind`` with its own configuration, at the size given."""
    library = importlib.import_module("transformers")
    model_class = getattr(library, kind)
    config = model_class.config_class(**options)
    if hasattr(config, "image_size"):
        config.image_size = size if isinstance(config.image_size, int) else [size, size]
    model: nn.Module = model_class(config)
    return model


# Auxiliary classifiers (googlenet, inception_v3) only train: an evaluation does not show what they read.
_BUILDERS = {"torchvision": _torchvision, "timm": _timm, "transformers": _transformers}
LIBRARIES: dict[str, tuple[Build, int]] = {
    f"{library} {name}": (partial(build, name, size, options), size)
    for library, build in _BUILDERS.items()
    for name, (size, options) in ZOO[library].items()
}
