"""What is in the zoo: Detectron2's model zoo, d2prune's BlendMask and FCOS, other libraries' models."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from detectron2 import model_zoo
from detectron2.config import instantiate
from detectron2.modeling import build_model
from torch import nn

from d2prune.benchmarks.libraries import LIBRARIES, ZOO, noise_image
from d2prune.config import get_cfg


@dataclass(frozen=True)
class Entry:
    """One architecture.

    Attributes:
        name: what it is called in the table.
        build: makes it, with random weights, on the default device.
        inputs: makes the arguments of its forward; None where an adapter knows.
    """

    name: str
    build: Callable[[], nn.Module]
    inputs: Callable[[], Any] | None = None


def _yaml(path: str) -> nn.Module:
    cfg = model_zoo.get_config(path)
    return _built(cfg)


def _ours(*pairs: Any) -> nn.Module:
    cfg = get_cfg()
    cfg.merge_from_list(list(pairs))
    return _built(cfg)


def _built(cfg: Any) -> nn.Module:
    cfg.MODEL.WEIGHTS = ""
    cfg.MODEL.DEVICE = str(torch.get_default_device())
    return build_model(cfg)


def _python(path: str) -> nn.Module:
    return instantiate(model_zoo.get_config(path).model)


_FCOS_BACKBONE = ("MODEL.BACKBONE.NAME", "build_fcos_resnet_fpn_backbone",
                  "MODEL.RESNETS.OUT_FEATURES", ["res3", "res4", "res5"],
                  "MODEL.FPN.IN_FEATURES", ["res3", "res4", "res5"],
                  "MODEL.PROPOSAL_GENERATOR.NAME", "FCOS", "MODEL.MASK_ON", True)  # fmt: skip
ADELAIDET = {
    f"{arch} R-{depth}": ("MODEL.META_ARCHITECTURE", arch, "MODEL.RESNETS.DEPTH", depth, *_FCOS_BACKBONE)
    for arch in ("BlendMask", "OneStageDetector")
    for depth in (50, 101)
}


def _all() -> dict[str, Entry]:
    found = [Entry(n, partial(_python if n.endswith(".py") else _yaml, n)) for n in ZOO["detectron2"]]
    found += [Entry(n, partial(_ours, *pairs)) for n, pairs in ADELAIDET.items()]
    for label, (build, size) in LIBRARIES.items():
        found.append(Entry(label, build, partial(noise_image, size)))
    return {entry.name: entry for entry in found}


ENTRIES = _all()
QUICK = ("torchvision resnet18", "torchvision shufflenet_v2_x1_0", "torchvision mobilenet_v3_large")
