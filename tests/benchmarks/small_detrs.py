"""Small D-FINE and RT-DETR of transformers, as its own classes build them; random weights."""

from __future__ import annotations

import torch
import transformers
from torch import nn

from d2prune.benchmarks.row import lively

SIDE = 64
HEADS = {
    "encoder_hidden_dim": 32, "encoder_ffn_dim": 64, "encoder_attention_heads": 4, "d_model": 32,
    "decoder_in_channels": [32] * 3, "decoder_ffn_dim": 64, "decoder_attention_heads": 4,
    "decoder_layers": 2, "num_queries": 10, "num_labels": 5, "num_denoising": 20,
    "encoder_in_channels": [32, 48, 64], "anchor_image_size": None,
}  # fmt: skip
HGNET = {
    "stem_channels": [3, 8, 16], "stage_in_channels": [16, 24, 32, 48], "stage_mid_channels": [8, 8, 16, 16],
    "stage_out_channels": [24, 32, 48, 64], "stage_num_blocks": [1, 1, 2, 1], "stage_numb_of_layers": [1] * 4,
    "hidden_sizes": [24, 32, 48, 64], "out_indices": [2, 3, 4], "use_learnable_affine_block": True,
}  # fmt: skip
RESNET = {
    "embedding_size": 16, "hidden_sizes": [16, 32, 48, 64], "depths": [1] * 4, "layer_type": "basic",
    "out_features": ["stage2", "stage3", "stage4"],
}  # fmt: skip
KINDS = ("DFineForObjectDetection", "RTDetrForObjectDetection", "RTDetrV2ForObjectDetection")


def detr(kind, **options):
    """A detector of five classes; everything in it is drawn, so that what it finds depends on the picture."""
    torch.manual_seed(0)
    model_class = getattr(transformers, kind)
    if kind.startswith("DFine"):
        backbone = transformers.HGNetV2Config(**HGNET)
        options = {"depth_mult": 0.34, **options}
    else:
        backbone = transformers.RTDetrResNetConfig(**RESNET)
    model = lively(model_class(model_class.config_class(backbone_config=backbone, **{**HEADS, **options})))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:  # transformers begins at a hundredth, where nothing gets through
                nn.init.kaiming_normal_(parameter)
            elif name.endswith("weight"):
                parameter.uniform_(0.5, 1.5)
        for name, tensor in model.named_buffers():
            if name.endswith("running_mean"):
                tensor.uniform_(-0.2, 0.2)
            elif name.endswith("running_var"):
                tensor.uniform_(0.5, 1.5)
    return model.eval()


def pictures(count=1):
    """(count, 3, 64, 64) in [0, 1]."""
    return torch.rand(count, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))


def detections(model, x):
    """What a detector is for: its classes and boxes, (N, 10, 5) and (N, 10, 4)."""
    out = model(x)
    return out.logits, out.pred_boxes


def targets(count=2):
    """Two boxes (cx, cy, w, h, of the picture's size) in each picture."""
    boxes = torch.tensor([[0.5, 0.5, 0.2, 0.3], [0.3, 0.4, 0.2, 0.2]])
    return [{"class_labels": torch.tensor([0, 3]), "boxes": boxes} for _ in range(count)]
