"""Detectors and segmenters of Detectron2's configs, trained by tools/train_net.py."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.engine import DefaultTrainer, SimpleTrainer, hooks
from detectron2.utils.env import seed_all_rng
from torch import nn

from d2prune.adapters import TraceInput
from d2prune.checkpoint import build_from_cfg
from d2prune.config import get_cfg, read_config
from d2prune.engine.calibration import calibration_data
from d2prune.engine.settings import FINAL_FILE, trace_input_from_cfg
from d2prune.errors import PruneError
from d2prune.pruning.budget import Scores
from d2prune.pruning.calibration import Losses
from d2prune.report.record import average_precision

WARMUP = 50  # iterations
UNPRUNED_RATE = 0.5


@dataclass
class Detector:
    """A family of one config file.

    Attributes:
        name: the row's name.
        config: the file that the model was trained by.
        trainer: a trainer class with loader, optimizer and evaluator.
        weights: the trained model; by default OUTPUT_DIR's last one.
        rate: learning rate after a prune, in multiples of the training's; the unpruned control takes half.
    """

    name: str
    config: str
    trainer: type[DefaultTrainer]
    weights: str = ""
    rate: float = 1.0

    @cached_property
    def cfg(self) -> CfgNode:
        """The config, read when it is first needed, with the trained model's MODEL.WEIGHTS."""
        cfg = read_config(get_cfg(), self.config, [])
        cfg.defrost()
        cfg.MODEL.WEIGHTS = self.weights or str(Path(cfg.OUTPUT_DIR) / FINAL_FILE)
        cfg.freeze()
        return cfg

    @property
    def round_to(self) -> int:
        """See :class:`Family`."""
        return int(self.cfg.MODEL.PRUNING.ROUND_TO)

    def load(self) -> nn.Module:
        """See :meth:`Family.load`."""
        weights = self.cfg.MODEL.WEIGHTS
        if not Path(weights).is_file():
            raise PruneError(
                f"'{weights}' is not there: train it with tools/train_net.py --config-file {self.config}"
            )
        return build_from_cfg(self.cfg, self.trainer.build_model)

    def trace_input(self, model: nn.Module) -> TraceInput:
        """See :meth:`Family.trace_input`."""
        return trace_input_from_cfg(self.cfg, model)

    def batches(self, seed: int) -> tuple[list[Any], Losses | None]:
        """See :meth:`Family.batches`."""
        seed_all_rng(seed)
        data = calibration_data(self.cfg, self.trainer.build_train_loader)
        assert data is not None, "the default asks for images"
        return list(data.batches), None

    def evaluate(self, model: nn.Module) -> Scores:
        """See :meth:`Family.evaluate`: AP by task."""
        return average_precision(self.trainer.test(self.cfg, model))

    def tune(self, model: nn.Module, iterations: int, seed: int, *, pruned: bool = True) -> nn.Module:
        """See :meth:`Family.tune`; the learning rate is annealed."""
        cfg = self.cfg.clone()
        cfg.defrost()
        cfg.SOLVER.MAX_ITER, cfg.SOLVER.WARMUP_ITERS = iterations, WARMUP
        cfg.SOLVER.BASE_LR *= self.rate if pruned else UNPRUNED_RATE
        seed_all_rng(seed)
        model = copy.deepcopy(model).train()
        optimizer = self.trainer.build_optimizer(cfg, model)
        loop = SimpleTrainer(model, self.trainer.build_train_loader(cfg), optimizer)
        loop.register_hooks([hooks.LRScheduler(optimizer, self.trainer.build_lr_scheduler(cfg, optimizer))])
        loop.train(0, iterations)
        return model.eval()
