"""MODEL.FINETUNE: which checkpoint it starts from, what it may overwrite, what trains, how it ends."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.utils import comm
from torch import nn

from d2prune.checkpoint import PruningCheckpointer, spec_of_file, unpruned_cfg, write_model
from d2prune.checkpoint.refusals import no_spec
from d2prune.engine import finished
from d2prune.engine.config_format import YAML, ConfigFormat
from d2prune.engine.latest import damage_of, fall_back, last_checkpoint
from d2prune.engine.output_lock import hold
from d2prune.engine.outputs import write_spec
from d2prune.engine.publish import evaluated_stage, publish
from d2prune.engine.settings import FINAL_FILE, PRUNED_FILE, to_share, trace_input_from_cfg
from d2prune.errors import PruneError
from d2prune.files import sweep
from d2prune.modeling.unfuse import thaw
from d2prune.pruning import measure_model
from d2prune.rebuild import spec_of_model
from d2prune.report.record import (
    BASELINE,
    CONTROL,
    FINE_TUNED,
    REPORT_FILE,
    Report,
    read_report_json,
)

logger = logging.getLogger(__name__)


def take_over(cfg: CfgNode) -> None:
    """Lock OUTPUT_DIR for this run, sweep what killed writes left, pass over a damaged last checkpoint.

    Raises:
        PruneError: if another run holds the folder.
    """
    hold(cfg.OUTPUT_DIR)
    if comm.is_main_process():
        sweep(cfg.OUTPUT_DIR)
        if cfg.MODEL.FINETUNE:
            fall_back(cfg.OUTPUT_DIR)
    comm.synchronize()


def has_pruned_run(cfg: CfgNode) -> bool:
    """Return whether OUTPUT_DIR's last checkpoint is of a pruned model."""
    last = last_checkpoint(cfg.OUTPUT_DIR)
    return bool(last) and spec_of_file(last) is not None


def is_pruned(cfg: CfgNode) -> bool:
    """Return whether MODEL.PRUNE has been carried out in OUTPUT_DIR, to its end.

    Raises:
        PruneError: if it was asked for something else.
    """
    last = last_checkpoint(cfg.OUTPUT_DIR)
    damage = damage_of(last) if os.path.basename(last) == PRUNED_FILE else ""
    if damage:
        logger.warning("%s; it is pruned anew", damage)
    if damage or not has_pruned_run(cfg):
        return False
    tuned = os.path.basename(last) != PRUNED_FILE  # which starts only after the end
    return tuned or finished.is_finished(cfg)


def deciding_checkpoint(cfg: CfgNode) -> str:
    """Return the file whose spec the model is built by: the run to resume where there is one, or WEIGHTS."""
    return last_checkpoint(cfg.OUTPUT_DIR) if has_pruned_run(cfg) else cfg.MODEL.WEIGHTS


def after_prune(cfg: CfgNode) -> CfgNode:
    """Return the config that fine-tunes what MODEL.PRUNE has just saved."""
    out = unpruned_cfg(cfg).clone()  # a pruned.yaml's SPEC is not the one that it was pruned to now
    out.defrost()
    out.MODEL.PRUNE = False
    out.MODEL.WEIGHTS = os.path.join(cfg.OUTPUT_DIR, PRUNED_FILE)
    out.freeze()
    return out


