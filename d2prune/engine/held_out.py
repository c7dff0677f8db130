"""The images of the training set that MODEL.PRUNING.BUDGET is measured on, and nothing else uses."""

from __future__ import annotations

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

from d2prune.engine.settings import budget_from_cfg
from d2prune.errors import PruneError

IMAGES = 200
"""So many are held out; of a small set, a third."""


def with_held_out(cfg: CfgNode, data_set: str = "") -> CfgNode:
    """Return ``cfg`` with ``data_set`` as the test set, or else a part of its first training set.

    Raises:
        PruneError: if the data set is not registered, or there is none.
    """
    if not data_set:
        data_set = _register_held_out(cfg)
    elif data_set not in DatasetCatalog.list():
        raise PruneError(
            f"MODEL.PRUNING.BUDGET names the data set '{data_set}', which is not registered",
            keys=("MODEL.PRUNING.BUDGET",),
        )
    out = cfg.clone()
    out.defrost()
    out.DATASETS.TEST = (data_set,)
    out.freeze()
    return out


def _register_held_out(cfg: CfgNode) -> str:
    if not cfg.DATASETS.TRAIN:
        raise PruneError(
            "MODEL.PRUNING.BUDGET is measured on a part of DATASETS.TRAIN, which is empty",
            keys=("MODEL.PRUNING.BUDGET", "DATASETS.TRAIN"),
        )
    whole = cfg.DATASETS.TRAIN[0]
    name = f"{whole}_held_out"
    if name not in DatasetCatalog.list():
        records = DatasetCatalog.get(whole)
        count = min(IMAGES, len(records) // 3)
        rows = np.sort(np.random.default_rng(0).permutation(len(records))[:count])
        DatasetCatalog.register(name, lambda: [records[row] for row in rows])
        known = {
            k: v for k, v in MetadataCatalog.get(whole).as_dict().items() if k not in ("name", "json_file")
        }
        MetadataCatalog.get(name).set(**known)
    return name


def held_out_files(cfg: CfgNode) -> frozenset[str]:
    """Return the files of the images of the training set that BUDGET is measured on."""
    budget = budget_from_cfg(cfg)
    if not isinstance(budget, tuple) or budget[1]:
        return frozenset()
    return frozenset(record["file_name"] for record in DatasetCatalog.get(_register_held_out(cfg)))
