"""Meta-architectures without an adapter: pruned inside their parts, and told what was left alone."""

from __future__ import annotations

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.modeling import META_ARCH_REGISTRY, Backbone, build_model
from torch import nn
from torch.nn import functional as F

import d2prune
from d2prune.adapters import TraceInput, base
from d2prune.adapters.generic import GenericAdapter
from d2prune.errors import PruneError
from tests.adapters.families import build, small_zoo_cfg, stands, tells_its_widths
from tests.each import each


def conv(inputs, outputs, stride=1):
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, 1), nn.BatchNorm2d(outputs), nn.ReLU())


class TwoLevels(Backbone):
    def __init__(self):
        super().__init__()
        self.low = nn.Sequential(conv(3, 16, 2), conv(16, 16, 2))
        self.high = nn.Sequential(conv(16, 24), conv(24, 16, 2))
        self._out_features = ["low", "high"]
        self._out_feature_channels = {"low": 16, "high": 16}
        self._out_feature_strides = {"low": 4, "high": 8}

    def forward(self, x):
        low = self.low(x)
        return {"low": low, "high": self.high(low)}


class Head(nn.Module):
    """Shared by the levels."""

    def __init__(self):
        super().__init__()
        self.tower, self.scores = conv(16, 32), nn.Conv2d(32, 4, 1)

    def forward(self, features):
        return [self.scores(self.tower(feature)) for feature in features]


@META_ARCH_REGISTRY.register()
class MadeUp(nn.Module):
    """One place of each image is looked at more closely; training adds a branch on the features."""

    def __init__(self, cfg):
        super().__init__()
        self.backbone, self.head, self.closer, self.extra = TwoLevels(), Head(), nn.Linear(16, 8), conv(16, 4)
        self.register_buffer("pixel_mean", torch.full((3, 1, 1), 100.0), persistent=False)

    def forward(self, batch):
        images = torch.stack([item["image"] - self.pixel_mean for item in batch])
        features = self.backbone(F.pad(images, [0, -images.shape[-1] % 8, 0, -images.shape[-2] % 8]))
        scores = self.head(list(features.values()))
        places = scores[0].amax(1).flatten(1).argmax(1)
        rows = features["low"].flatten(2).transpose(1, 2)
        found = self.closer(
            torch.cat([row[place.repeat(3)] for row, place in zip(rows, places, strict=True)])
        )
        if self.training:
            losses = {"scores": sum(s.mean() for s in scores), "closer": found.mean()}
            return {**losses, "extra": self.extra(features["high"]).mean()}
        return [{"instances": row} for row in found.reshape(len(batch), 1, -1)]


def made_up():
    torch.manual_seed(0)
    cfg = get_cfg()
    cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.DEVICE = "MadeUp", str(torch.get_default_device())
    return build_model(cfg)


def prune(model, **options):
    return d2prune.prune(model, 0.4, allocation="uniform", input_size=(64, 96), **options)


def test_parts_are_pruned_inside_and_what_comes_out_of_them_stays(caplog, tmp_path):
    result = prune(made_up())
    assert result.proof.exact
    assert set(result.proof.compared) == {"backbone.low", "backbone.high", "head.0", "head.1"}
    pruned = {row.name for row in result.coverage if row.status == "pruned"}
    places = ("backbone.low.0", "backbone.high.0", "head.tower")
    assert pruned == {f"{place}.{i}" for place in places for i in (0, 1)}
    left = {row.name: row.reason for row in result.coverage if row.status != "pruned"}
    assert left["backbone.low.1.0"] == "is the model's output 'backbone.low'"
    assert left["closer"] == left["extra.0"] == "was not reached by the trace"
    assert "no adapter for MadeUp: only the inside of backbone, head is pruned" in caplog.text
    tells_its_widths(result.model)
    d2prune.save(result, tmp_path / "pruned.pth")
    loaded = d2prune.load(tmp_path / "pruned.pth", made_up())
    images = torch.rand(2, 3, 64, 64) * 255
    want, got = (m.eval()([{"image": image} for image in images]) for m in (result.model, loaded))
    assert all(torch.equal(a["instances"], b["instances"]) for a, b in each(zip(want, got, strict=True)))
    losses = loaded.train()([{"image": image} for image in images])
    sum(losses.values()).backward()
    assert all(p.grad is not None for p in loaded.parameters())


def test_what_runs_after_a_choice_is_not_counted():
    macs = prune(made_up()).before.macs
    only_parts = 64 * 96 * 27 * 16 // 4 + 64 * 96 // 16 * 9 * (16 * 16 + 16 * 24 + 16 * 32)
    only_parts += 64 * 96 // 64 * 9 * (24 * 16 + 16 * 32) + (64 * 96 // 16 + 64 * 96 // 64) * 32 * 4
    assert macs == only_parts


class Asking(MadeUp):
    """Wants more than images."""

    def forward(self, batch):
        return super().forward([{**item, "text": item["text"].lower()} for item in batch])


class Single(MadeUp):
    """Its forward does not run in float64."""

    def forward(self, batch):
        assert batch[0]["image"].dtype == torch.float32, "images of float32 only"
        return super().forward(batch)


@pytest.mark.parametrize("kind, why", [(Asking, "KeyError: 'text'"), (Single, "AssertionError: images of")])
def test_where_it_does_not_run_its_backbone_is_pruned(kind, why, caplog):
    model = made_up()
    model.__class__ = kind
    result = prune(model)
    assert result.proof.exact and set(result.proof.compared) == {"backbone.low", "backbone.high"}
    assert "only the inside of backbone is pruned" in caplog.text
    assert f"(its own forward does not run on images alone: {why}" in caplog.text
    assert {row.status for row in result.coverage if row.name.startswith("head")} == {"skipped"}


def test_what_is_no_such_model_is_refused_with_the_ways_out():
    with pytest.raises(PruneError, match=r"no adapter for Conv2d: pass example_inputs=.*register.*TypeError"):
        prune(nn.Conv2d(3, 8, 1))
    with pytest.raises(PruneError, match="no adapter for Sequential.*no part of it makes tensors of tensors"):
        prune(nn.Sequential(Silent()))


class Silent(nn.Module):
    """Runs on anything, and gives nothing."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))

    def forward(self, batch):
        return []


def test_inputs_of_ones_own_go_before():
    images = torch.rand(1, 3, 64, 64)
    assert TraceInput(made_up(), [[{"image": images[0]}]]).adapter is None
    assert isinstance(TraceInput(made_up()).adapter, GenericAdapter)


def test_detectron2s_own_models_would_stand_without_their_adapters(monkeypatch, tmp_path):
    monkeypatch.setattr(base, "_ADAPTERS", {})
    change = {"MODEL.RETINANET.NORM": "GN", "MODEL.RETINANET.SCORE_THRESH_TEST": 0.0}
    result = stands(
        lambda: build(small_zoo_cfg("COCO-Detection/retinanet_R_50_FPN_1x.yaml", change)), tmp_path
    )
    assert {name.split(".")[0] for name in result.proof.compared} == {"backbone", "head"}
