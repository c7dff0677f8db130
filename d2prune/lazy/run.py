"""Training, pruning, fine-tuning and evaluation by a LazyConfig: tools/lazyconfig_train_net.py."""

from __future__ import annotations

import copy
import logging
from argparse import Namespace
from collections.abc import Mapping
from typing import Any

import torch
from detectron2.config import CfgNode, instantiate
from detectron2.engine import AMPTrainer, SimpleTrainer, TrainerBase, default_setup, default_writers, hooks
from detectron2.engine.defaults import create_ddp_model
from detectron2.evaluation import inference_on_dataset, print_csv_format
from detectron2.utils import comm
from omegaconf import DictConfig
from torch import nn

from d2prune.checkpoint import PruningCheckpointer, build_model
from d2prune.data.unreadable import name_unreadable
from d2prune.engine import finetuning
from d2prune.engine.data_order import keep_order
from d2prune.engine.pruning_run import run_prune
from d2prune.engine.ranks import check_group, ddp_arguments
from d2prune.engine.settings import check_modes, log_to
from d2prune.errors import PruneError
from d2prune.lazy.config import prune_defaults, read_lazy_config, settings_of
from d2prune.lazy.config_format import LazyFormat
from d2prune.modeling.basic_block import separate_norms

logger = logging.getLogger(__name__)
Results = Mapping[str, Any]


def main(args: Namespace) -> Results:
    """Do what the command line asks for: train, prune, fine-tune or, with --eval-only, evaluate.

    Args:
        args: of Detectron2's parser, with ``imports``.

    Returns:
        The evaluation of the model that comes out; empty without an evaluator.

    Raises:
        PruneError: in the words of LazyConfig's keys.
    """
    try:
        config = read_lazy_config(args.config_file, args.opts, args.imports)
        config_format, cfg = (
            LazyFormat(config, args.config_file, args.opts, args.imports),
            settings_of(config),
        )
        _check_device(cfg.MODEL.DEVICE)
        default_setup(config, args)
        check_group()
        log_to(cfg)
        if args.eval_only:
            model = build_model(cfg, build=config_format.instantiate)
            PruningCheckpointer(model, cfg.OUTPUT_DIR).resume_or_load(cfg.MODEL.WEIGHTS, resume=args.resume)
            return evaluate(config, create_ddp_model(model, **ddp_arguments(cfg.MODEL.DEVICE)))
        return run(config_format, cfg, args.resume)
    except PruneError as error:
        raise error.spelled(_LAZY_KEYS) from error


def run(config_format: LazyFormat, cfg: CfgNode, resume: bool) -> Results:
    """Prune, fine-tune, both or neither (then train), as MODEL.PRUNE and FINETUNE say."""
    check_modes(cfg)
    if cfg.MODEL.PRUNE or cfg.MODEL.FINETUNE:
        finetuning.take_over(cfg)
    done = cfg.MODEL.PRUNE and finetuning.is_pruned(cfg)
    results: Results = {}
    if cfg.MODEL.PRUNE and done and resume:
        logger.info("--resume: '%s' holds a pruned model already", cfg.OUTPUT_DIR)
    elif cfg.MODEL.PRUNE and not (done and cfg.MODEL.FINETUNE):
        results = run_prune(
            cfg,
            lambda cfg: _build_to_prune(config_format, cfg),
            lambda cfg: _training_batches(config_format.config),
            _tester(config_format.config),
            config_format,
        )
    if cfg.MODEL.PRUNE and not cfg.MODEL.FINETUNE:
        return results
    if cfg.MODEL.PRUNE:
        cfg = finetuning.after_prune(cfg)
    if cfg.MODEL.FINETUNE:
        resume = finetuning.check_output_dir(cfg, resume, found_prune=done)
    return train(config_format, cfg, resume)


