"""What a prune leaves in OUTPUT_DIR besides the checkpoint: spec, report, pruned.yaml."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.config import get_cfg as detectron2_cfg

from d2prune.checkpoint.pruned_model import CONFIG_FILE
from d2prune.files import atomic_write
from d2prune.pruning import PruneResult
from d2prune.report.machine import environment

SPEC_FILE, REPORT_FILE, STOCK_FILE = "pruning_spec.json", "pruning_report.json", "pruned_stock.yaml"
Report = dict[str, Any]


def report_of(result: PruneResult[Any], cfg: CfgNode, size: tuple[int, int]) -> Report:
    """The report as plain data; stages are added as they are evaluated."""
    return {
        "version": 1,
        "base": result.spec.base,
        "request": dataclasses.asdict(result.request),
        "reached": result.reached,
        "before": dataclasses.asdict(result.before),
        "after": dataclasses.asdict(result.after),
        "proof": dataclasses.asdict(result.proof) if result.proof is not None else None,
        "coverage": [dataclasses.asdict(row) for row in result.coverage],
        "input_size": list(size),
        "environment": environment(torch.device(cfg.MODEL.DEVICE)),
        "stages": [],
    }


def stage(
    name: str,
    totals: Mapping[str, int],
    results: Mapping[str, Any],
    weights: str,
    iterations: int | None = None,
) -> dict[str, Any]:
    """One row of the report's table.

    Args:
        name: "baseline", "pruned", "fine-tuned", …
        totals: params and macs.
        results: what the trainer's ``test`` returned.
        weights: path of the checkpoint.
        iterations: trained in this stage.
    """
    aps = average_precision(results)
    return {
        "name": name,
        "params": totals["params"],
        "macs": totals["macs"],
        "box_ap": aps.get("bbox"),
        "mask_ap": aps.get("segm"),
        "latency_ms": None,
        "weights": weights,
        "iterations": iterations,
    }


def average_precision(results: Mapping[str, Any]) -> dict[str, float]:
    """AP by task ("bbox", "segm", …) of the first data set that has any; empty if none was evaluated.

    COCOEvaluator reports NaN for a model without a single detection: that is an AP of 0.
    """
    scores = {
        task: 0.0 if math.isnan(metrics["AP"]) else float(metrics["AP"])
        for task, metrics in results.items()
        if isinstance(metrics, Mapping) and isinstance(metrics.get("AP"), (int, float))
    }
    if scores:
        return scores
    nested = (average_precision(inner) for inner in results.values() if isinstance(inner, Mapping))
    return next((inner for inner in nested if inner), {})


def write_report_json(report: Report, folder: str) -> None:
    """Writes pruning_report.json, whole or not at all."""
    with atomic_write(os.path.join(folder, REPORT_FILE)) as file:
        json.dump(report, file, indent=1, allow_nan=False)


def read_report_json(folder: str) -> Report | None:
    """The report beside a pruned checkpoint; None if it is gone."""
    path = Path(folder) / REPORT_FILE
    if not path.is_file():
        return None
    report: Report = json.loads(path.read_text(encoding="utf-8"))
    return report


def write_pruned_config(cfg: CfgNode, folder: str, weights: str) -> str:
    """Writes ``cfg`` whole, with META_ARCHITECTURE "PrunedModel", as pruned.yaml; returns its path.

    pruned_stock.yaml beside it is the same with Detectron2's own keys only, for scripts that start
    from Detectron2's get_cfg(), which refuses a file with any other key.
    """
    out = cfg.clone()
    out.defrost()
    if not out.MODEL.PRUNING.BASE:  # it is set where a pruned.yaml was fine-tuned or pruned again
        out.MODEL.PRUNING.BASE = out.MODEL.META_ARCHITECTURE
    out.MODEL.META_ARCHITECTURE = "PrunedModel"
    out.MODEL.PRUNING.SPEC = os.path.abspath(os.path.join(folder, SPEC_FILE))
    out.MODEL.WEIGHTS = os.path.abspath(weights)
    out.MODEL.PRUNE = out.MODEL.FINETUNE = False
    out.MODEL.PRUNING.FADE = 0.0  # it was meant for what is gone now
    path = os.path.join(folder, CONFIG_FILE)
    with atomic_write(path) as file:
        file.write(out.dump())
    with atomic_write(os.path.join(folder, STOCK_FILE)) as file:
        file.write(_restricted(out, detectron2_cfg()).dump())
    return path


def _restricted(cfg: CfgNode, to: CfgNode) -> CfgNode:
    """The values of ``cfg`` for the keys of ``to``, which is changed and returned."""
    for key, value in to.items():
        to[key] = _restricted(cfg[key], value) if isinstance(value, CfgNode) else cfg[key]
    return to


def next_command(weights: str) -> str:
    """The command that was run, turned into the one that fine-tunes its result."""
    words, kept = sys.argv[1:], []
    replaced = {"MODEL.PRUNE", "MODEL.FINETUNE", "MODEL.WEIGHTS"}
    while words:
        word = words.pop(0)
        if word in replaced:
            words = words[1:]
        elif word != "--resume":
            kept.append(word)
    return same_script("train_net.py", [*kept, "MODEL.FINETUNE", "True", "MODEL.WEIGHTS", weights])


def same_script(otherwise: str, words: Sequence[str]) -> str:
    """A command of the script that runs, or of ``otherwise`` if none does."""
    script = sys.argv[0] if sys.argv[0].endswith(".py") else otherwise
    return shlex.join(["python", script, *words])
