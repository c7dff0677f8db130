"""Registration of the embedded data set with Detectron2's catalogs."""

from __future__ import annotations

import os
from functools import partial
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json

from d2prune.errors import PruneError

CLASS_NAMES = tuple("0123456789")
DATASET_NAMES = ("digits_train", "digits_val", "digits_val_mini")


def default_root() -> str:
    """Return the set's default folder: ``$DETECTRON2_DATASETS/digits``, or ``datasets/digits``."""
    return os.path.join(os.getenv("DETECTRON2_DATASETS") or "datasets", "digits")


def register_digits(root: str | os.PathLike[str] | None = None) -> None:
    """Register digits_train, digits_val and digits_val_mini, reading nothing yet.

    Registering again is harmless; another ``root`` replaces the one before.

    Args:
        root: the folder made by ``tools/make_digits.py``; :func:`default_root` if None.

    Raises:
        PruneError: other code has registered a data set of one of these names.
    """
    folder = os.path.expanduser(os.fspath(root or default_root()))
    for name in DATASET_NAMES:
        _forget_own(name)
        split = "train" if name == "digits_train" else "val"
        json_file = os.path.join(folder, f"{name}.json")
        image_root = os.path.join(folder, "images", split)
        DatasetCatalog.register(name, partial(_load, name, folder, json_file, image_root))
        MetadataCatalog.get(name).set(
            digits_root=folder,
            json_file=json_file,
            image_root=image_root,
            evaluator_type="coco",
            thing_classes=list(CLASS_NAMES),
            thing_dataset_id_to_contiguous_id={i + 1: i for i in range(len(CLASS_NAMES))},
        )


def _forget_own(name: str) -> None:
    """Undo an earlier registration by d2prune; metadata may not be overwritten in place."""
    if name not in DatasetCatalog.list():
        return
    if not hasattr(MetadataCatalog.get(name), "digits_root"):
        raise PruneError(
            f"the data set name {name!r} is already registered by other code; d2prune.data needs "
            f"the names {', '.join(DATASET_NAMES)}: register yours under another name"
        )
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


def _load(name: str, folder: str, json_file: str, image_root: str) -> list[dict[str, Any]]:
    if not os.path.isfile(json_file):
        raise PruneError(
            f"data set {name!r} (DATASETS.TRAIN, DATASETS.TEST) is not in {folder!r}: make it with "
            f"`python tools/make_digits.py --output {folder}`, or set DETECTRON2_DATASETS to the "
            "folder that contains 'digits'"
        )
    return load_coco_json(json_file, image_root, name)
