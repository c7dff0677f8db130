"""State-dict keys, shapes and trainability of AdelaiDet's own configurations, real width."""

from __future__ import annotations

import pytest
import torch
from detectron2.modeling import META_ARCH_REGISTRY

import d2prune.modeling  # noqa: F401
from d2prune.config import get_cfg

BASE = {
    "BACKBONE.NAME": "build_fcos_resnet_fpn_backbone",
    "RESNETS.OUT_FEATURES": ["res3", "res4", "res5"],
    "FPN.IN_FEATURES": ["res3", "res4", "res5"],
    "PROPOSAL_GENERATOR.NAME": "FCOS",
    "RESNETS.DEPTH": 50,
}
BLENDMASK = BASE | {
    "META_ARCHITECTURE": "BlendMask",
    "BASIS_MODULE.LOSS_ON": True,
    "PANOPTIC_FPN.COMBINE.ENABLED": False,
    "FCOS.THRESH_WITH_CTR": True,
    "FCOS.USE_SCALE": False,
}
SHARED_TOWER = {
    "FCOS.NUM_SHARE_CONVS": 3,
    "FCOS.NUM_CLS_CONVS": 0,
    "FCOS.NUM_BOX_CONVS": 0,
    "BASIS_MODULE.NUM_CONVS": 2,
}
RT = {
    "FCOS.TOP_LEVELS": 0,
    "FCOS.IN_FEATURES": ["p3", "p4", "p5"],
    "FCOS.FPN_STRIDES": [8, 16, 32],
    "FCOS.SIZES_OF_INTEREST": [64, 128],
}
SHTW = BLENDMASK | RT | SHARED_TOWER | {"RESNETS.NORM": "SyncBN", "BACKBONE.FREEZE_AT": -1}
FCOS = BASE | {"META_ARCHITECTURE": "OneStageDetector"}
CONFIGS = {
    "sd_a_R_50_1x": BLENDMASK,
    "sd_b_550_R_50": BLENDMASK
    | SHARED_TOWER
    | {
        "FCOS.TOP_LEVELS": 1,
        "FCOS.IN_FEATURES": ["p3", "p4", "p5", "p6"],
        "FCOS.FPN_STRIDES": [8, 16, 32, 64],
        "FCOS.SIZES_OF_INTEREST": [64, 128, 256],
    },
    "sd_c1_RT_shtw": SHTW,
    "sd_c2_RT_bnhead_shtw": SHTW | {"FCOS.NORM": "SyncBN"},
    "sd_d_R18_BN": BLENDMASK
    | {
        "RESNETS.DEPTH": 18,
        "RESNETS.RES2_OUT_CHANNELS": 64,
        "RESNETS.NORM": "BN",
        "BASIS_MODULE.NORM": "BN",
    },
    "sd_e_FCOS_R_50_1x": FCOS,
    "sd_f_RT_FCOS_bn_head": FCOS | RT | {"RESNETS.NORM": "SyncBN", "FCOS.NORM": "BN"},
}


def meta_model(values):
    cfg = get_cfg()
    for key, value in values.items():
        cfg.merge_from_list([f"MODEL.{key}", value])
    with torch.device("meta"):
        return META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE)(cfg)


def lines(model):
    kinds = {n: "P" if p.requires_grad else "p" for n, p in model.named_parameters()}
    for name, tensor in model.state_dict().items():
        shape, dtype = tuple(tensor.shape), str(tensor.dtype).removeprefix("torch.")
        yield f"{kinds.get(name, 'B')} {name} {shape} {dtype}"


@pytest.mark.parametrize("name", CONFIGS)
def test_layout_is_adelaidets(shared, name):
    text = (shared / "facts" / "state_dicts" / f"{name}.txt").read_text().splitlines()
    assert list(lines(meta_model(CONFIGS[name]))) == text[1:]


@pytest.mark.parametrize("depth", [18, 34, 50, 101])
def test_real_widths_build_and_run_on_meta(depth):
    width = {"RESNETS.RES2_OUT_CHANNELS": 64 if depth < 50 else 256}
    model = meta_model(BLENDMASK | width | {"RESNETS.DEPTH": depth}).eval()
    features = model.backbone(torch.empty(1, 3, 256, 320, device="meta"))
    head = model.proposal_generator.fcos_head(list(features.values()), model.top_layer)
    assert head[3][0].shape == (1, 784, 32, 40)
    assert model.basis_module(features)[0]["bases"][0].shape == (1, 4, 64, 80)