def train(config_format: LazyFormat, cfg: CfgNode, resume: bool) -> Results:
    """Train the model that ``cfg`` and its weights' file describe; with FINETUNE, finish the report."""
    missing = [key for key in ("dataloader", "optimizer", "lr_multiplier") if key not in config_format.config]
    if missing:
        raise PruneError(f"the config has no {missing[0]!r}, which training needs")
    ddp = {**ddp_arguments(cfg.MODEL.DEVICE), **config_format.config.train.ddp}
    model = create_ddp_model(_build_to_train(config_format, cfg), **ddp)
    trainer = _trainer(config_format.config, model)
    checkpointer = PruningCheckpointer(model, cfg.OUTPUT_DIR, trainer=trainer)
    checkpointer.save_struct = cfg.MODEL.PRUNING.SAVE_STRUCT
    evaluated: dict[str, Any] = {}
    name_unreadable(trainer.data_loader, cfg.MODEL.PRUNING.SKIP_UNREADABLE)
    order = keep_order(trainer, checkpointer, config_format.config.train.get("seed", -1))
    _register_hooks(trainer, checkpointer, config_format.config, evaluated)
    checkpointer.resume_or_load(cfg.MODEL.WEIGHTS, resume=resume)
    start = trainer.iter + 1 if resume and checkpointer.has_checkpoint() else 0
    order.start_at(start)
    with finetuning.named_divergence(cfg):
        trainer.train(start, cfg.SOLVER.MAX_ITER)
    if cfg.MODEL.FINETUNE:
        finetuning.save_final(cfg, checkpointer, cfg.SOLVER.MAX_ITER)
        finetuning.finish(cfg, checkpointer.model, evaluated, cfg.SOLVER.MAX_ITER, config_format)
    return evaluated


def evaluate(config: DictConfig, model: nn.Module) -> Results:
    """Return dataloader.evaluator's results on dataloader.test; empty where the config names no evaluator."""
    if config.get("dataloader", {}).get("evaluator") is None:
        return {}
    loader = name_unreadable(instantiate(config.dataloader.test))
    evaluator = instantiate(config.dataloader.evaluator)
    results = inference_on_dataset(model, loader, evaluator)
    if comm.is_main_process():
        print_csv_format(results)
    return results or {}


_LAZY_KEYS = {
    "MODEL.PRUNE True": "prune.enabled=True",
    "MODEL.FINETUNE False": "prune.finetune=False",
    "MODEL.PRUNE": "prune.enabled",
    "MODEL.FINETUNE": "prune.finetune",
    "MODEL.WEIGHTS": "train.init_checkpoint",
    "OUTPUT_DIR": "train.output_dir",
    "SOLVER.MAX_ITER": "train.max_iter",
    **{f"MODEL.PRUNING.{key.upper()}": f"prune.{key}" for key in prune_defaults()},
    **{key.upper(): f"prune.{key}" for key in prune_defaults()},
}


def _tester(config: DictConfig) -> Any:
    return lambda cfg, model: evaluate(config, model)


def _check_device(name: str) -> None:
    try:
        torch.empty(0, device=name)
    except (AssertionError, RuntimeError) as error:
        default = torch.get_default_device()
        raise PruneError(
            f"train.device is '{name}', which is not here; this machine has {default}"
        ) from error


def _build_to_prune(config_format: LazyFormat, cfg: CfgNode) -> nn.Module:
    return separate_norms(build_model(cfg, build=config_format.instantiate))


def _build_to_train(config_format: LazyFormat, cfg: CfgNode) -> nn.Module:
    if not cfg.MODEL.FINETUNE:
        return build_model(cfg, build=config_format.instantiate)
    weights = finetuning.deciding_checkpoint(cfg)
    model = separate_norms(build_model(cfg, weights, config_format.instantiate))
    return finetuning.prepare(cfg, model, weights, config_format)


def _training_batches(config: DictConfig) -> Any:
    loader = config.get("dataloader", {}).get("train")
    if loader is None:
        raise PruneError("the config has no 'dataloader.train'", keys=("DATASETS.TRAIN",))
    return instantiate(loader)


def _trainer(config: DictConfig, model: nn.Module) -> SimpleTrainer:
    optimizer = copy.deepcopy(config).optimizer  # the model must not come into what is written to files
    optimizer.params.model = model
    kind = AMPTrainer if config.train.amp.enabled else SimpleTrainer
    return kind(model, instantiate(config.dataloader.train), instantiate(optimizer))


def _register_hooks(
    trainer: TrainerBase, checkpointer: PruningCheckpointer, config: DictConfig, evaluated: dict[str, Any]
) -> None:
    """Detectron2's usual hooks, in its order; ``evaluated`` is given each evaluation."""

    def evaluate_and_keep() -> Results:
        evaluated.clear()
        evaluated.update(evaluate(config, trainer.model))
        return evaluated

    settings, first = config.train, comm.is_main_process()
    scheduler = hooks.LRScheduler(scheduler=instantiate(config.lr_multiplier))
    trainer.register_hooks([hooks.IterationTimer(), scheduler])
    if first:
        trainer.register_hooks([hooks.PeriodicCheckpointer(checkpointer, **settings.checkpointer)])
    trainer.register_hooks([hooks.EvalHook(settings.eval_period, evaluate_and_keep)])
    if first:
        writers = default_writers(settings.output_dir, settings.max_iter)
        trainer.register_hooks([hooks.PeriodicWriter(writers, period=settings.log_period)])
