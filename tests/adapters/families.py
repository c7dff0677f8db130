"""What every family of models must stand, and the small models and batches that it is tried on."""

from __future__ import annotations

import copy
import importlib
import importlib.util
import sys
import types

import torch
from detectron2 import model_zoo
from detectron2.config import CfgNode, LazyCall, LazyConfig, instantiate
from detectron2.layers import CNNBlockBase, ShapeSpec
from detectron2.modeling import build_model
from detectron2.modeling.backbone import BasicStem, BottleneckBlock, RegNet, ResNet
from detectron2.modeling.backbone.regnet import ResBottleneckBlock, SimpleStem
from detectron2.structures import Keypoints
from detectron2.utils.events import EventStorage
from omegaconf import OmegaConf

import d2prune
from d2prune.adapters import TraceInput
from d2prune.core.plan.costs import measure
from d2prune.lazy.config_format import LazyFormat
from tests.each import each
from tests.modeling.small_models import training_batch

SIZE = (128, 192)
SMALL = {
    "MODEL.RESNETS.WIDTH_PER_GROUP": 8,
    "MODEL.RESNETS.STEM_OUT_CHANNELS": 8,
    "MODEL.RESNETS.RES2_OUT_CHANNELS": 32,
    "MODEL.FPN.OUT_CHANNELS": 32,
    "MODEL.ROI_HEADS.NUM_CLASSES": 5,
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 16,
    "MODEL.RPN.POST_NMS_TOPK_TRAIN": 50,
    "MODEL.RPN.POST_NMS_TOPK_TEST": 50,
    "MODEL.ROI_BOX_HEAD.FC_DIM": 64,
    "MODEL.ROI_MASK_HEAD.CONV_DIM": 32,
    "MODEL.ROI_KEYPOINT_HEAD.CONV_DIMS": [32, 32],
    "MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS": 4,
    "MODEL.RETINANET.NUM_CLASSES": 5,
    "MODEL.RETINANET.NUM_CONVS": 2,
    "MODEL.SEM_SEG_HEAD.NUM_CLASSES": 6,
    "MODEL.SEM_SEG_HEAD.CONVS_DIM": 32,
    "TEST.DETECTIONS_PER_IMAGE": 10,
}
R18 = {
    "MODEL.BACKBONE.NAME": "build_narrow_resnet_fpn_backbone",
    "MODEL.RESNETS.DEPTH": 18,
    "MODEL.RESNETS.RES2_OUT_CHANNELS": 8,
}


def small_zoo_cfg(name: str, *changes: dict) -> CfgNode:
    """A model of Detectron2's zoo with everything small."""
    return shrunk(model_zoo.get_config(name), *changes)


def shrunk(cfg: CfgNode, *changes: dict) -> CfgNode:
    cfg.MODEL.DEVICE = str(torch.get_default_device())
    cfg.MODEL.WEIGHTS = ""
    for change in (SMALL, *changes):
        cfg.merge_from_list([x for pair in change.items() for x in pair])
    return cfg


def small_regnet(**options):
    """RegNet with grouped convolutions (Y, with squeeze-excite, given an ``se_ratio``): 8, 16, 32, 64."""
    return LazyCall(RegNet)(
        stem_class=SimpleStem, stem_width=8, block_class=ResBottleneckBlock,
        depth=6, w_a=8, w_0=8, w_m=2, group_width=4, **options,
    )  # fmt: skip


