"""The report as people read it: timed, illustrated, written, and its verdict in the log."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from torch import nn

from d2prune.core.types import Totals
from d2prune.engine.config_format import YAML, ConfigFormat, Mapper
from d2prune.report.html import write_report
from d2prune.report.images import ImageRow, example_images
from d2prune.report.record import Report, Stage, average_precision, stage_of, write_report_json
from d2prune.report.table import stage_table
from d2prune.report.timing import latency
from d2prune.report.verdict import verdict

logger = logging.getLogger(__name__)
HTML_FILE = "pruning_report.html"
IMAGES = 4


def publish(
    cfg: CfgNode, report: Report, models: Mapping[str, nn.Module], config_format: ConfigFormat = YAML
) -> None:
    """Write pruning_report.json and .html to OUTPUT_DIR and log the table and the verdict.

    Args:
        cfg: its DATASETS.TEST gives the images to time and draw; without evaluated stages both are
            left out.
        report: with all stages; their latencies are added.
        models: the stages' models by name; the first is the baseline of all ratios.
        config_format: of the configuration that ``cfg`` is of.
    """
    images: list[ImageRow] = []
    evaluated = any(stage.evaluated for stage in report.stages)
    if evaluated and cfg.DATASETS.TEST:  # a later stage may be trained without a test set
        name, mapper = cfg.DATASETS.TEST[0], config_format.mapper(cfg)
        if cfg.MODEL.PRUNING.TIMING > 0:
            report = _timed(report, models, name, mapper, cfg.MODEL.PRUNING.TIMING)
        images = example_images(
            DatasetCatalog.get(name), models, MetadataCatalog.get(name), IMAGES, mapper=mapper
        )
    elif evaluated:
        logger.info("no registered test set to take images from: no timings or images")
    else:
        logger.info("not evaluated (no test set or no evaluator): no AP, timings or images")
    write_report_json(report, cfg.OUTPUT_DIR)
    path = os.path.join(cfg.OUTPUT_DIR, HTML_FILE)
    write_report(report, path, images)
    logger.info("Report: %s\n%s\n%s", path, stage_table(report), verdict(report))


def evaluated_stage(
    cfg: CfgNode,
    name: str,
    totals: Totals,
    results: Mapping[str, Any],
    weights: str,
    iterations: int | None = None,
) -> Stage:
    """Return a stage with the data set that ``results`` are of, and the run's seed."""
    stage = stage_of(name, totals, results, weights, iterations)
    if not stage.evaluated or not cfg.DATASETS.TEST:
        return stage
    names = [n for n in cfg.DATASETS.TEST if isinstance(results.get(n), Mapping)]
    test_set = next((n for n in names if average_precision(results[n])), cfg.DATASETS.TEST[0])
    images = len(DatasetCatalog.get(test_set)) if test_set in DatasetCatalog.list() else None
    return replace(stage, test_set=test_set, images=images, seed=cfg.SEED if cfg.SEED >= 0 else None)


def _timed(
    report: Report, models: Mapping[str, nn.Module], data_set: str, mapper: Mapper, seconds: float
) -> Report:
    batches = [[mapper(entry)] for entry in DatasetCatalog.get(data_set)[:IMAGES]]
    # The network alone, too: end to end, a model that detects nothing would look fast.
    logger.info(
        "timing %d models in turn, for at most some %g s (MODEL.PRUNING.TIMING)", len(models), seconds
    )
    network, whole = (latency(models, batches, dense=dense, seconds=seconds / 2) for dense in (True, False))
    stages = [
        replace(stage, latency_ms=network[stage.name], end_to_end_ms=whole[stage.name])
        if stage.name in models
        else stage
        for stage in report.stages
    ]
    return replace(report, stages=tuple(stages))
