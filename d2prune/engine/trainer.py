"""MODEL.PRUNE and MODEL.FINETUNE for an existing trainer: overrides only."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode
from detectron2.engine import DefaultTrainer, TrainerBase, hooks
from torch import nn

from d2prune.checkpoint import PruningCheckpointer, build_model
from d2prune.data.unreadable import name_unreadable
from d2prune.engine import finetuning
from d2prune.engine.data_order import keep_order
from d2prune.engine.pruning_run import run_prune
from d2prune.engine.ranks import check_group, ddp_on
from d2prune.engine.settings import check_modes, log_to
from d2prune.modeling.basic_block import separate_norms

logger = logging.getLogger(__name__)
if TYPE_CHECKING:  # what the mixin is mixed into
    from detectron2.engine import DefaultTrainer as _Trainer
else:
    _Trainer = object


class PruningMixin(_Trainer):
    """Put it before your trainer: ``class Trainer(d2prune.PruningMixin, MyTrainer)``.

    It works on DefaultTrainer and its subclasses, also on those that build everything themselves and
    replace the checkpointer, as AdelaiDet's does. With neither MODEL.PRUNE nor MODEL.FINETUNE the
    trainer trains as before, except that a pruned MODEL.WEIGHTS is recognised.

    MODEL.PRUNE alone builds no optimizer: pruning happens in :meth:`resume_or_load`, on a few images from
    ``build_train_loader``, and :meth:`train` returns the evaluation.
    """

    def __init__(self, cfg: CfgNode) -> None:
        check_group()
        log_to(cfg)
        check_modes(cfg)
        if cfg.MODEL.PRUNE or cfg.MODEL.FINETUNE:
            finetuning.take_over(cfg)
        self._save_struct = cfg.MODEL.PRUNING.SAVE_STRUCT
        self._results: Mapping[str, Any] | None = None
        self._found_prune = False
        if cfg.MODEL.PRUNE and not cfg.MODEL.FINETUNE:
            TrainerBase.__init__(self)
            self.cfg = cfg
            return
        if cfg.MODEL.PRUNE:
            self._found_prune = finetuning.is_pruned(cfg)
            if not self._found_prune:
                run_prune(cfg, self._build_to_prune, self.build_train_loader, self.test)
            cfg = finetuning.after_prune(cfg)
        with ddp_on(cfg.MODEL.DEVICE):
            super().__init__(cfg)
        self._order = None
        if cfg.MODEL.FINETUNE and hasattr(getattr(self, "_trainer", None), "data_loader"):
            name_unreadable(self._trainer.data_loader, cfg.MODEL.PRUNING.SKIP_UNREADABLE)
            self._order = keep_order(self._trainer, self.checkpointer, cfg.SEED)

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        """Build the model; the weights' file decides whether it is resized to a pruned one."""
        if not cfg.MODEL.FINETUNE:
            return build_model(cfg, build=super().build_model)
        weights = finetuning.deciding_checkpoint(cfg)
        model = build_model(cfg, weights, super().build_model)
        return finetuning.prepare(cfg, separate_norms(model), weights)

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> Any:
        """Build the base class's loader, whose errors name the image that can't be read."""
        return name_unreadable(super().build_test_loader(cfg, dataset_name))

    @classmethod
    def _build_to_prune(cls, cfg: CfgNode) -> nn.Module:
        return separate_norms(build_model(cfg, build=super().build_model))

    def resume_or_load(self, resume: bool = True) -> None:
        """With MODEL.PRUNE alone: prune, unless ``resume`` and it is done; else as the base class.

        Raises:
            PruneError: if FINETUNE would overwrite another run in OUTPUT_DIR without ``resume``.
        """
        if self._prunes_only:
            if resume and finetuning.is_pruned(self.cfg):
                logger.info("--resume: '%s' holds a pruned model already", self.cfg.OUTPUT_DIR)
                self._results = {}
            else:
                self._results = run_prune(self.cfg, self._build_to_prune, self.build_train_loader, self.test)
            return
        if self.cfg.MODEL.FINETUNE:
            resume = finetuning.check_output_dir(self.cfg, resume, self._found_prune)
        super().resume_or_load(resume=resume)
        if self._order is not None:
            self._order.start_at(self.start_iter)

    def train(self) -> Any:
        """Train; after FINETUNE, add its row to the report and point pruned.yaml at the result."""
        if self._prunes_only:
            if self._results is None:
                self.resume_or_load(resume=False)
            return self._results
        with finetuning.named_divergence(self.cfg):
            results = super().train()
        if self.cfg.MODEL.FINETUNE:
            finetuning.save_final(self.cfg, self.checkpointer, self.max_iter)
            evaluated = getattr(self, "_last_eval_results", None)
            finetuning.finish(self.cfg, self.checkpointer.model, evaluated or {}, self.max_iter)
        return results

    @property
    def _prunes_only(self) -> bool:
        return bool(self.cfg.MODEL.PRUNE and not self.cfg.MODEL.FINETUNE)

    @property
    def checkpointer(self) -> DetectionCheckpointer:
        """Whatever checkpointer the trainer makes; setting it makes it one that knows pruned models."""
        return self.__dict__["checkpointer"]

    @checkpointer.setter
    def checkpointer(self, value: DetectionCheckpointer) -> None:
        self.__dict__["checkpointer"] = as_pruning(value, self._save_struct)

    def build_hooks(self) -> list[Any]:
        """Build the base class's hooks; a checkpointer of their own learns of pruned models, too."""
        made = super().build_hooks()
        for hook in made:
            if isinstance(hook, hooks.PeriodicCheckpointer):
                hook.checkpointer = as_pruning(hook.checkpointer, self._save_struct)
        return made


def as_pruning(value: DetectionCheckpointer, save_struct: bool) -> DetectionCheckpointer:
    """Make a checkpointer a PruningCheckpointer in place, keeping what its own class adds."""
    if not isinstance(value, PruningCheckpointer):
        name = f"Pruning{type(value).__name__}"
        value.__class__ = type(name, (PruningCheckpointer, type(value)), {})
    value.save_struct = save_struct
    return value


class PruneTrainer(PruningMixin, DefaultTrainer):
    """Detectron2's DefaultTrainer with MODEL.PRUNE and MODEL.FINETUNE."""
