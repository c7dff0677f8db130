"""Small models of timm and transformers as they come: attention, MLPs and convolutions are pruned exactly."""

from __future__ import annotations

import pytest
import torch

import d2prune
from d2prune.benchmarks.row import lively
from tests.each import each

timm = pytest.importorskip("timm", reason="timm is not installed")
transformers = pytest.importorskip("transformers", reason="transformers is not installed")

TIMM = {
    "vit_tiny_patch16_224": {"img_size": 32, "depth": 2},
    "beit_base_patch16_224": {"img_size": 32, "depth": 2, "embed_dim": 96, "num_heads": 4},
    "eva02_tiny_patch14_224": {"img_size": 28, "depth": 2},
    "swin_tiny_patch4_window7_224": {"img_size": 32, "window_size": 4, "depths": (1, 1), "num_heads": (3, 6)},
    "swinv2_tiny_window8_256": {"img_size": 32, "window_size": 4, "depths": (1, 1), "num_heads": (3, 6)},
    "cait_xxs24_224": {"img_size": 32, "depth": 2},
    "mobilevit_xxs": {},
}
VIT = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64,
    "image_size": 32, "patch_size": 8,
}  # fmt: skip
STAGES = {"hidden_sizes": [16, 32, 64, 64], "depths": [1, 1, 1, 1]}
DETR = {
    "encoder_hidden_dim": 32, "encoder_ffn_dim": 64, "encoder_attention_heads": 4, "d_model": 32,
    "decoder_in_channels": [32] * 3, "decoder_ffn_dim": 64, "decoder_attention_heads": 4,
    "decoder_layers": 2, "num_queries": 10, "num_denoising": 0,
}  # fmt: skip
TRANSFORMERS = {
    "ViTModel": VIT,
    "Dinov2Model": VIT,
    "SwinModel": {"image_size": 32, "embed_dim": 16, "depths": [1, 1], "num_heads": [2, 4], "window_size": 4},
    "SegformerModel": {**STAGES, "num_attention_heads": [1, 2, 4, 4]},
    "VitDetModel": {
        **VIT, "image_size": 64, "pretrain_image_size": 64, "window_block_indices": [0], "window_size": 4,
        "use_relative_position_embeddings": True,
    },
    "RTDetrV2ForObjectDetection": {**DETR, "anchor_image_size": None},
}  # fmt: skip


def of_transformers(name):
    kind = getattr(transformers, name)
    options = dict(TRANSFORMERS[name])
    if "Detr" in name:
        options["backbone_config"] = transformers.RTDetrResNetConfig(
            embedding_size=16, layer_type="basic", out_features=["stage2", "stage3", "stage4"], **STAGES
        )
        options["encoder_in_channels"] = STAGES["hidden_sizes"][1:]
    return kind(kind.config_class(**options))


MAKE = {
    **{n: lambda n=n: timm.create_model(n, pretrained=False, **TIMM[n]) for n in TIMM},
    **{n: lambda n=n: of_transformers(n) for n in TRANSFORMERS},
}


@pytest.mark.parametrize("name", MAKE)
def test_a_model_as_it_comes_is_pruned_exactly(name, tmp_path):
    torch.manual_seed(0)
    side = {"eva02_tiny_patch14_224": 28, "VitDetModel": 64, "mobilevit_xxs": 64}.get(name, 32)
    x = torch.rand(1, 3, side, side)
    model = lively(MAKE[name]().eval())
    result = d2prune.prune(model, 0.25, allocation="uniform", example_inputs=x)
    assert result.proof.exact, result.proof
    attention = [r for r in result.coverage if r.name.endswith(("qkv", "attn.q", "q_proj", "query"))]
    assert any(row.status == "pruned" for row in attention)
    assert all(row.status == "pruned" or "reached without it" in row.reason for row in each(attention))
    d2prune.save(result, tmp_path / "p.pth")
    loaded = d2prune.load(tmp_path / "p.pth", MAKE[name]()).eval()
    with torch.no_grad():
        for got, want in each(zip(flat(loaded(x)), flat(result.model.eval()(x)), strict=True)):
            assert torch.equal(got, want)
    result.model.train()
    sum(t.float().mean() for t in flat(result.model(torch.cat([x, x])))).backward()


def flat(outputs):
    if isinstance(outputs, torch.Tensor):
        return [outputs]
    return [v for v in outputs.values() if isinstance(v, torch.Tensor) and v.is_floating_point()]
