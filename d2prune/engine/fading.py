"""MODEL.PRUNING.FADE: train so that what MODEL.PRUNE takes afterwards is hardly missed."""

from __future__ import annotations

import copy
import logging
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine import HookBase
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from d2prune.core.cut.spec import PruneSpec
from d2prune.core.cut.surgery import removed_by
from d2prune.engine.settings import request_from_cfg, trace_input_from_cfg
from d2prune.errors import PruneError
from d2prune.pruning import prune_model

logger = logging.getLogger(__name__)


def fading(cfg: CfgNode) -> list[HookBase]:
    """Return the hooks that FADE asks for in a training by ``cfg``: none, or one.

    Raises:
        PruneError: for a FADE that is no fraction.
    """
    left = cfg.MODEL.PRUNING.FADE
    if not 0 <= left < 1:
        raise PruneError(
            f"MODEL.PRUNING.FADE is {left}; expected 0 (off) or the fraction that is left, 0 < FADE < 1",
            keys=("MODEL.PRUNING.FADE", "FADE"),
        )
    if left and cfg.MODEL.FINETUNE:
        logger.info("FADE %g is for the training before MODEL.PRUNE: fine-tuning goes without", left)
        return []
    return [Fade(cfg)] if left else []


class Fade(HookBase):
    """Shrinks a little, after each step, the weights that a prune by MODEL.PRUNING.* would take.

    After T iterations they are FADE times what they were, but for what training gives back: each step
    multiplies them by ``FADE ** (1 / T)``. That is weight decay of what goes alone, as in Wang et al.,
    "Neural Pruning via Growing Regularization" (arXiv 2012.09243), but apart from the gradient, as in
    AdamW. A longer training takes less in each step and gives back more, so it wants a smaller FADE.
    What goes is chosen before the first step and kept in checkpoints, so that a resumed training goes
    on with the same.

    The channels fade, they are not cut: the model is as wide as before, and any code can train it on.
    """

    def __init__(self, cfg: CfgNode) -> None:
        self._cfg = cfg
        self._spec: PruneSpec | None = None
        self._fading: list[tuple[nn.Parameter, Tensor]] = []

    def before_train(self) -> None:
        """Choose what goes, unless a checkpoint has said so.

        Raises:
            PruneError: if the model can't be pruned so, or the optimizer trains nothing of what goes.
        """
        model = self.trainer.model
        model = model.module if isinstance(model, DistributedDataParallel) else model
        if self._spec is None:
            self._spec = self._choose(model)
        trained = {id(p) for group in self.trainer.optimizer.param_groups for p in group["params"]}
        named = dict(model.named_parameters())
        marks = removed_by(model, self._spec)
        self._fading = [(named[name], mark) for name, mark in marks.items() if id(named[name]) in trained]
        if not self._fading:
            raise PruneError(
                "MODEL.PRUNING.FADE: the optimizer trains no layer that MODEL.PRUNE would cut",
                keys=("MODEL.PRUNING.FADE", "MODEL.PRUNE"),
            )
        logger.info(
            "FADE: %d of %d weights fade to %g in %d iterations",
            sum(int(mark.sum()) for _, mark in self._fading), sum(p.numel() for p in named.values()),
            self._cfg.MODEL.PRUNING.FADE, self.trainer.max_iter,
        )  # fmt: skip

    def _choose(self, model: nn.Module) -> PruneSpec:
        request, trace_input = request_from_cfg(self._cfg), trace_input_from_cfg(self._cfg, model)
        return prune_model(copy.deepcopy(model).eval(), request, trace_input, prove=False).step

    @torch.no_grad()
    def after_step(self) -> None:
        """Take this step's share off what goes."""
        share = 1 - self._cfg.MODEL.PRUNING.FADE ** (1 / self.trainer.max_iter)
        for parameter, mark in self._fading:
            parameter.addcmul_(parameter, mark, value=-share)

    def state_dict(self) -> dict[str, Any]:
        """Return what goes, for checkpoints."""
        return {} if self._spec is None else {"spec": self._spec.to_json()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take what :meth:`state_dict` gave."""
        self._spec = PruneSpec.from_json(state["spec"])
