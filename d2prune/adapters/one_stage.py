"""Dense heads of AdelaiDet's one-stage detectors: FCOS, and MEInst and FCPose, which build on it.

They are told apart by their attributes, so AdelaiDet need not be imported.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from d2prune.adapters.base import unknown

HEADS = ("logits", "bbox_reg", "centerness", "top_feats")
Features = Mapping[str, Tensor]


def head_outputs(generator: nn.Module, features: Features, training_branches: bool) -> dict[str, Tensor]:
    """Return the predictions of a OneStageDetector's proposal generator by level: ``P3/logits``, ..."""
    if hasattr(generator, "fcpose_head"):
        return _fcpose_outputs(generator, features, training_branches)
    if hasattr(generator, "MEInst_head"):
        logits, boxes, centerness, _, masks = generator.MEInst_head(_levels(generator, features))
        heads = {"logits": logits, "bbox_reg": boxes, "centerness": centerness, "mask": masks}
        return _by_level(generator.in_features, heads)
    if hasattr(generator, "fcos_head"):
        return fcos_outputs(generator, features, None)
    raise unknown(generator, "proposal generator", "an FCOS, a MEInst or an FCPose")


def fcos_outputs(generator: nn.Module, features: Features, top_layer: nn.Module | None) -> dict[str, Tensor]:
    """Return an FCOS head's outputs; ``top_feats`` is the output of ``top_layer`` on its box tower."""
    lists = generator.fcos_head(_levels(generator, features), top_layer, False)
    return _by_level(generator.in_features, dict(zip(HEADS, lists[:4], strict=True)))


def _levels(generator: nn.Module, features: Features) -> list[Tensor]:
    return [features[name] for name in generator.in_features]


def _by_level(levels: Iterable[str], heads: Mapping[str, list[Tensor]]) -> dict[str, Tensor]:
    """Return the heads' tensors as ``LEVEL/head``; a head without tensors adds nothing."""
    return {
        f"{level.upper()}/{head}": tensor
        for head, tensors in heads.items()
        for level, tensor in zip(levels, tensors, strict=False)
    }


def _fcpose_outputs(generator: nn.Module, features: Features, training_branches: bool) -> dict[str, Tensor]:
    """Return the outputs of FCPose (Mao et al., arXiv 2105.14185), with the filters of each person.

    All places are traced; costs are counted on as many places as detections are kept.
    """
    outputs = fcos_outputs(generator.fcos, features, generator.top_module)
    places = [outputs.pop(name) for name in list(outputs) if name.endswith("/top_feats")]
    rows = torch.cat([place.flatten(2).transpose(1, 2) for place in places], dim=1)
    if not training_branches:
        rows = rows[:, : generator.fcos.fcos_outputs.post_nms_topk_test]
    outputs["filters"] = generator.fcpose_head.atten_producer(rows)
    return outputs | _pose_bases(generator.basis_module, features, training_branches)


def _pose_bases(module: nn.Module, features: Features, training_branches: bool) -> dict[str, Tensor]:
    # Called layer by layer, because its own forward upsamples only while it computes losses.
    maps = [refine(features[f]) for f, refine in zip(module.in_features, module.refine, strict=True)]
    merged = sum(F.interpolate(m, size=maps[0].shape[-2:]) for m in maps)
    heat = module.seg_head(merged)
    outputs = {"bases": module.tower(merged), "heatmaps": module.p3_logits(heat)}
    if training_branches:
        finer = module.upsampler(torch.cat([heat, outputs["heatmaps"]], dim=1))
        outputs["finer_heatmaps"] = module.p1_logits(finer)
    return outputs
