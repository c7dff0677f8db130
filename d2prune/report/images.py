"""Example images: what the data says, and what each model sees, side by side."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.data import Metadata, detection_utils
from detectron2.structures import BoxMode, Instances, polygons_to_bitmask
from pycocotools import mask as mask_api
from torch import nn

from d2prune.errors import PruneError
from d2prune.report.drawing import Drawing, draw
from d2prune.report.timing import evaluating


@dataclass(frozen=True)
class Image:
    """A PNG file's bytes with the words under it."""

    caption: str
    png: bytes


@dataclass(frozen=True)
class ImageRow:
    """One image: its ground truth, then what each model finds."""

    title: str
    images: tuple[Image, ...]


def example_images(
    dataset_dicts: Sequence[dict[str, Any]],
    models: Mapping[str, nn.Module],
    metadata: Metadata,
    count: int = 4,
    *,
    mapper: Callable[[dict[str, Any]], dict[str, Any]],
    threshold: float = 0.5,
) -> list[ImageRow]:
    """Draw ground truth and detections on ``count`` images, the same ones each time.

    The images are spread evenly over those with annotations (over all where none has any), so no
    result has a say in which are shown. Models run in eval mode and keep the mode they were in.

    Args:
        dataset_dicts: Detectron2's records of a data set, with ``file_name``.
        models: by the name to show, in the order to show.
        metadata: of the data set; ``thing_classes`` are read.
        count: number of images; fewer where the set is smaller.
        mapper: turns a record into a model's input (``DatasetMapper(cfg, is_train=False)``).
        threshold: lowest score of a detection that is drawn.

    Raises:
        PruneError: a model finds no instances because it is of another kind.
    """
    names = metadata.get("thing_classes", None)
    rows = []
    with evaluating(models.values()), torch.inference_mode():
        for entry in choose(dataset_dicts, count):
            image = detection_utils.read_image(entry["file_name"], "RGB")
            found = {"ground truth": _truth(entry, names, image.shape[:2])}
            for name, model in models.items():
                found[name] = _detections(name, model([mapper(entry)])[0], names, threshold)
            images = [Image(caption, draw(image, shown)) for caption, shown in found.items()]
            rows.append(ImageRow(Path(entry["file_name"]).name, tuple(images)))
    return rows


def choose(dataset_dicts: Sequence[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    """Choose records spread evenly over those that have annotations."""
    pool = [entry for entry in dataset_dicts if entry.get("annotations")] or list(dataset_dicts)
    count = min(count, len(pool))
    return [pool[(2 * i + 1) * len(pool) // (2 * count)] for i in range(count)]


def _truth(entry: Mapping[str, Any], names: Sequence[str] | None, size: tuple[int, int]) -> Drawing:
    marked = [one for one in entry.get("annotations", ()) if not one.get("iscrowd", 0)]
    corners = BoxMode.XYXY_ABS
    boxes = [BoxMode.convert(one["bbox"], one["bbox_mode"], corners) for one in marked]
    classes = [one["category_id"] for one in marked]
    masks = [_bitmask(one["segmentation"], size) for one in marked if one.get("segmentation")]
    return Drawing(
        np.array(boxes, dtype=float).reshape(-1, 4),
        classes,
        [_word(kind, names) for kind in classes],
        np.stack(masks) if masks and len(masks) == len(marked) else None,
    )


def _bitmask(segmentation: Any, size: tuple[int, int]) -> np.ndarray:
    """A (H, W) bool mask of COCO's polygons or RLE."""
    if isinstance(segmentation, list):
        return polygons_to_bitmask(segmentation, *size)
    if isinstance(segmentation["counts"], list):
        segmentation = mask_api.frPyObjects(segmentation, *size)
    return mask_api.decode(segmentation).astype(bool)


def _detections(
    name: str, output: Mapping[str, Any], names: Sequence[str] | None, threshold: float
) -> Drawing:
    if "instances" not in output:
        raise PruneError(f"model {name!r} gives {', '.join(output)}; images can be drawn of 'instances' only")
    found: Instances = output["instances"]
    found = found[found.scores >= threshold]
    classes, scores = found.pred_classes.tolist(), found.scores.tolist()
    return Drawing(
        found.pred_boxes.tensor.double().numpy(force=True),
        classes,
        [f"{_word(k, names)} {s:.0%}" for k, s in zip(classes, scores, strict=True)],
        found.pred_masks.numpy(force=True) if found.has("pred_masks") else None,
    )


def _word(kind: int, names: Sequence[str] | None) -> str:
    return names[kind] if names and kind < len(names) else f"class {kind}"
