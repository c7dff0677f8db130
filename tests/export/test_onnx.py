"""Export to ONNX: what comes out of onnxruntime and the decoder is what the eager model gives."""

import json
from importlib.metadata import version

import pytest
import torch
from torch import nn

from d2prune.errors import PruneError
from d2prune.export import FORMATS, export_onnx, exporter, load_onnx
from d2prune.export.dense import DenseModel
from d2prune.export.parity import TOLERANCE, check_parity
from d2prune.export.predictor import OnnxPredictor
from tests.each import each
from tests.export.narrow_models import (
    FIVE_LEVELS,
    PANOPTIC,
    SHARED_TOWERS,
    SIZE,
    batch,
    narrow_cfg,
    narrow_model,
    same_results,
)


def exported(pytestconfig, folder, arch, *pairs, pruned):
    cfg = narrow_cfg(pytestconfig, arch, *pairs)
    model = narrow_model(cfg, pruned).train()
    return model, export_onnx(model, folder, SIZE, cfg, batch()), folder


@pytest.fixture(scope="module")
def blendmask(pytestconfig, tmp_path_factory):
    folder = tmp_path_factory.mktemp("blendmask")
    return exported(pytestconfig, folder, "BlendMask", pruned=True)


@pytest.fixture(scope="module")
def fcos(pytestconfig, tmp_path_factory):
    folder = tmp_path_factory.mktemp("fcos")
    return exported(pytestconfig, folder, "OneStageDetector", pruned=False)


def test_dense_outputs_agree_at_two_sizes(blendmask, fcos):
    for _, result, _ in (blendmask, fcos):
        assert len(set(result.parity.sizes)) == 2
        assert list(result.parity.errors) == result.settings["outputs"]
        assert max(result.parity.errors.values()) <= TOLERANCE


def test_outputs_have_adelaidets_names(blendmask, fcos):
    names = blendmask[1].settings["outputs"]
    heads = ("logits", "bbox_reg", "centerness", "top_feats")
    assert set(names) == {"bases", *(f"P{i}/{head}" for i in (3, 4, 5) for head in heads)}
    assert "P5/bbox_reg" in fcos[1].settings["outputs"]


def test_detections_of_a_pruned_blendmask_agree(blendmask):
    model, result, folder = blendmask
    assert result.parity.mismatches == 0
    assert result.parity.detections > 0
    same_results(model, load_onnx(folder))


def test_detections_of_fcos_agree(fcos):
    model, result, folder = fcos
    same_results(model, load_onnx(folder / "model.onnx"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arch", "pruned", "pairs"),
    [
        ("BlendMask", False, []),
        ("OneStageDetector", True, FIVE_LEVELS),
        ("BlendMask", True, PANOPTIC),
        ("BlendMask", False, SHARED_TOWERS),
    ],
)
def test_other_models_agree(pytestconfig, tmp_path, arch, pruned, pairs):
    model, _, folder = exported(pytestconfig, tmp_path, arch, *pairs, pruned=pruned)
    same_results(model, load_onnx(folder))


def test_batch_and_size_are_dynamic(blendmask):
    predictor = blendmask[1].predictor
    for count, height, width in ((1, 64, 96), (3, 160, 64)):
        bases = predictor.dense(torch.zeros(count, 3, height, width))["bases"]
        assert bases.shape == (count, 4, height // 4, width // 4)


def test_model_passed_in_is_untouched(pytestconfig):
    model = narrow_model(narrow_cfg(pytestconfig, "BlendMask"), pruned=False).half().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    dense = DenseModel(model)
    assert not any(module.training for module in dense.modules())
    assert {parameter.dtype for parameter in dense.parameters()} == {torch.float32}
    assert all(module.training for module in model.modules())
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert all(torch.equal(before[name], value) for name, value in each(model.state_dict().items()))


def test_padding_is_zero_once_normalised(blendmask):
    model, result, _ = blendmask
    padded = result.predictor.pad([item["image"] for item in batch()])
    eager = model.preprocess_image(batch())
    assert padded.image_sizes == eager.image_sizes
    mean, std = model.pixel_mean.to(padded.tensor), model.pixel_std.to(padded.tensor)
    assert torch.equal((padded.tensor - mean) / std, eager.tensor.to(padded.tensor.device))


def test_settings_are_plain_and_complete(blendmask):
    _, result, folder = blendmask
    settings = json.loads((folder / "model.json").read_text())
    assert settings.pop("sha256")
    assert settings == json.loads(json.dumps(result.settings))
    assert settings["input"]["size_divisibility"] == 32
    assert settings["decoder"]["fcos"]["strides"] == [8, 16, 32]
    assert settings["decoder"]["blender"]["attention_size"] == 7


def copied(folder, target):
    for name in ("model.onnx", "model.json"):
        (target / name).write_bytes((folder / name).read_bytes())
    return target


def test_settings_of_another_network_are_refused(blendmask, tmp_path):
    folder = copied(blendmask[2], tmp_path)
    with (folder / "model.onnx").open("ab") as file:
        file.write(b" ")
    with pytest.raises(PruneError, match="belongs to another network"):
        load_onnx(folder)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not the settings of an export"),
        ("[]", "is not the settings of an export"),
        ('{"version": 99, "sha256": ""}', "has version 99; expected 1"),
        (None, "model.json' does not exist"),
    ],
)
def test_bad_settings_are_refused(blendmask, tmp_path, text, message):
    folder = copied(blendmask[2], tmp_path)
    (folder / "model.json").unlink()
    if text is not None:
        (folder / "model.json").write_text(text)
    with pytest.raises(PruneError, match=message):
        load_onnx(folder)


