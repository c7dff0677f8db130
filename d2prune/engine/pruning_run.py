"""MODEL.PRUNE True from start to end: load, prune, prove, save, evaluate, report, say what is next."""

from __future__ import annotations

import copy
import dataclasses
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.utils import comm
from torch import nn

from d2prune.checkpoint import PruningCheckpointer, write_model
from d2prune.core.cut.spec import PruneSpec
from d2prune.engine import finetuning, finished
from d2prune.engine.budget import Test, budget_of
from d2prune.engine.calibration import Load, calibration_data
from d2prune.engine.config_format import YAML, ConfigFormat
from d2prune.engine.detections import compare_detections
from d2prune.engine.outputs import write_spec
from d2prune.engine.publish import IMAGES, evaluated_stage, publish
from d2prune.engine.ranks import alone
from d2prune.engine.settings import (
    PRUNED_FILE,
    check_modes,
    input_size,
    request_from_cfg,
    to_share,
    trace_input_from_cfg,
)
from d2prune.errors import PruneError
from d2prune.pruning import PruneResult, prune_model
from d2prune.pruning.budget import Budget, Left
from d2prune.pruning.calibration import Data
from d2prune.rebuild import prune_further
from d2prune.report.record import (
    BASELINE,
    PRUNED,
    Detections,
    Report,
    report_of,
    write_report_json,
)

logger = logging.getLogger(__name__)


def run_prune(
    cfg: CfgNode,
    build: Callable[[CfgNode], nn.Module],
    load: Load,
    test: Test,
    config_format: ConfigFormat = YAML,
) -> Mapping[str, Any]:
    """Prune MODEL.WEIGHTS into OUTPUT_DIR and evaluate both models.

    With several ranks the first plans and proves; the others are sent its spec.

    Args:
        cfg: with MODEL.PRUNE on.
        build: builds the model to prune, without weights.
        load: returns batches of DATASETS.TRAIN; called on all ranks alike.
        test: evaluates a model on DATASETS.TEST, on all ranks; empty if there is no evaluator.
        config_format: of the configuration that ``cfg`` is of.

    Returns:
        The pruned model's evaluation results.

    Raises:
        PruneError: on every rank alike. Files are only written once the proof has passed.
    """
    check_modes(cfg)
    _check_test_sets(cfg)
    finetuning.refuse_to_lose_result(cfg)
    model = build(cfg)
    checkpointer = PruningCheckpointer(model)
    checkpointer.load(cfg.MODEL.WEIGHTS, checkpointables=[])
    _check_covered(cfg, model, checkpointer.unfilled)
    model.eval()
    budget = budget_of(cfg, test, config_format)
    if comm.is_main_process():
        finished.begin(cfg)
    result, pruned = _prune_on_first_rank(cfg, model, calibration_data(cfg, load), budget)
    report = None
    if result is not None:
        report = _save(cfg, model, result, config_format)
    comm.synchronize()
    before, after = test(cfg, model), test(cfg, pruned)
    if report is not None:
        if result is not None and result.proof is not None and before and cfg.DATASETS.TEST:
            found = _compared(cfg, result, config_format)
            report = dataclasses.replace(report, detections=found)
        _finish(cfg, report, {BASELINE: (model, before), PRUNED: (pruned, after)}, config_format)
        finished.end(cfg)
    comm.synchronize()
    return after


def _check_test_sets(cfg: CfgNode) -> None:
    """Read what the evaluation will need, so that its lack is known before the work."""
    for name in cfg.DATASETS.TEST:
        try:
            DatasetCatalog.get(name)
        except Exception as error:  # whatever a data set's own function raises
            raise PruneError(
                f"DATASETS.TEST names '{name}', which can't be read: {type(error).__name__}: {error}; mend "
                "it, or set DATASETS.TEST ()",
                keys=("DATASETS.TEST",),
            ) from error