def check_output_dir(cfg: CfgNode, resume: bool, found_prune: bool = False) -> bool:
    """Whether to resume; never loses another run's files.

    Args:
        cfg: of the fine-tuning.
        resume: what the user asked for.
        found_prune: MODEL.PRUNE was on too, and left undone: the model_pruned.pth is an earlier one.

    Raises:
        PruneError: if OUTPUT_DIR holds another run and ``resume`` is False.
    """
    last = last_checkpoint(cfg.OUTPUT_DIR)
    # The pruned checkpoint itself is a start, not a run to resume: it holds no optimizer.
    starts = (last, to_share(last))
    start = os.path.basename(last) == PRUNED_FILE and any(_same(file, cfg.MODEL.WEIGHTS) for file in starts)
    if last and not (start and (resume or not found_prune)):
        if not resume:
            raise PruneError(
                f"OUTPUT_DIR '{cfg.OUTPUT_DIR}' holds another run ({os.path.basename(last)}); "
                "pass --resume to continue it, or set OUTPUT_DIR to another folder",
                keys=("OUTPUT_DIR",),
            )
        return True
    refuse_to_lose_result(cfg)
    comm.synchronize()
    if comm.is_main_process():
        _set_aside(Path(cfg.OUTPUT_DIR) / FINAL_FILE)
    return False


def refuse_to_lose_result(cfg: CfgNode) -> None:
    """Raise PruneError if OUTPUT_DIR holds a fine-tuned model, whose spec and report are there, too."""
    final = os.path.join(cfg.OUTPUT_DIR, FINAL_FILE)
    if os.path.isfile(final) and spec_of_file(final) is not None:
        raise PruneError(
            f"OUTPUT_DIR '{cfg.OUTPUT_DIR}' holds another run's result ({FINAL_FILE}, of a pruned "
            "model), which would be lost; set OUTPUT_DIR to another folder",
            keys=("OUTPUT_DIR",),
        )


def _same(one: str, other: str) -> bool:
    return os.path.realpath(one) == os.path.realpath(other)


def _set_aside(final: Path) -> None:
    """Rename the unpruned model_final.pth that fine-tuning would replace, to a name not yet taken."""
    if final.is_file():
        aside, number = final.with_name("model_final_unpruned.pth"), 1
        while aside.exists():
            number += 1
            aside = final.with_name(f"model_final_unpruned_{number}.pth")
        os.replace(final, aside)
        logger.warning("'%s' is of an unpruned model: renamed to '%s'", final, aside.name)


def prepare(cfg: CfgNode, model: nn.Module, weights: str, config_format: ConfigFormat = YAML) -> nn.Module:
    """Check that the model is a pruned one, thaw it unless told otherwise, and say what trains.

    Raises:
        PruneError: if ``weights`` holds no spec.
    """
    if spec_of_model(model) is None and not cfg.MODEL.PRUNING.TRUST_STRUCT:
        raise no_spec(weights)
    frozen = [p for p in model.parameters() if p.is_floating_point() and not p.requires_grad]
    if cfg.MODEL.PRUNING.KEEP_FROZEN:
        logger.info("KEEP_FROZEN: %d frozen parameters and all frozen norms stay frozen", len(frozen))
    else:
        thawed = thaw(model)
        for parameter in frozen:
            parameter.requires_grad_(True)
        if thawed or frozen:
            logger.info(
                "fine-tuning trains %d FrozenBatchNorm2d as BatchNorm2d and %d frozen parameters (%s)",
                len(thawed), len(frozen), config_format.thawed(cfg),
            )  # fmt: skip
    norms = sum(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules())
    logger.info(
        "fine-tuning '%s': %d iterations of %d images, %s, learning rate %g, %d BatchNorms train",
        weights, cfg.SOLVER.MAX_ITER, cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.LR_SCHEDULER_NAME,
        cfg.SOLVER.BASE_LR, norms,
    )  # fmt: skip
    return model


@contextmanager
def named_divergence(cfg: CfgNode) -> Iterator[None]:
    """While this is open, a loss that is NaN or infinite is a PruneError: what is left, and what to try."""
    try:
        yield
    except FloatingPointError as error:
        last = last_checkpoint(cfg.OUTPUT_DIR) or cfg.MODEL.WEIGHTS
        raise PruneError(
            f"{str(error).splitlines()[0]} The last good checkpoint is '{last}'. Lower SOLVER.BASE_LR (it is "
            f"{cfg.SOLVER.BASE_LR:g}), or set SOLVER.CLIP_GRADIENTS.ENABLED True",
            keys=("SOLVER.BASE_LR", "SOLVER.CLIP_GRADIENTS.ENABLED True"),
        ) from error


