"""A meta-architecture that Detectron2 has never heard of, with a kind of layer that d2prune hasn't."""

from __future__ import annotations

import torch
from detectron2.modeling import META_ARCH_REGISTRY, build_backbone
from detectron2.modeling.poolers import ROIPooler
from detectron2.structures import Boxes, ImageList
from torch import nn


class Dense(nn.Module):
    """A linear layer that holds its weight as (inputs, outputs)."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(inputs, outputs) / inputs**0.5)
        self.shift = nn.Parameter(torch.zeros(outputs))
        self.outputs = outputs

    def forward(self, x):
        return (x @ self.kernel + self.shift).view(-1, self.outputs)


@META_ARCH_REGISTRY.register()
class MyMetaArch(nn.Module):
    """Scores places, and looks closer at the best; trains with auxiliary scores where MASK_ON says so."""

    def __init__(self, cfg):
        super().__init__()
        self.backbone = build_backbone(cfg)
        shape, self.kept = self.backbone.output_shape()["p3"], 5
        self.tower = nn.Sequential(nn.Conv2d(shape.channels, 32, 3, 1, 1), nn.GroupNorm(8, 32), nn.ReLU())
        self.width = 32
        self.scores = nn.Conv2d(32, 3, 1)
        self.pooler = ROIPooler(4, [1 / shape.stride], 1, "ROIAlignV2")
        self.closer = nn.Sequential(Dense(16 * shape.channels, 24), nn.ReLU(), Dense(24, 6))
        if cfg.MODEL.MASK_ON:
            self.auxiliary = nn.Sequential(nn.Conv2d(shape.channels, 16, 3, 1, 1), nn.Conv2d(16, 2, 1))
        self.register_buffer("pixel_mean", torch.tensor(cfg.MODEL.PIXEL_MEAN).view(-1, 1, 1), False)
        self.register_buffer("pixel_std", torch.tensor(cfg.MODEL.PIXEL_STD).view(-1, 1, 1), False)

    def forward(self, batch):
        images = [(item["image"] - self.pixel_mean) / self.pixel_std for item in batch]
        features = self.backbone(ImageList.from_tensors(images, self.backbone.size_divisibility).tensor)
        scores = self.scores(self.places(features["p3"]))
        found = scores.amax(1).flatten(1).topk(self.kept).indices * 8.0
        boxes = [Boxes(torch.stack([x, x, x + 32, x + 32], dim=1) % 64) for x in found]
        closer = self.closer(self.pooler([features["p3"]], boxes).flatten(1))
        if not self.training:
            return [{"instances": rows.tolist()} for rows in closer.split(self.kept)]
        losses = {"scores": scores.square().mean(), "closer": closer.square().mean()}
        if hasattr(self, "auxiliary"):
            losses["auxiliary"] = self.auxiliary(features["p3"]).square().mean()
        return losses

    def places(self, feature):
        tower = self.tower(feature)
        return tower.view(-1, self.width, *tower.shape[-2:])
