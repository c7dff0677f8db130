"""Adapters for architectures that this package has never heard of."""

from __future__ import annotations

import pytest
import torch
from detectron2.modeling import META_ARCH_REGISTRY
from torch import nn

from d2prune.adapters import Adapter, TraceInput, base, find_adapter, register_adapter
from d2prune.adapters.fcos import FCOSAdapter
from d2prune.pruning import prune


class Toy(nn.Module):
    """A meta-architecture: a list of dicts in, a list of dicts out, losses in training."""

    def __init__(self):
        super().__init__()
        self.register_buffer("pixel_mean", torch.full((3, 1, 1), 100.0), persistent=False)
        self.body = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU())
        self.logits = nn.Conv2d(16, 4, 1)
        self.extra = nn.Conv2d(16, 8, 1)
        self.extra_logits = nn.Conv2d(8, 2, 1)

    def forward(self, batch):
        feature = self.body(torch.stack([item["image"] for item in batch]) - self.pixel_mean)
        if self.training:
            return {"loss": self.extra_logits(self.extra(feature)).mean()}
        return [{"class": int(scores.mean((1, 2)).argmax())} for scores in self.logits(feature)]


class ToyAdapter(Adapter):
    def dense(self, model, images, training_branches):
        feature = model.body(images - model.pixel_mean)
        outputs = {"logits": model.logits(feature)}
        if training_branches:
            outputs["extra"] = model.extra_logits(model.extra(feature))
        return outputs

    def after_resize(self, model):
        model.width = model.logits.in_channels


@pytest.fixture
def registered():
    known = dict(base._ADAPTERS)
    register_adapter(Toy)(ToyAdapter)
    yield
    base._ADAPTERS.clear()
    base._ADAPTERS.update(known)


def test_an_adapter_from_outside_serves(registered):
    torch.manual_seed(0)
    result = prune(Toy(), 0.4, input_size=(32, 48))
    assert result.proof.exact and result.proof.compared == ("logits", "extra")
    assert result.model.width == result.model.logits.in_channels < 16
    item = {"image": torch.rand(3, 32, 32) * 255}
    assert set(result.model.train()([item])) == {"loss"}
    assert len(result.model.eval()([item])) == 1
    assert result.before.macs == 32 * 48 // 4 * (27 * 16 + 16 * 4)


def test_the_nearest_class_wins_and_the_latest_registration(registered):
    class Nearer(Toy):
        pass

    class NearerAdapter(ToyAdapter):
        pass

    assert type(find_adapter(Nearer())) is ToyAdapter
    register_adapter(Nearer)(NearerAdapter)
    assert type(find_adapter(Nearer())) is NearerAdapter
    assert type(find_adapter(Toy())) is ToyAdapter
    register_adapter(Toy)(NearerAdapter)
    assert type(find_adapter(Toy())) is NearerAdapter


def test_a_dotted_path_serves_as_well_and_nothing_is_imported_for_it(registered):
    class Other(Toy):
        pass

    register_adapter(f"{Other.__module__}.{Other.__qualname__}", "no.such.package.Model")(FCOSAdapter)
    assert type(find_adapter(Other())) is FCOSAdapter
    assert type(find_adapter(Toy())) is ToyAdapter


def test_a_forward_function_goes_before_the_adapter(registered):
    trace_input = TraceInput(Toy(), torch.rand(1, 3, 16, 16), lambda model, x: model.body(x))
    assert trace_input.adapter is None


def test_an_adapter_without_dense_is_incomplete():
    with pytest.raises(NotImplementedError):
        Adapter().dense(Toy(), torch.rand(1, 3, 16, 16), True)


def test_registering_leaves_detectron2s_registries_alone(registered):
    assert "Toy" not in META_ARCH_REGISTRY