def small_resnet(norm="SyncBN", **options):
    """ResNet with one bottleneck in each stage: 16, 32, 64, 128."""
    stages = [
        LazyCall(ResNet.make_stage)(
            block_class=BottleneckBlock, num_blocks=1, stride_per_block=[min(width // 16, 2)], norm=norm,
            in_channels=max(8, width // 2), bottleneck_channels=width // 4, out_channels=width,
        )
        for width in (16, 32, 64, 128)
    ]  # fmt: skip
    stem = LazyCall(BasicStem)(in_channels=3, out_channels=8, norm=norm)
    outputs = ["res2", "res3", "res4", "res5"]
    return LazyCall(ResNet)(stem=stem, stages=stages, out_features=outputs, **options)


def narrow_rcnn(cfg, width: int = 32):
    """The neck and heads of a Python config's R-CNN, cascaded or not, made small."""
    cfg.backbone.out_channels = cfg.proposal_generator.head.in_channels = width
    cfg.proposal_generator.update(pre_nms_topk=(100, 100), post_nms_topk=(50, 50))
    heads = cfg.roi_heads
    heads.num_classes, heads.batch_size_per_image = 5, 16
    for head in heads.box_heads if "box_heads" in heads else [heads.box_head]:
        head.conv_dims, head.fc_dims = [width] * min(1, len(head.conv_dims)), [64]
        head.input_shape = ShapeSpec(channels=width, height=7, width=7)
    for predictor in heads.box_predictors if "box_predictors" in heads else [heads.box_predictor]:
        predictor.input_shape, predictor.test_topk_per_image = ShapeSpec(channels=64), 10
    heads.mask_head.input_shape = ShapeSpec(channels=width, height=14, width=14)
    heads.mask_head.conv_dims = [width, width]
    return cfg


def build(cfg: CfgNode) -> torch.nn.Module:
    return lively(build_model(cfg))


def lively(model: torch.nn.Module) -> torch.nn.Module:
    """Norms and statistics as if trained: every channel different."""
    with torch.no_grad():
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            floats = tensor.is_floating_point() and tensor.numel() > 1
            if tensor.dim() == 1 and floats and "pixel" not in name:
                if "bias" not in name:
                    tensor.uniform_(0.5, 1.5)
    return model


def batch():
    """Two images with boxes, masks, keypoints, and a class for every pixel."""
    items = training_batch()
    for item in items:
        gt = item["instances"]
        centers = gt.gt_boxes.get_centers()[:, None].repeat(1, 4, 1)
        gt.gt_keypoints = Keypoints(torch.cat([centers, torch.full((len(gt), 4, 1), 2.0)], dim=2))
        item["sem_seg"] = torch.randint(0, 5, item["image"].shape[-2:])
        item["height"], item["width"] = item["image"].shape[-2:]
    return items


def dense(model):
    with torch.no_grad():
        return TraceInput(model, count_size=SIZE).outputs(model.eval())


def stands(make, path, items=None, amount=0.45, left=()):
    """Prunes a model by ``amount``, proves, saves, loads, trains and runs it.

    Args:
        make: builds the model; called twice.
        path: a folder to write to.
        items: a training batch.
        left: ends of the names of layers that may be left whole.
    """
    result = d2prune.prune(make(), amount, allocation="uniform", input_size=SIZE)
    assert result.proof.exact and result.proof.error <= 1e-9 and result.proof.control_error >= 1e-3
    assert abs(result.reached - amount) <= 0.01
    skipped = [row for row in result.coverage if row.status == "skipped"]
    wide = [row for row in skipped if row.before > 4 or "reached without it" not in row.reason]
    assert [row for row in wide if not row.name.endswith(tuple(left) or "-")] == []
    counted = TraceInput(result.model, count_size=SIZE)
    assert measure(copy.deepcopy(result.model).to("meta").eval(), counted.inference).totals == result.after
    tells_its_widths(result.model)
    d2prune.save(result, path / "pruned.pth")
    loaded = d2prune.load(path / "pruned.pth", make())
    want, got = dense(result.model), dense(loaded)
    assert set(want) == set(got) and all(torch.equal(want[name], got[name]) for name in each(want))
    runs(loaded)
    takes_any_size(loaded)
    trains(loaded, items or batch(), left)
    return result


def takes_any_size(model):
    """A user's images are of no multiple of anything; calibration runs the dense part on them."""
    with torch.no_grad():
        images = [{"image": torch.rand(3, 131, 150) * 255}]
        [outputs] = TraceInput(model).batch(copy.deepcopy(model).eval(), images)
    assert all(value.isfinite().all() for value in each(outputs.values()))


def comes_back(model_config, result, path):
    """The Python config of the pruned model builds it again, weights aside."""
    config = OmegaConf.create(
        {"model": model_config, "train": {}, "prune": {}}, flags={"allow_objects": True}
    )
    (path / "pruning_spec.json").write_text(result.spec.to_json())
    file = LazyFormat(config, "config.py", [], []).write_pruned(CfgNode(), str(path), "x.pth")
    again = instantiate(LazyConfig.load(file).model)
    assert again.prune_spec == result.spec and file.endswith("pruned.yaml")
    shapes = [{n: t.shape for n, t in m.state_dict().items()} for m in (again, result.model)]
    assert shapes[0] == shapes[1]


def tells_its_widths(model):
    for backbone in each(m for m in model.modules() if hasattr(m, "_out_feature_channels")):
        features = backbone.eval()(torch.zeros(1, 3, 64, 64))
        told = {name: shape.channels for name, shape in backbone.output_shape().items()}
        assert told == {name: features[name].shape[1] for name in told}
    blocks = [
        module for module in model.modules() if isinstance(module, CNNBlockBase)
    ]  # not of every backbone
    assert [b for b in blocks if b.out_channels not in [m.out_channels for m in convolutions(b)]] == []


def convolutions(module):
    return [m for m in module.modules() if isinstance(m, torch.nn.Conv2d)]


def trains(model, items, left=()):
    with EventStorage():
        losses = model.train()(items)
    sum(losses.values()).backward()
    assert losses and all(loss.isfinite() for loss in losses.values())
    idle = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert [n for n in idle if not n.rpartition(".")[0].endswith(tuple(left) or "-")] == []


def runs(model):
    """A whole image in, something for it out."""
    image = torch.randint(0, 256, (3, 100, 150), dtype=torch.uint8)
    with torch.no_grad():
        (found,) = model.eval()([{"image": image, "height": 200, "width": 300}])
    assert found
    for value in found.values():
        assert value.shape[-2:] == (200, 300) if torch.is_tensor(value) else value is not None


NOT_FOR_MODELS = ("cv2", "panopticapi", "panopticapi.utils")


def import_project(monkeypatch, name):
    """A project of Detectron2; what only its data pipeline imports may be absent."""
    missing = [n for n in NOT_FOR_MODELS if importlib.util.find_spec(n.partition(".")[0]) is None]
    for needed in missing:
        if needed not in sys.modules:
            stub = types.ModuleType(needed)
            stub.rgb2id, stub.__version__ = None, "0"
            monkeypatch.setitem(sys.modules, needed, stub)
    return importlib.import_module(f"detectron2.projects.{name}")
