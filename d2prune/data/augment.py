"""The training and test augmentations that Detectron2's and AdelaiDet's INPUT keys ask for."""

from __future__ import annotations

import importlib.util
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import detection_utils
from detectron2.data import transforms as T
from detectron2.structures import BoxMode

from d2prune.errors import PruneError

CROP_TYPES = ("relative_range", "relative", "absolute", "absolute_range")


def optional_key(cfg: CfgNode, key: str, default: Any) -> Any:
    """Return the value of a dotted config key, or ``default`` where a plain Detectron2 config lacks it."""
    node: Any = cfg
    for part in key.split("."):
        if part not in node:
            return default
        node = node[part]
    return node


def build_augmentations(cfg: CfgNode, is_train: bool) -> list[T.Augmentation]:
    """Build rotation and crop (training, where asked for), then resize, then flip.

    Reads INPUT.MIN_SIZE_*, MAX_SIZE_* and RANDOM_FLIP as Detectron2 does, and AdelaiDet's
    INPUT.HFLIP_TRAIN (False: no horizontal flip whatever RANDOM_FLIP says), INPUT.IS_ROTATE
    (quarter turns) and INPUT.CROP.CROP_INSTANCE (see :class:`InstanceCrop`).

    Raises:
        PruneError: INPUT.CROP.TYPE is unknown, or INPUT.IS_ROTATE is set without OpenCV.
    """
    augmentations = detection_utils.build_augmentation(cfg, is_train)
    if not is_train:
        return augmentations
    horizontal = cfg.INPUT.RANDOM_FLIP == "horizontal"
    if horizontal and not optional_key(cfg, "INPUT.HFLIP_TRAIN", True):
        augmentations = [a for a in augmentations if not isinstance(a, T.RandomFlip)]
    if cfg.INPUT.CROP.ENABLED:
        augmentations.insert(0, _crop(cfg))
    if optional_key(cfg, "INPUT.IS_ROTATE", False):
        augmentations.insert(0, _rotation())
    return augmentations


def _crop(cfg: CfgNode) -> InstanceCrop:
    kind = cfg.INPUT.CROP.TYPE
    if kind not in CROP_TYPES:
        raise PruneError(f"INPUT.CROP.TYPE is {kind!r}; allowed: {', '.join(map(repr, CROP_TYPES))}")
    may_cut = optional_key(cfg, "INPUT.CROP.CROP_INSTANCE", True)
    return InstanceCrop(kind, cfg.INPUT.CROP.SIZE, may_cut)


def _rotation() -> T.Augmentation:
    if importlib.util.find_spec("cv2") is None:
        raise PruneError(
            "INPUT.IS_ROTATE is True, but Detectron2 rotates with OpenCV, which is not installed: "
            "`pip install opencv-python-headless`, or set INPUT.IS_ROTATE False"
        )
    return T.RandomRotation([0, 90, 180, 270], expand=True, sample_style="choice")


class InstanceCrop(T.RandomCrop):
    """A random crop that always contains the centre of a randomly chosen instance.

    An image without instances is cropped anywhere.

    Args:
        crop_type: one of Detectron2's INPUT.CROP.TYPE values.
        crop_size: two numbers, read as Detectron2's INPUT.CROP.SIZE.
        may_cut: False enlarges the crop until no instance's box is cut (CROP_INSTANCE False).
    """

    def __init__(self, crop_type: str, crop_size: tuple[float, float], may_cut: bool = True):
        super().__init__(crop_type, crop_size)
        self.may_cut = may_cut

    def get_transform(self, image: np.ndarray, boxes: np.ndarray | None) -> T.Transform:
        """Choose the window for ``image`` (H, W, C) with ``boxes`` (N, 4), XYXY pixels."""
        if boxes is None or len(boxes) == 0:
            return super().get_transform(image)
        height, width = image.shape[:2]
        boxes = np.clip(boxes, 0, [width, height, width, height])
        chosen = {"bbox": boxes[np.random.randint(len(boxes))], "bbox_mode": BoxMode.XYXY_ABS}
        crop = detection_utils.gen_crop_transform_with_instance(
            self.get_crop_size((height, width)), (height, width), chosen
        )
        if self.may_cut:
            return crop
        window = np.array([crop.x0, crop.y0, crop.x0 + crop.w, crop.y0 + crop.h])
        x0, y0, x1, y1 = (int(edge) for edge in enlarge_window(window, boxes))
        return T.CropTransform(x0, y0, x1 - x0, y1 - y0)


def enlarge_window(window: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Return the smallest window (4,) around ``window`` that cuts none of ``boxes`` (N, 4), all XYXY."""
    while True:
        touching = (boxes[:, :2] < window[2:]).all(axis=1) & (boxes[:, 2:] > window[:2]).all(axis=1)
        inside = np.vstack([boxes[touching], window])
        low, high = np.floor(inside[:, :2].min(axis=0)), np.ceil(inside[:, 2:].max(axis=0))
        larger = np.concatenate([low, high])
        if (larger == window).all():
            return window
        window = larger  # what it now reaches may be cut in turn
