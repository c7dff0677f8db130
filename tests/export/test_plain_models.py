"""Models that torch.onnx exports still do once they are pruned: nothing of d2prune's is in the way."""

from __future__ import annotations

import pytest
import torch
import torchvision

import d2prune
from tests.core.attentions import Dino, Transformer

MODELS = {
    "resnet18": (lambda: torchvision.models.resnet18(weights=None), torch.rand(1, 3, 64, 64)),
    "DINO's attention": (lambda: Transformer(Dino), torch.rand(1, 7, 8)),
}


@pytest.mark.parametrize("name", MODELS)
def test_onnx_computes_what_the_pruned_model_does(name, tmp_path):
    pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    torch.manual_seed(0)
    make, inputs = MODELS[name]
    model = d2prune.prune(make().eval(), 0.4, example_inputs=inputs).model
    path = str(tmp_path / "model.onnx")
    torch.onnx.export(model, (inputs,), path, dynamo=True, input_names=["inputs"], verbose=False)
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for given in (inputs, 1 - inputs):
        (got,) = session.run(None, {"inputs": given.numpy()})
        with torch.no_grad():
            torch.testing.assert_close(torch.from_numpy(got), model(given), atol=1e-4, rtol=1e-4)
