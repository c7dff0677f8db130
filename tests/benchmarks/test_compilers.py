"""tools/plain.py: a pruned model can still be traced, compiled and exported, and what can't is told apart."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn

from d2prune.benchmarks import compilers
from d2prune.benchmarks.compilers import HEAD, WAYS, measure_plainness
from d2prune.benchmarks.entries import Entry
from d2prune.benchmarks.libraries import noise_image

WITHOUT_ONNX = {name: way for name, way in WAYS.items() if name != "ONNX"}


def vit():
    timm = pytest.importorskip("timm", reason="timm is not installed")
    return timm.create_model("vit_tiny_patch16_224", pretrained=False, img_size=32, depth=1)


def entry(build, size=32):
    return Entry("made up", build, partial(noise_image, size))


def test_a_pruned_transformer_runs_in_every_way(monkeypatch):
    monkeypatch.setattr(compilers, "WAYS", WITHOUT_ONNX)
    found = measure_plainness(entry(vit))
    assert found.attributes > 0 and found.hooks == 0
    assert found.ways == {"jit.trace": "equal", "compile": "equal", "export": "equal"}


@pytest.mark.filterwarnings("default")  # what d2prune's own modules warn of is an error else
def test_a_pruned_transformer_is_the_same_by_onnxruntime(monkeypatch):
    for needed in ("onnxruntime", "onnxscript"):
        pytest.importorskip(needed, reason=f"{needed} is not installed")
    monkeypatch.setattr(compilers, "WAYS", {"ONNX": WAYS["ONNX"]})
    found = measure_plainness(entry(vit))
    assert found.ways == {"ONNX": "equal"}


class Net(nn.Module):
    """Two convolutions; ``forward`` of a ``breaking`` one leaves what can be compiled."""

    def __init__(self, breaking=False):
        super().__init__()
        self.one, self.two, self.breaking = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 4, 1), breaking

    def forward(self, x):
        if self.breaking:
            torch._dynamo.graph_break()
        return self.two(self.one(x).relu())


def test_a_way_that_the_unpruned_model_can_not_take_either_is_told_apart(monkeypatch):
    monkeypatch.setattr(compilers, "WAYS", WITHOUT_ONNX)
    found = measure_plainness(entry(partial(Net, breaking=True)))
    assert found.ways["jit.trace"] == "equal" and found.ways["compile"] == "as unpruned: fails"


def width(model, x):
    """Of the layer that is cut."""
    return model.model.one.out_channels


def only_whole(model, x):
    if width(model, x) < 16:
        raise ValueError("narrow\nand more")
    return model(x)


def off(model, x):
    return [out * 1.5 for out in model(x)]


@pytest.mark.parametrize("way, said", [(only_whole, "narrow"), (off, "differs by 5e-01")])
def test_a_way_that_only_the_pruned_model_can_not_take_is_said(monkeypatch, way, said):
    monkeypatch.setattr(compilers, "WAYS", {"way": way})
    found = measure_plainness(entry(Net))
    assert said in found.ways["way"] and "more" not in found.ways["way"]


def test_a_line_of_the_table_has_a_cell_for_each_heading(monkeypatch):
    monkeypatch.setattr(compilers, "WAYS", {name: lambda model, x: model(x) for name in WAYS})
    cells = measure_plainness(entry(Net)).cells()
    assert dict(zip(HEAD, cells, strict=True))["calls"] == "0" and cells[-len(WAYS) :] == ("equal",) * len(
        WAYS
    )
