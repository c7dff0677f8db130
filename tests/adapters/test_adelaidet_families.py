"""AdelaiDet's other architectures and backbones, with its own classes: runs only where it is installed."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import Keypoints
from torch import nn
from torchvision.ops import roi_align

import d2prune
from d2prune.adapters import TraceInput
from d2prune.adapters.shapes import refresh_shapes
from d2prune.errors import PruneError
from d2prune.modeling import HAS_ADELAIDET, basis_sem_from_instances
from tests.adapters.families import SIZE, batch, dense, lively, stands, trains
from tests.each import each
from tests.modeling.small_models import PANOPTIC, small_cfg

if not HAS_ADELAIDET:
    pytest.skip("AdelaiDet (adet.modeling) can't be imported here", allow_module_level=True)

SMALL_FCOS = {"MODEL.FCOS.USE_SCALE": True, "MODEL.FCOS.INFERENCE_TH_TEST": 0.0}
CONDINST = {
    **SMALL_FCOS,
    "MODEL.CONDINST.MASK_BRANCH.CHANNELS": 16,
    "MODEL.CONDINST.MASK_BRANCH.NUM_CONVS": 2,
    "MODEL.CONDINST.MAX_PROPOSALS": 20,
}
SEMANTIC = {**CONDINST, "MODEL.CONDINST.MASK_BRANCH.SEMANTIC_LOSS_ON": True}
BOXINST = {**CONDINST, "MODEL.BOXINST.ENABLED": True, "MODEL.CONDINST.MASK_BRANCH.OUT_CHANNELS": 16}
SOLOV2 = {
    "MODEL.BACKBONE.NAME": "build_narrow_resnet_fpn_backbone",
    "MODEL.RESNETS.OUT_FEATURES": ["res2", "res3", "res4", "res5"],
    "MODEL.FPN.IN_FEATURES": ["res2", "res3", "res4", "res5"],
    "MODEL.SOLOV2.INSTANCE_IN_CHANNELS": 32,
    "MODEL.SOLOV2.MASK_IN_CHANNELS": 32,
    "MODEL.SOLOV2.INSTANCE_CHANNELS": 64,
    "MODEL.SOLOV2.NUM_INSTANCE_CONVS": 2,
    "MODEL.SOLOV2.MASK_CHANNELS": 64,
    "MODEL.SOLOV2.NUM_KERNELS": 32,
    "MODEL.SOLOV2.NUM_MASKS": 32,
    "MODEL.SOLOV2.NUM_CLASSES": 5,
    "MODEL.SOLOV2.SCORE_THR": 0.0,
}
RES345 = ["res3", "res4", "res5"]
BIFPN = {
    "MODEL.BACKBONE.NAME": "build_fcos_resnet_bifpn_backbone",
    "MODEL.BACKBONE.FREEZE_AT": 0,
    "MODEL.RESNETS.WIDTH_PER_GROUP": 8,
    "MODEL.RESNETS.DEPTH": 50,
    "MODEL.BiFPN.IN_FEATURES": RES345,
    "MODEL.BiFPN.OUT_CHANNELS": 32,
    "MODEL.BiFPN.NUM_REPEATS": 2,
    "MODEL.BiFPN.NORM": "BN",
}
BACKBONES = {
    "bifpn": BIFPN,
    "mobilenet bifpn": {**BIFPN, "MODEL.MOBILENET": True},
    "mobilenet": {
        "MODEL.BACKBONE.NAME": "build_fcos_resnet_fpn_backbone",
        "MODEL.MOBILENET": True,
        "MODEL.BACKBONE.FREEZE_AT": 0,
    },
    "vovnet": {
        "MODEL.BACKBONE.NAME": "build_fcos_vovnet_fpn_backbone",
        "MODEL.BACKBONE.FREEZE_AT": -1,
        "MODEL.VOVNET.CONV_BODY": "V-19-eSE",
        "MODEL.VOVNET.NORM": "BN",
        "MODEL.FPN.IN_FEATURES": ["stage3", "stage4", "stage5"],
    },
    "dla": {
        "MODEL.BACKBONE.NAME": "build_fcos_dla_fpn_backbone",
        "MODEL.BACKBONE.FREEZE_AT": -1,
        "MODEL.DLA.NORM": "BN",
        "MODEL.FPN.IN_FEATURES": ["level3", "level4", "level5"],
    },
}
MEINST = {
    "MODEL.PROPOSAL_GENERATOR.NAME": "MEInst",
    "MODEL.MEInst.NUM_CLASSES": 1,
    "MODEL.MEInst.DIM_MASK": 8,
    "MODEL.MEInst.NUM_CLS_CONVS": 1,
    "MODEL.MEInst.NUM_BOX_CONVS": 1,
    "MODEL.MEInst.NUM_MASK_CONVS": 1,
}
FCPOSE = {
    "MODEL.PROPOSAL_GENERATOR.NAME": "FCPose",
    "MODEL.FPN.OUT_CHANNELS": 256,
    "MODEL.FCPOSE.BASIS_MODULE.CONVS_DIM": 32,
    "MODEL.FCPOSE.BASIS_MODULE.BN_TYPE": "BN",
}
BATEXT = {
    "MODEL.BACKBONE.NAME": "build_fcos_narrow_resnet_fpn_backbone",
    "MODEL.PROPOSAL_GENERATOR.NAME": "BAText",
    "MODEL.ROI_HEADS.NAME": "TextHead",
    "MODEL.RESNETS.OUT_FEATURES": ["res2", "res3", "res4", "res5"],
    "MODEL.FPN.IN_FEATURES": ["res2", "res3", "res4", "res5"],
    "MODEL.BATEXT.CONV_DIM": 32,
    "MODEL.FCOS.NUM_CLASSES": 1,
}
FAMILIES = {
    "condinst": ("CondInst", CONDINST),
    "condinst with semantic loss": ("CondInst", SEMANTIC),
    "boxinst": ("CondInst", BOXINST),
    "solov2": ("SOLOv2", SOLOV2),
    **{name: ("OneStageDetector", {**SMALL_FCOS, **change}) for name, change in BACKBONES.items()},
}


# FCOS' scales and the weights that a BiFPN fuses its inputs with hold no channels; DLA computes two
# projections that nothing reads.
LEFT = (
    *(f".scales.{i}" for i in range(5)),
    *(f".repeated_bifpn.{i}" for i in range(2)),
    ".mask_encoding",
    ".fcpose_head",
    *(f"level{level}.project.{i}" for level in (3, 4) for i in (0, 1)),
)


def make(arch, change):
    cfg = small_cfg(*(x for pair in change.items() for x in pair), arch=arch)
    return lively(build_model(cfg))


def one_class(**fields):
    """A batch of one class; ``fields`` are made for each image's instances."""
    items = batch()
    for item in items:
        gt = item["instances"]
        gt.gt_classes.zero_()
        for name, field in fields.items():
            gt.set(name, field(gt))
    return items


