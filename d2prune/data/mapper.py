"""The mapper from dataset dicts to BlendMask's input: augmented image, instances and bases' target."""

from __future__ import annotations

import copy
import os
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import DatasetMapper, detection_utils
from detectron2.data import transforms as T
from detectron2.structures import BoxMode, Instances

from d2prune.errors import PruneError

from .augment import build_augmentations, optional_key

MASK_FORMATS = ("polygon", "bitmask")


class DatasetMapperWithBasis(DatasetMapper):
    """Detectron2's mapper with AdelaiDet's augmentations and the target of the bases' loss.

    ``DatasetMapperWithBasis(cfg, is_train)``. In training with MODEL.BASIS_MODULE.LOSS_ON every
    sample carries ``basis_sem``, long (H, W): 0 is background, k + 1 the contiguous class k. It
    comes from the offline file of :func:`basis_sem_file` where there is one, and from the
    transformed instance masks elsewhere. A config without AdelaiDet's keys is fine.

    Raises:
        PruneError: if INPUT.MASK_FORMAT does not fit, or there is no source for the basis target.
    """

    @configurable
    def __init__(self, is_train: bool, *, basis_loss_on: bool = False, **kwargs: Any):
        super().__init__(is_train, **kwargs)
        self.basis_loss_on = basis_loss_on

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> dict[str, Any]:
        """Read the arguments of ``__init__`` from a config."""
        if cfg.INPUT.MASK_FORMAT not in MASK_FORMATS:
            raise PruneError(f"INPUT.MASK_FORMAT is {cfg.INPUT.MASK_FORMAT!r}; allowed: 'polygon', 'bitmask'")
        augmentations = build_augmentations(cfg, is_train)
        arguments = super().from_config(cfg, is_train)
        rotates = is_train and optional_key(cfg, "INPUT.IS_ROTATE", False)
        return arguments | {
            "augmentations": augmentations,
            "basis_loss_on": is_train and optional_key(cfg, "MODEL.BASIS_MODULE.LOSS_ON", False),
            # A turned or cropped box is no longer the tight box of its mask.
            "recompute_boxes": cfg.MODEL.MASK_ON and (arguments["recompute_boxes"] or rotates),
        }

    def __call__(self, dataset_dict: dict[str, Any]) -> dict[str, Any]:
        """Turn one Detectron2 dataset dict into one model input; the argument is not changed."""
        sample = copy.deepcopy(dataset_dict)
        transforms = self._read(sample)
        image_size = tuple(sample["image"].shape[1:])
        if self.proposal_topk is not None:
            detection_utils.transform_proposals(
                sample, image_size, transforms, proposal_topk=self.proposal_topk
            )
        if not self.is_train:
            sample.pop("annotations", None)
            return sample
        if "annotations" in sample:
            self._transform_annotations(sample, transforms, image_size)
        if self.basis_loss_on:
            sample["basis_sem"] = _basis_sem(sample, transforms)
        return sample

    def _read(self, sample: dict[str, Any]) -> T.TransformList:
        """Read and augment the image into ``sample["image"]`` (C, H, W); return what was done."""
        image = detection_utils.read_image(sample["file_name"], format=self.image_format)
        detection_utils.check_image_size(sample, image)
        labels = None
        if "sem_seg_file_name" in sample:
            labels = detection_utils.read_image(sample.pop("sem_seg_file_name"), "L").squeeze(2)
        augmented = T.AugInput(image, boxes=_boxes(sample), sem_seg=labels)
        transforms = self.augmentations(augmented)
        # Detectron2's transforms give views with negative strides, which torch cannot take.
        pixels = np.ascontiguousarray(augmented.image.transpose(2, 0, 1))
        sample["image"] = torch.as_tensor(pixels)
        if labels is not None:
            sample["sem_seg"] = torch.as_tensor(augmented.sem_seg.astype("long"))
        return transforms

    def _transform_annotations(
        self, dataset_dict: dict[str, Any], transforms: T.TransformList, image_shape: tuple
    ) -> None:
        """Transform annotations as Detectron2 does, without crowd instances; explain wrong mask formats."""
        wanted = [a for a in dataset_dict["annotations"] if not a.get("iscrowd", 0)]
        if not wanted:
            # Instances without any annotation have no masks for Detectron2 to recompute boxes from.
            del dataset_dict["annotations"]
            dataset_dict["instances"] = detection_utils.annotations_to_instances([], image_shape)
            return
        self._check_mask_format(wanted, dataset_dict["file_name"])
        super()._transform_annotations(dataset_dict, transforms, image_shape)

    def _check_mask_format(self, annotations: list[dict[str, Any]], file_name: str) -> None:
        if not self.use_instance_mask or self.instance_mask_format != "polygon":
            return
        if any(isinstance(a.get("segmentation"), dict) for a in annotations):
            raise PruneError(
                "INPUT.MASK_FORMAT is 'polygon', but the data set stores run-length masks (the "
                f"annotations of {file_name}); set INPUT.MASK_FORMAT 'bitmask'"
            )


def _boxes(sample: dict[str, Any]) -> np.ndarray:
    """Return the boxes (N, 4) in XYXY pixels of the instances that training keeps."""
    boxes = [
        BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS)
        for a in sample.get("annotations", ())
        if not a.get("iscrowd", 0)
    ]
    return np.asarray(boxes, dtype=np.float64).reshape(-1, 4)


def basis_sem_file(file_name: str) -> str:
    """Return the path of AdelaiDet's offline basis target of an image: an npz file with the array "mask"."""
    stem, _ = os.path.splitext(file_name.replace("train2017", "thing_train2017"))
    return stem + ".npz"


def _basis_sem(sample: dict[str, Any], transforms: T.TransformList) -> torch.Tensor:
    """Return the target (H, W) of the bases' semantic loss for one augmented sample."""
    path = basis_sem_file(sample["file_name"])
    if os.path.isfile(path):
        labels = _read_basis_sem(path, (sample["height"], sample["width"]))
        return torch.as_tensor(transforms.apply_segmentation(labels).astype("long"))
    instances: Instances | None = sample.get("instances")
    if instances is None or (len(instances) and not instances.has("gt_masks")):
        raise PruneError(
            f"MODEL.BASIS_MODULE.LOSS_ON is True, but {sample['file_name']} has neither {path} nor "
            "instance masks; set MODEL.MASK_ON True and annotate masks, or set LOSS_ON False"
        )
    # Imported late: registering a data set must not need the models.
    from d2prune.modeling.blendmask.basis_sem import basis_sem_from_instances

    return basis_sem_from_instances(instances, tuple(sample["image"].shape[1:]))


def _read_basis_sem(path: str, size: tuple[int, int]) -> np.ndarray:
    with np.load(path) as archive:
        if "mask" not in archive:
            raise PruneError(f"{path} has no array 'mask', but {archive.files}; make it anew")
        labels = archive["mask"]
    if labels.shape != size:
        raise PruneError(f"{path}: 'mask' has shape {labels.shape}, but its image is {size} (height, width)")
    return labels