def test_missing_network_is_named(tmp_path):
    with pytest.raises(PruneError, match="model.onnx' does not exist"):
        load_onnx(tmp_path)


def test_unknown_format_lists_the_formats():
    with pytest.raises(PruneError, match=f"'caffe2'; expected one of: {', '.join(FORMATS)}"):
        exporter("caffe2")


def test_architecture_without_decoder_is_refused(pytestconfig, tmp_path):
    with pytest.raises(PruneError, match="Sequential can't be exported.*BlendMask"):
        export_onnx(nn.Sequential(), tmp_path, SIZE, narrow_cfg(pytestconfig, "BlendMask"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("size", [(100, 128), (32, 128), (128,)])
def test_size_must_fit_the_network(pytestconfig, tmp_path, size):
    cfg = narrow_cfg(pytestconfig, "BlendMask")
    with pytest.raises(PruneError, match=r"expected \(height, width\), multiples of 32"):
        export_onnx(narrow_model(cfg, pruned=False), tmp_path, size, cfg)


class Unwritable:
    """A program that onnxscript can't write, as protobuf 7 has none of torch 2.6's with a MaxPool written."""

    @property
    def model_proto(self):
        raise RuntimeError("can't be written") from TypeError("expected an int, got a boolean.\nmore")


def fails(*_, **__):
    raise torch.onnx.OnnxExporterError("step 3/3") from AttributeError("no attribute 'dtype'")


@pytest.mark.parametrize(
    "export, first",
    [
        (fails, "AttributeError: no attribute 'dtype'"),
        (lambda *_, **__: Unwritable(), "TypeError: expected an int"),
    ],
)
def test_a_failure_is_told_with_its_first_cause_and_the_versions(
    pytestconfig, tmp_path, monkeypatch, export, first
):
    cfg = narrow_cfg(pytestconfig, "BlendMask")
    model = narrow_model(cfg, pruned=False)
    monkeypatch.setattr(torch.onnx, "export", export)
    with pytest.raises(PruneError, match=first) as error:
        export_onnx(model, tmp_path / "out", SIZE, cfg)
    versions = f"torch {version('torch')}, onnxscript {version('onnxscript')}, protobuf {version('protobuf')}"
    assert versions in str(error.value) and "more" not in str(error.value).partition("Here")[0]
    assert not (tmp_path / "out").exists()


def test_another_model_fails_parity(blendmask):
    model, result, _ = blendmask
    other = DenseModel(model)
    nn.init.normal_(other.model.top_layer.weight)
    with pytest.raises(PruneError, match="output P3/top_feats .* differs"):
        check_parity(other, result.predictor, SIZE, batch())


def test_another_decoder_fails_parity(blendmask):
    model, result, folder = blendmask
    settings = json.loads((folder / "model.json").read_text())
    settings["decoder"]["fcos"]["strides"] = [16, 16, 32]
    wrong = OnnxPredictor((folder / "model.onnx").read_bytes(), settings)
    with pytest.raises(PruneError, match="detections are not the eager model's"):
        check_parity(DenseModel(model), wrong, SIZE, batch())


def test_without_images_parity_says_so(blendmask):
    model, result, _ = blendmask
    parity = check_parity(DenseModel(model), result.predictor, SIZE, [])
    assert "detections not compared" in str(parity)
