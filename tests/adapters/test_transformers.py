"""ViTDet, Swin and MViTv2, which ship as Python configs: pruned, proved, saved, loaded, trained, run."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from detectron2 import model_zoo
from detectron2.config import LazyCall, instantiate
from detectron2.modeling import MViT, SwinTransformer

import d2prune
from tests.adapters.families import SIZE, comes_back, lively, narrow_rcnn, stands, tells_its_widths

MASK, CASCADE = (f"common/models/{name}.py" for name in ("mask_rcnn_fpn", "cascade_rcnn"))
SQUARE = 128
SWIN = {"embed_dim": 16, "depths": (1, 1, 2, 1), "num_heads": (2, 2, 4, 4), "window_size": 3}
MVIT = {
    "embed_dim": 16, "depth": 6, "last_block_indexes": (0, 2, 3, 5), "img_size": SQUARE,
    "adaptive_window_size": 8, "norm_layer": partial(torch.nn.LayerNorm, eps=1e-6),
}  # fmt: skip


def awake(model):
    """As if trained: what starts at zero (``rel_pos``, the last norm of a residual block) counts."""
    with torch.no_grad():
        for parameter in lively(model).parameters():
            if not parameter.any():
                parameter.normal_(std=0.5)
    return model


def vitdet(norm="LN"):
    """Blocks with windows that do not fit the image, with global attention, with convolutions."""
    cfg = model_zoo.get_config("common/models/mask_rcnn_vitdet.py").model
    net = cfg.backbone.net
    net.embed_dim, net.depth, net.num_heads, net.mlp_ratio = 32, 3, 2, 16
    net.img_size, net.window_size, net.window_block_indexes = SQUARE, 3, [0, 2]
    net.residual_block_indexes, net.pretrain_img_size = [1], 64
    cfg.backbone.norm = cfg.roi_heads.box_head.conv_norm = cfg.roi_heads.mask_head.conv_norm = norm
    return square(cfg)


def swin(base, **options):
    cfg = model_zoo.get_config(base).model
    cfg.backbone.bottom_up = LazyCall(SwinTransformer)(**SWIN, **options)
    cfg.backbone.in_features = ("p0", "p1", "p2", "p3")
    return square(cfg)


def mvit(base, **options):
    cfg = model_zoo.get_config(base).model
    features = ("scale2", "scale3", "scale4", "scale5")
    cfg.backbone.bottom_up = LazyCall(MViT)(**MVIT, out_features=features, **options)
    return square(cfg)


def square(cfg):
    cfg.backbone.square_pad = SQUARE
    return narrow_rcnn(cfg)


FAMILIES = {
    "vitdet": vitdet,
    "vitdet bn": partial(vitdet, "BN"),
    "swin mask": partial(swin, MASK),
    "swin cascade": partial(swin, CASCADE),
    "mvitv2 mask": partial(mvit, MASK),
    "mvitv2 cascade": partial(mvit, CASCADE, use_abs_pos=True),
}
EXPECTED = (
    "LayerNorm", "mixed by aten::mean", "two sorts of channels", "not a layer d2prune can cut",
    "that does not shrink with them", "the amount was reached without it", "no layer that can be cut makes",
)  # fmt: skip


def make(config):
    return awake(instantiate(config()))


@pytest.fixture(scope="module", params=FAMILIES)
def stood(request, tmp_path_factory):
    make_it = partial(make, FAMILIES[request.param])
    return request.param, stands(make_it, tmp_path_factory.mktemp("x"), amount=0.2, left=("",))


def test_every_family_stands(stood):
    _, result = stood
    assert any(".mlp.fc1" in row.name and row.after < row.before for row in result.coverage)
    assert any(row.name.startswith("roi_heads") and row.status == "pruned" for row in result.coverage)


def test_its_config_comes_back(stood, tmp_path):
    family, result = stood
    comes_back(FAMILIES[family](), result, tmp_path)


def test_what_is_left_whole_has_its_reason(stood):
    _, result = stood
    skipped = [row for row in result.coverage if row.status == "skipped"]
    assert [row for row in skipped if not any(reason in row.reason for reason in EXPECTED)] == []
    trunk = (".norm1", ".norm2", ".mlp.fc2", ".attn.proj")
    assert {end for end in trunk for row in skipped if row.name.endswith(end)} == set(trunk)


def test_position_embeddings_shrink_with_what_they_meet(stood):
    _, result = stood
    model = result.model
    for module in model.modules():
        if hasattr(module, "rel_pos_h"):
            width = module.rel_pos_h.shape[1]  # of a head; heads may have gone, or some of their channels
            assert module.rel_pos_w.shape[1] == width and module.qkv.out_features % (3 * width) == 0


@pytest.mark.parametrize("family", [name for name in FAMILIES if "swin" not in name])
def test_trunks_go_where_that_is_asked_for(family):
    result = d2prune.prune(make(FAMILIES[family]), 0.3, input_size=SIZE, allow_inexact=True)
    assert not result.proof.exact
    tells_its_widths(result.model)


def test_swins_trunk_stays_whole_and_says_so():
    result = d2prune.prune(make(FAMILIES["swin mask"]), 0.3, input_size=SIZE, allow_inexact=True)
    trunk = next(row for row in result.coverage if row.name == "backbone.bottom_up.patch_embed.proj")
    assert trunk.status == "skipped" and "does not run" in trunk.reason and result.proof.exact
