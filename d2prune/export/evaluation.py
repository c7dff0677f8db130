"""Average precision of several predictors on one data set, side by side."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Mapping
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, build_detection_test_loader
from detectron2.evaluation import COCOEvaluator, inference_on_dataset

from d2prune.errors import PruneError

Predictor = Callable[[list[dict[str, Any]]], list[dict[str, Any]]]


def average_precisions(
    predictors: Mapping[str, Predictor], cfg: CfgNode, dataset: str
) -> dict[str, dict[str, float]]:
    """Return COCO's AP (0..100) by predictor and task: {"eager": {"bbox": 41.2, "segm": 38.0}}.

    Args:
        predictors: models, or what is called like one.
        cfg: says how test images are read and scaled.
        dataset: a registered data set.

    Raises:
        PruneError: there is no data set of this name.
    """
    if dataset not in DatasetCatalog.list():
        raise PruneError(
            f"--eval is {dataset!r}; expected a registered data set: "
            f"{', '.join(sorted(DatasetCatalog.list())[:20])}, ..."
        )
    loader = build_detection_test_loader(cfg, dataset)
    return {name: _evaluate(predictor, loader, dataset) for name, predictor in predictors.items()}


def _evaluate(predictor: Predictor, loader: Any, dataset: str) -> dict[str, float]:
    # A folder is what a data set that is not in COCO's format is converted in.
    with tempfile.TemporaryDirectory() as folder:
        evaluator = COCOEvaluator(dataset, distributed=False, output_dir=folder, use_fast_impl=False)
        results = inference_on_dataset(predictor, loader, evaluator)
    # Without any detection the evaluator returns nothing at all.
    return {task: scores["AP"] for task, scores in results.items()} or {"bbox": math.nan}
