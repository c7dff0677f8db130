"""Dense outputs to detections, with the eager models' own code and settings from plain data."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.modeling import detector_postprocess
from detectron2.modeling.meta_arch.panoptic_fpn import combine_semantic_and_instance_outputs
from detectron2.modeling.postprocessing import sem_seg_postprocess
from detectron2.structures import Instances
from torch import Tensor, nn

from d2prune.errors import PruneError
from d2prune.modeling import BlendMask, OneStageDetector
from d2prune.modeling.blendmask.blender import Blender
from d2prune.modeling.fcos.inference import FCOSInference
from d2prune.modeling.fcos.targets import locations_on_grid

Outputs = Mapping[str, Tensor]
Size = tuple[int, int]


class FCOSDecoder:
    """Detections of FCOS, as ``OneStageDetector`` returns them."""

    name = "fcos"

    @classmethod
    def settings(cls, cfg: CfgNode) -> dict[str, Any]:
        """Read what ``__init__`` takes, as plain data, from a config."""
        fcos = cfg.MODEL.FCOS
        return {
            "num_classes": fcos.NUM_CLASSES,
            "in_features": list(fcos.IN_FEATURES),
            "fcos": dataclasses.asdict(FCOSInference.from_config(fcos, "TEST")),
        }

    def __init__(self, settings: Mapping[str, Any]) -> None:
        """Set up from ``settings``, which may have gone through JSON."""
        self.levels = [name.upper() for name in settings["in_features"]]
        self.select = FCOSInference(**_tuples(settings["fcos"]))

    def __call__(
        self, outputs: Outputs, image_sizes: list[Size], output_sizes: list[Size]
    ) -> list[dict[str, Any]]:
        """Decode a batch.

        Args:
            outputs: as the adapter's ``dense`` names them: "P3/logits" (N, K, H / 8, W / 8), ...
            image_sizes: (height, width) of each image in the batch, in pixels, without padding.
            output_sizes: (height, width) that its detections are wanted for.

        Returns:
            Per image {"instances": Instances}, boxes and masks in the output's pixels.
        """
        found = self.detect(outputs, image_sizes)
        return [
            {"instances": detector_postprocess(one, *size)}
            for one, size in zip(found, output_sizes, strict=True)
        ]

    def detect(self, outputs: Outputs, image_sizes: list[Size]) -> list[Instances]:
        """Return detections in the pixels of the network's input."""
        logits = self._per_level(outputs, "logits")
        strides = self.select.strides
        locations = [locations_on_grid(m, s) for m, s in zip(logits, strides, strict=True)]
        return self.select(
            locations,
            logits,
            self._per_level(outputs, "bbox_reg"),
            self._per_level(outputs, "centerness"),
            self._per_level(outputs, "top_feats"),
            image_sizes,
        )

    def _per_level(self, outputs: Outputs, head: str) -> list[Tensor]:
        """Return one tensor per level, or nothing if the network has no such head."""
        names = [f"{level}/{head}" for level in self.levels]
        return [outputs[name] for name in names if name in outputs]


class BlendMaskDecoder(FCOSDecoder):
    """Detections with masks and, with a panoptic module, the semantic map and both combined."""

    name = "blendmask"

    @classmethod
    def settings(cls, cfg: CfgNode) -> dict[str, Any]:
        """Add the blender's settings and the panoptic ones, None where there is no such module."""
        combine = cfg.MODEL.PANOPTIC_FPN.COMBINE
        panoptic = {
            "stride": cfg.MODEL.SEM_SEG_HEAD.COMMON_STRIDE,
            "thresholds": [
                combine.OVERLAP_THRESH,
                combine.STUFF_AREA_LIMIT,
                combine.INSTANCES_CONFIDENCE_THRESH,
            ],
        }
        return {
            **super().settings(cfg),
            "blender": Blender.from_config(cfg),
            "panoptic": panoptic if combine.ENABLED else None,
        }

    def __init__(self, settings: Mapping[str, Any]) -> None:
        """Set up from ``settings``, which may have gone through JSON."""
        super().__init__(settings)
        self.blender = Blender(**_tuples(settings["blender"]))
        self.panoptic = settings["panoptic"]

    def __call__(
        self, outputs: Outputs, image_sizes: list[Size], output_sizes: list[Size]
    ) -> list[dict[str, Any]]:
        """Decode a batch; with a panoptic module the results have "sem_seg" and "panoptic_seg"."""
        results = super().__call__(outputs, image_sizes, output_sizes)
        if self.panoptic is None:
            return results
        maps = F.interpolate(
            outputs["sem_seg"],
            scale_factor=self.panoptic["stride"],
            mode="bilinear",
            align_corners=False,
        )
        for result, one, size, wanted in zip(results, maps, image_sizes, output_sizes, strict=True):
            result["sem_seg"] = sem_seg_postprocess(one, size, *wanted)
            result["panoptic_seg"] = combine_semantic_and_instance_outputs(
                result["instances"], result["sem_seg"].argmax(dim=0), *self.panoptic["thresholds"]
            )
        return results

    def detect(self, outputs: Outputs, image_sizes: list[Size]) -> list[Instances]:
        """Return detections with ``pred_masks`` (n, 1, R, R), probabilities inside the box."""
        return self.blender.add_masks([outputs["bases"]], super().detect(outputs, image_sizes))


DECODERS: dict[type, type[FCOSDecoder]] = {
    OneStageDetector: FCOSDecoder,
    BlendMask: BlendMaskDecoder,
}


def decoder_of(model: nn.Module) -> type[FCOSDecoder]:
    """Return the decoder of the nearest class in the model's method resolution order.

    Raises:
        PruneError: the architecture has none.
    """
    found = next((DECODERS[cls] for cls in type(model).__mro__ if cls in DECODERS), None)
    if found is None:
        known = ", ".join(cls.__name__ for cls in DECODERS)
        raise PruneError(
            f"META_ARCHITECTURE {type(model).__name__} can't be exported: there is no decoder for "
            f"it; expected one of: {known}, or a subclass"
        )
    return found


def build_decoder(settings: Mapping[str, Any]) -> FCOSDecoder:
    """Return the decoder that the "decoder" part of model.json describes.

    Raises:
        PruneError: the file names one that this version does not have.
    """
    decoders = {decoder.name: decoder for decoder in DECODERS.values()}
    if settings["name"] not in decoders:
        raise PruneError(
            f"model.json names the decoder {settings['name']!r}; expected one of: {', '.join(decoders)}"
        )
    return decoders[settings["name"]](settings)


def _tuples(settings: Mapping[str, Any]) -> dict[str, Any]:
    """JSON has no tuples."""
    return {k: tuple(v) if isinstance(v, list) else v for k, v in settings.items()}
