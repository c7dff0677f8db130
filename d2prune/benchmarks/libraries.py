"""Models of torchvision, timm and transformers, as they come; the latter two need not be installed."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
import torchvision
from torch import nn

Build = Callable[[], nn.Module]


def noise_image(size: int) -> torch.Tensor:
    """Return one image of noise (1, 3, size, size)."""
    return torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(0))


def _torchvision(name: str) -> nn.Module:
    # Auxiliary classifiers only train: an evaluation does not show what they read.
    auxiliary = name in ("googlenet", "inception_v3")
    options = {"init_weights": True, "aux_logits": False} if auxiliary else {}
    return torchvision.models.get_model(name, weights=None, **options)


def _timm(name: str, options: Mapping[str, Any]) -> nn.Module:
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


TORCHVISION = {
    "alexnet": 96, "convnext_tiny": 96, "densenet121": 96, "efficientnet_b0": 96,
    "efficientnet_v2_s": 96, "googlenet": 96, "inception_v3": 128, "maxvit_t": 224, "mnasnet1_0": 96,
    "mobilenet_v2": 96, "mobilenet_v3_large": 96, "regnet_x_400mf": 96, "regnet_y_400mf": 96,
    "resnet18": 96, "resnet50": 96, "resnext50_32x4d": 96, "shufflenet_v2_x1_0": 96,
    "squeezenet1_1": 96, "swin_t": 224, "swin_v2_t": 224, "vgg11_bn": 96, "vit_b_16": 224,
    "wide_resnet50_2": 96,
}  # fmt: skip
TIMM: dict[str, tuple[int, dict[str, Any]]] = {
    "beit_base_patch16_224": (96, {"img_size": 96, "depth": 4}),
    "cait_xxs24_224": (96, {"img_size": 96, "depth": 4}),
    "convnextv2_nano": (96, {}),
    "deit_small_distilled_patch16_224": (96, {"img_size": 96}),
    "dla34": (96, {}),
    "edgenext_xx_small": (96, {}),
    "efficientformer_l1": (224, {}),
    "eva02_tiny_patch14_224": (56, {"img_size": 56}),
    "fastvit_t8": (96, {}),
    "ghostnet_100": (96, {}),
    "hrnet_w18_small": (96, {}),
    "levit_128s": (224, {}),
    "mobilenetv4_conv_small": (96, {}),
    "mobilevit_xxs": (96, {}),
    "mvitv2_tiny": (96, {"img_size": 96}),
    "pvt_v2_b0": (96, {}),
    "repvit_m0_9": (96, {}),
    "swin_tiny_patch4_window7_224": (224, {}),
    "swinv2_tiny_window8_256": (256, {}),
    "vit_base_patch16_224": (96, {"img_size": 96}),
    "vit_small_patch14_dinov2": (98, {"img_size": 98}),
    "xcit_nano_12_p16_224": (96, {}),
}
TRANSFORMERS: dict[str, tuple[int, dict[str, Any]]] = {
    "BeitModel": (96, {}),
    "ConvNextV2Model": (96, {}),
    "DFineForObjectDetection": (160, {"num_denoising": 0}),
    "DPTModel": (96, {"is_hybrid": False}),
    "Dinov2Model": (98, {}),
    "MobileViTModel": (96, {}),
    "PvtV2Model": (96, {}),
    "RTDetrV2ForObjectDetection": (160, {"num_denoising": 0, "anchor_image_size": None}),
    "ResNetModel": (96, {}),
    "SegformerModel": (96, {}),
    "SwinModel": (224, {}),
    "ViTModel": (96, {}),
    "VitDetModel": (128, {"use_relative_position_embeddings": True}),
    "YolosModel": (128, {"num_hidden_layers": 4}),
}

LIBRARIES: dict[str, tuple[Build, int]] = {
    **{f"torchvision {n}": (partial(_torchvision, n), size) for n, size in TORCHVISION.items()},
    **{f"timm {n}": (partial(_timm, n, more), size) for n, (size, more) in TIMM.items()},
    **{
        f"transformers {n}": (partial(_transformers, n, size, more), size)
        for n, (size, more) in TRANSFORMERS.items()
    },
}