def save_final(cfg: CfgNode, checkpointer: PruningCheckpointer, iterations: int) -> None:
    """Write the last checkpoint where a run was killed just before it, and has no iteration left to do."""
    last = os.path.basename(last_checkpoint(cfg.OUTPUT_DIR))
    if comm.is_main_process() and last != FINAL_FILE:
        checkpointer.save(FINAL_FILE.removesuffix(".pth"), iteration=iterations - 1)


def finish(
    cfg: CfgNode,
    model: nn.Module,
    results: Mapping[str, Any],
    iterations: int,
    config_format: ConfigFormat = YAML,
) -> None:
    """Write spec, pruned config and the report for the fine-tuned model; on the first rank only."""
    if not comm.is_main_process():
        return
    spec = spec_of_model(model)
    if spec is None:
        logger.warning("the model came from a struct without a spec: no pruned config and no report")
        return
    weights = os.path.join(cfg.OUTPUT_DIR, FINAL_FILE)
    write_spec(spec, cfg.OUTPUT_DIR)
    write_model(model, to_share(weights))
    path = config_format.write_pruned(cfg, cfg.OUTPUT_DIR, weights)
    logger.info("'%s' now names the fine-tuned weights", path)
    report = read_report_json(os.path.dirname(cfg.MODEL.WEIGHTS))
    if report is None:
        logger.warning("no %s beside '%s': no report", REPORT_FILE, cfg.MODEL.WEIGHTS)
        return
    _add_row(cfg, report, FINE_TUNED, model, results, weights, iterations, config_format)
    baseline = report.stage(BASELINE)
    command = config_format.control_command(cfg, baseline.weights) if baseline else ""
    if command:
        logger.info("To compare with the unpruned model, trained on for as long:\n  %s", command)


def add_control(cfg: CfgNode, model: nn.Module, results: Mapping[str, Any], folder: str) -> None:
    """Add the unpruned baseline, trained for as long as the fine-tuning, to a report.

    Without it, fine-tuning an undertrained baseline looks like a success of pruning.

    Args:
        cfg: of the control's training.
        model: the trained control.
        results: its evaluation.
        folder: where pruning_report.json lies; it is written again there.

    Raises:
        PruneError: if there is no report.
    """
    report = read_report_json(folder)
    if report is None:
        raise PruneError(f"'{folder}' holds no {REPORT_FILE}: prune first with MODEL.PRUNE True")
    weights = os.path.join(cfg.OUTPUT_DIR, FINAL_FILE)
    there = cfg.clone()
    there.defrost()
    there.OUTPUT_DIR = folder
    _add_row(there, report, CONTROL, model, results, weights, cfg.SOLVER.MAX_ITER)


def _add_row(
    cfg: CfgNode,
    report: Report,
    name: str,
    model: nn.Module,
    results: Mapping[str, Any],
    weights: str,
    iterations: int,
    config_format: ConfigFormat = YAML,
) -> None:
    """Add a stage, or replace the one of that name, and publish the report in OUTPUT_DIR."""
    totals = measure_model(model, trace_input_from_cfg(cfg, model)).totals
    report = report.with_stage(evaluated_stage(cfg, name, totals, results, weights, iterations))
    publish(cfg, report, {**_earlier(cfg, report, name, config_format), name: model}, config_format)


def _earlier(cfg: CfgNode, report: Report, name: str, config_format: ConfigFormat) -> dict[str, nn.Module]:
    """The other stages' models, for timing and images, where their files still exist."""
    models = {}
    for stage in report.stages:
        if stage.name != name and os.path.isfile(stage.weights):
            earlier = cfg.clone()
            earlier.defrost()
            earlier.MODEL.WEIGHTS, earlier.MODEL.FINETUNE = stage.weights, False
            models[stage.name] = config_format.build(earlier)
    return models