def _check_covered(cfg: CfgNode, model: nn.Module, unfilled: Sequence[str]) -> None:
    """Raise PruneError if weights to prune were not in the file: random ones are as good as none."""
    allowed = cfg.MODEL.PRUNING.ALLOW_MISSING
    missing = [name for name in unfilled if not any(fnmatchcase(name, pattern) for pattern in allowed)]
    if missing:
        raise PruneError(
            f"'{cfg.MODEL.WEIGHTS}' does not cover the {type(model).__name__} to prune: {len(missing)} of "
            f"{len(model.state_dict())} keys are missing or of another shape; the first: {missing[0]}. Set "
            "MODEL.WEIGHTS to a trained checkpoint of this model, or MODEL.PRUNING.ALLOW_MISSING",
            keys=("MODEL.WEIGHTS", "MODEL.PRUNING.ALLOW_MISSING"),
        )


def _prune_on_first_rank(
    cfg: CfgNode, model: nn.Module, data: Data | None, budget: Budget | Left | None
) -> tuple[PruneResult[nn.Module] | None, nn.Module]:
    result: PruneResult[nn.Module] | None = None
    failed: Exception | None = None
    told, text, weights = None, "", None
    if comm.is_main_process():
        try:
            request, trace_input = request_from_cfg(cfg), trace_input_from_cfg(cfg, model)
            verify = cfg.MODEL.PRUNING.VERIFY
            with alone():
                table = cfg.MODEL.PRUNING.LATENCY_TABLE
                result = prune_model(
                    model, request, trace_input, verify, data=data, budget=budget, latency_table=table
                )
            text, weights = result.step.to_json(), _on_cpu(result.model)
        except Exception as error:  # whatever it is, the other ranks wait to be told
            failed = error
            told = error if isinstance(error, PruneError) else PruneError(f"pruning failed: {error!r}")
    told, text, weights = comm.all_gather((told, text, weights))[0]
    if told is not None:
        raise failed or told
    if result is not None:
        return result, result.model
    pruned = prune_further(copy.deepcopy(model), PruneSpec.from_json(text))
    pruned.load_state_dict(weights)  # repaired
    return None, pruned


def _on_cpu(model: nn.Module) -> dict[str, torch.Tensor] | None:
    """Return the weights to send to other ranks; None if there are none."""
    if comm.get_world_size() == 1:
        return None
    return {name: tensor.cpu() for name, tensor in model.state_dict().items()}


def _save(
    cfg: CfgNode, model: nn.Module, result: PruneResult[nn.Module], config_format: ConfigFormat
) -> Report:
    folder = cfg.OUTPUT_DIR
    os.makedirs(folder, exist_ok=True)
    checkpointer = PruningCheckpointer(result.model, folder)
    checkpointer.save_struct = cfg.MODEL.PRUNING.SAVE_STRUCT
    checkpointer.save(PRUNED_FILE.removesuffix(".pth"), iteration=0)
    write_model(result.model, to_share(os.path.join(folder, PRUNED_FILE)))
    write_spec(result.spec, folder)
    config_format.write_pruned(cfg, folder, os.path.join(folder, PRUNED_FILE))
    report = report_of(result, input_size(cfg, model), torch.device(cfg.MODEL.DEVICE))
    write_report_json(report, folder)
    return report


def _compared(cfg: CfgNode, result: PruneResult[nn.Module], config_format: ConfigFormat) -> Detections | None:
    """Detections of the masked and the pruned model on the first test images; None without instances."""
    entries, mapper = DatasetCatalog.get(cfg.DATASETS.TEST[0])[:IMAGES], config_format.mapper(cfg)
    try:
        agreement = compare_detections(result.reference, result, [mapper(entry) for entry in entries])
    except PruneError as error:
        logger.info("detections are not compared: %s", error)
        return None
    return Detections(**dataclasses.asdict(agreement), images=len(entries))


def _finish(
    cfg: CfgNode,
    report: Report,
    evaluated: Mapping[str, tuple[nn.Module, Mapping[str, Any]]],
    config_format: ConfigFormat,
) -> None:
    weights = os.path.join(cfg.OUTPUT_DIR, PRUNED_FILE)
    files = {BASELINE: cfg.MODEL.WEIGHTS, PRUNED: weights}
    totals = {BASELINE: report.before, PRUNED: report.after}
    for name, (_, results) in evaluated.items():
        report = report.with_stage(evaluated_stage(cfg, name, totals[name], results, files[name]))
    publish(cfg, report, {name: model for name, (model, _) in evaluated.items()}, config_format)
    if not cfg.MODEL.FINETUNE:
        logger.info("Next, to get the accuracy back:\n  %s", config_format.next_command(weights))