def heatmaps(stride):
    """(N, 17, H / stride, W / stride) with one place for each keypoint."""

    def make_maps(gt):
        maps = torch.zeros(len(gt), 17, *(size // stride for size in gt.image_size))
        maps[..., 5, 5] = 1
        return maps

    return make_maps


def beziers(gt):
    """(N, 16): four control points along the upper edge of each box, four back along the lower one."""
    x0, y0, x1, y1 = gt.gt_boxes.tensor.unbind(1)
    along = [x0 + (x1 - x0) * part for part in (0, 0.33, 0.66, 1)]
    points = [*((x, y0) for x in along), *((x, y1) for x in reversed(along))]
    return torch.stack([value for point in points for value in point], dim=1)


@pytest.mark.parametrize("family", FAMILIES)
def test_families_stand(family, tmp_path):
    result = stands(lambda: make(*FAMILIES[family]), tmp_path, amount=0.5, left=LEFT)
    struct = torch.load(tmp_path / "pruned.pth", weights_only=False)["struct"]
    want, got = dense(result.model), dense(struct)
    assert type(struct).__module__.startswith("adet.")
    assert want.keys() == got.keys() and all(torch.equal(want[name], got[name]) for name in each(want))


class Distance(nn.Module):
    def forward(self, boxes, targets, weights):
        return ((boxes - targets).abs().sum(1) * weights).sum()


def test_meinst_stands(tmp_path):
    """One class, because with more AdelaiDet's own inference fails on a view that newer torch refuses; and a
    loss of our own, because it calls its own in a way that this no longer has."""
    path = tmp_path / "components.npz"
    parts = {"components_c": (8, 28 * 28), "explained_variance_c": (8,), "mean_c": (28 * 28,)}
    np.savez(path, **{name: np.random.rand(1, *shape) for name, shape in parts.items()})
    change = {**MEINST, "MODEL.MEInst.PATH_COMPONENTS": str(path)}

    def make_meinst():
        model = make("OneStageDetector", change)
        model.proposal_generator.iou_loss = Distance()
        return model

    stands(make_meinst, tmp_path, one_class(), amount=0.5, left=LEFT)


def test_fcpose_stands(tmp_path):
    maps = {"keypoint_heatmap": heatmaps(2), "p3_output_list": heatmaps(8), "head_heatmap": heatmaps(2)}
    items = one_class(**maps, gt_keypoints=lambda gt: Keypoints(torch.full((len(gt), 17, 3), 10.0)))
    result = stands(lambda: make("OneStageDetector", FCPOSE), tmp_path, items[:1], amount=0.5, left=LEFT)
    filters = result.model.proposal_generator.fcpose_head.atten_producer
    tower = result.model.proposal_generator.fcos.fcos_head.bbox_tower[0]
    assert filters.in_features == 9 * tower.out_channels < 9 * 256 and filters.out_features == 2737


@pytest.mark.parametrize("recognizer", ["attn", "rnn"])
def test_batext_stands(recognizer, tmp_path, monkeypatch):
    """Compiled parts and a method that newer Detectron2 asks for have stand-ins."""
    compiled = sys.modules["adet._C"]
    monkeypatch.setattr(compiled, "bezier_align_forward", align_boxes, raising=False)
    monkeypatch.setattr(compiled, "bezier_align_backward", no_gradient, raising=False)
    monkeypatch.setattr("adet.structures.beziers.Beziers.__len__", lambda b: len(b.tensor), raising=False)
    items = one_class(beziers=beziers, text=lambda gt: torch.randint(0, 90, (len(gt), 25)))
    change = {**BATEXT, "MODEL.BATEXT.RECOGNIZER": recognizer}
    stands(lambda: make("OneStageRCNN", change), tmp_path, items, amount=0.5, left=(*LEFT, *RECURRENT))


RECURRENT = (
    "CRNN.convs.1.0",
    ".convs.convs.1",
    "CRNN.convs.1.1",
    ".rnn",
    "rnn.embedding",
    ".embedding",
    ".attn_combine",
    ".gru",
)


def align_boxes(features, curves, scale, height, width, ratio, aligned):
    points = curves[:, 1:].reshape(-1, 8, 2)
    boxes = torch.cat([curves[:, :1], points.amin(1), points.amax(1)], dim=1)
    return roi_align(features, boxes, (height, width), scale, 1, aligned)


def no_gradient(gradient, curves, scale, height, width, *rest):
    return gradient.new_zeros(rest[:4])


def test_panoptic_blendmask_stands(tmp_path):
    pairs = [PANOPTIC[i : i + 2] for i in range(0, len(PANOPTIC), 2)]
    items = batch()
    for item in items:
        item["basis_sem"] = basis_sem_from_instances(item["instances"], item["image"].shape[1:])
        item["sem_seg"] %= 3
    result = stands(lambda: make("BlendMask", dict(pairs)), tmp_path, items, amount=0.5, left=LEFT)
    assert {"sem_seg", "basis_sem", "bases"} <= set(result.proof.compared)


def test_solov2_is_run_as_it_runs_itself():
    model = make("SOLOv2", SOLOV2).eval()
    image = torch.randint(0, 256, (3, *SIZE), dtype=torch.uint8)
    seen = {}
    model.ins_head.register_forward_hook(lambda head, given, out: seen.update(classes=out[0], kernels=out[1]))
    model.mask_head.register_forward_hook(lambda head, given, out: seen.update(masks=[out]))
    with torch.no_grad():
        model([{"image": image, "height": SIZE[0], "width": SIZE[1]}])
        dense = TraceInput(model).adapter.dense(model, image[None].float(), training_branches=False)
    for name, tensors in each(seen.items()):
        for number, tensor in each(enumerate(tensors, 1)):
            ours = dense[name if name == "masks" else f"level{number}/{name}"]
            assert torch.allclose(ours, tensor, atol=1e-5 * tensor.abs().max())


@pytest.mark.parametrize("before, after", [(CONDINST, SEMANTIC), (SEMANTIC, CONDINST)])
def test_condinsts_semantic_loss_may_change_after_the_prune(before, after):
    result = d2prune.prune(make("CondInst", before), 0.4, allocation="uniform", input_size=SIZE)
    model = d2prune.rebuild(make("CondInst", after), result.spec)
    found = model.load_state_dict(result.model.state_dict(), strict=False)
    changed = {*found.missing_keys, *found.unexpected_keys}
    assert changed and all(
        key.startswith(("mask_branch.seg_head.", "mask_branch.logits.")) for key in changed
    )
    trains(model, batch())


def test_a_bifpn_that_would_pass_by_a_layer_is_refused():
    """Its forward skips the lateral layer of any input as wide as itself."""
    model = make("OneStageDetector", {**SMALL_FCOS, **BIFPN})
    level = model.backbone.repeated_bifpn[0]
    lateral = next(m for n, m in level.named_children() if n.startswith("lateral_"))
    lateral.in_channels = level.out_channels
    with pytest.raises(PruneError, match="a BiFPN of width 32 would pass by its layer 'lateral_"):
        refresh_shapes(model)
