"""Export to ONNX: what comes out of onnxruntime and the decoder is what the eager model gives."""

import json

import pytest
import torch
from detectron2.modeling import build_model
from torch import nn

from d2prune.config import get_cfg
from d2prune.engine.prune import prune
from d2prune.errors import PruneError
from d2prune.export import FORMATS, export_onnx, exporter, load_onnx
from d2prune.export.dense import DenseModel
from d2prune.export.parity import TOLERANCE, check_parity
from d2prune.export.predictor import OnnxPredictor

CONFIG = "configs/BlendMask/digits_R_18.yaml"
SIZE = (128, 128)
SMALL = [
    "MODEL.RESNETS.STEM_OUT_CHANNELS", 8,
    "MODEL.RESNETS.RES2_OUT_CHANNELS", 8,
    "MODEL.FPN.OUT_CHANNELS", 32,
    "MODEL.BASIS_MODULE.CONVS_DIM", 16,
    "MODEL.BASIS_MODULE.NUM_CONVS", 1,
    "MODEL.FCOS.NUM_CLS_CONVS", 0,
    "MODEL.FCOS.NUM_BOX_CONVS", 1,
    "MODEL.FCOS.POST_NMS_TOPK_TEST", 20,
]  # fmt: skip
PANOPTIC = ["MODEL.PANOPTIC_FPN.COMBINE.ENABLED", True, "MODEL.SEM_SEG_HEAD.IN_FEATURES", ["p3"],
            "MODEL.SEM_SEG_HEAD.COMMON_STRIDE", 8, "MODEL.SEM_SEG_HEAD.NUM_CLASSES", 6]  # fmt: skip
FIVE_LEVELS = ["MODEL.FCOS.TOP_LEVELS", 2, "MODEL.FCOS.IN_FEATURES", ["p3", "p4", "p5", "p6", "p7"],
               "MODEL.FCOS.FPN_STRIDES", [8, 16, 32, 64, 128],
               "MODEL.FCOS.SIZES_OF_INTEREST", [64, 128, 256, 512]]  # fmt: skip


def narrow_cfg(pytestconfig, arch, *pairs):
    cfg = get_cfg()
    cfg.merge_from_file(str(pytestconfig.rootpath / CONFIG))
    available = torch.accelerator.is_available()
    device = torch.accelerator.current_accelerator() if available else torch.get_default_device()
    cfg.merge_from_list([*SMALL, "MODEL.META_ARCHITECTURE", arch, "MODEL.DEVICE", str(device)])
    cfg.merge_from_list(list(pairs))
    return cfg


def narrow_model(cfg, pruned):
    """A random model that finds something; its norms do something, too."""
    torch.manual_seed(0)
    model = build_model(cfg)
    head = model.proposal_generator.fcos_head
    nn.init.normal_(head.cls_logits.weight, std=0.3)
    nn.init.zeros_(head.cls_logits.bias)
    nn.init.constant_(head.bbox_pred.bias, 2.0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
    return prune(model, 0.5, input_size=SIZE).model if pruned else model


def batch():
    """Two images of different sizes, one wanted at another size than it has."""
    generator = torch.Generator().manual_seed(1)
    sizes = (96, 120), (128, 104)
    images = [torch.randint(0, 256, (3, *size), generator=generator) for size in sizes]
    items = [{"image": image.to(torch.uint8)} for image in images]
    items[0].update(height=200, width=250)
    return items


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
    return exported(pytestconfig, folder, "OneStageDetector", *FIVE_LEVELS, pruned=False)


def same_detections(model, predictor):
    """Every field of every detection, bit for bit where it is discrete."""
    with torch.no_grad():
        wanted = model.eval()(batch())
    for one, other in zip(wanted, predictor(batch()), strict=True):
        one, other = one["instances"], other["instances"]
        one = one.to(other.scores.device)
        order, rank = one.scores.argsort(stable=True), other.scores.argsort(stable=True)
        one, other = one[order], other[rank]
        assert one.image_size == other.image_size
        assert set(one.get_fields()) == set(other.get_fields())
        assert len(one) > 0
        torch.testing.assert_close(other.scores, one.scores, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(
            other.pred_boxes.tensor, one.pred_boxes.tensor, rtol=1e-4, atol=1e-2
        )
        assert torch.equal(other.pred_classes, one.pred_classes)
        if one.has("pred_masks"):
            assert (one.pred_masks != other.pred_masks).float().mean() < 1e-3


def test_dense_outputs_agree_at_two_sizes(blendmask, fcos):
    for _, result, _ in (blendmask, fcos):
        assert len(set(result.parity.sizes)) == 2
        assert list(result.parity.errors) == result.settings["outputs"]
        assert max(result.parity.errors.values()) <= TOLERANCE


def test_outputs_have_adelaidets_names(blendmask, fcos):
    names = blendmask[1].settings["outputs"]
    heads = ("logits", "bbox_reg", "centerness", "top_feats")
    assert set(names) == {"bases", *(f"P{i}/{head}" for i in (3, 4, 5) for head in heads)}
    assert "P7/bbox_reg" in fcos[1].settings["outputs"]


def test_detections_of_a_pruned_blendmask_agree(blendmask):
    model, result, folder = blendmask
    assert result.parity.mismatches == 0
    assert result.parity.detections > 0
    same_detections(model, load_onnx(folder))


def test_detections_of_fcos_agree(fcos):
    model, result, folder = fcos
    same_detections(model, load_onnx(folder / "model.onnx"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arch", "pruned", "pairs"),
    [
        ("BlendMask", False, []),
        ("OneStageDetector", True, FIVE_LEVELS),
        ("BlendMask", True, PANOPTIC),
        ("BlendMask", False, ["MODEL.FCOS.NORM", "BN", "MODEL.FCOS.NUM_SHARE_CONVS", 1]),
    ],
)
def test_other_models_agree(pytestconfig, tmp_path, arch, pruned, pairs):
    model, result, folder = exported(pytestconfig, tmp_path, arch, *pairs, pruned=pruned)
    predictor = load_onnx(folder)
    same_detections(model, predictor)
    for one, other in zip(model(batch()), predictor(batch()), strict=True):
        assert one.keys() == other.keys()
        if "sem_seg" in one:
            wanted = one["sem_seg"].to(other["sem_seg"].device)
            torch.testing.assert_close(other["sem_seg"], wanted, rtol=1e-4, atol=1e-4)


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
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


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


def test_another_model_fails_parity(blendmask):
    model, result, _ = blendmask
    other = DenseModel(model)
    nn.init.normal_(other.model.top_layer.weight)
    with pytest.raises(PruneError, match="output P3/top_feats .* differs"):
        check_parity(other, result.predictor, SIZE, batch())


def test_another_decoder_fails_parity(blendmask):
    model, result, folder = blendmask
    settings = json.loads((folder / "model.json").read_text())
    settings["decoder"]["fcos"]["strides"] = [8, 16, 16]
    wrong = OnnxPredictor((folder / "model.onnx").read_bytes(), settings)
    with pytest.raises(PruneError, match="detections are not the eager model's"):
        check_parity(DenseModel(model), wrong, SIZE, batch())


def test_without_images_parity_says_so(blendmask):
    model, result, _ = blendmask
    parity = check_parity(DenseModel(model), result.predictor, SIZE, [])
    assert "detections not compared" in str(parity)
