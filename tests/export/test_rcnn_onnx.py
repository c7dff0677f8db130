"""Detectron2's own export works on pruned R-CNNs: they are its classes, only narrower."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from detectron2 import model_zoo
from detectron2.export import TracingAdapter

import d2prune
from tests.adapters.families import build, shrunk

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
ZOO = "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml"
LSKNET = {"MODEL.LSKNET.EMBED_DIMS": [8, 16, 16, 24], "MODEL.LSKNET.DEPTHS": [1, 1, 2, 1]}
FILES = {
    "LSKNet": (CONFIGS / "LSKNet" / "faster_rcnn_lsk_s_fpn_1x.yaml", LSKNET),
    "Mask R-CNN": (model_zoo.get_config_file(ZOO), {}),
}


def detections(model, batch):
    return model.inference(batch, do_postprocess=False)[0]


@pytest.mark.filterwarnings("ignore")  # the tracer's own, on Detectron2's code
@pytest.mark.parametrize("name", ["LSKNet", pytest.param("Mask R-CNN", marks=pytest.mark.slow)])
def test_onnx_detects_what_the_pruned_model_does(name, tmp_path):
    pytest.importorskip("onnx", reason="onnx is not installed")
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    file, changes = FILES[name]
    cfg = d2prune.get_cfg()
    cfg.merge_from_file(str(file))
    torch.manual_seed(0)
    whole = build(shrunk(cfg, {"MODEL.DEVICE": "cpu", **changes})).eval()
    model = d2prune.prune(whole, 0.3, input_size=(96, 128)).model.eval()
    first, second = torch.randint(0, 256, (2, 3, 96, 128)).float()
    traced = TracingAdapter(model, [{"image": first}], detections).eval()
    path = str(tmp_path / "model.onnx")
    torch.onnx.export(traced, traced.flattened_inputs, path, dynamo=False, opset_version=16)
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for image in (first, second):
        found = session.run(None, {session.get_inputs()[0].name: image.numpy()})
        with torch.no_grad():
            wanted = traced(image)
        assert len(wanted[0])
        for got, want in zip(found, wanted, strict=True):
            torch.testing.assert_close(torch.from_numpy(got), want, atol=1e-3, rtol=1e-3)
