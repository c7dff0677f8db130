"""MODEL.PRUNING.PENALTY: train so that what MODEL.PRUNE takes afterwards is hardly missed."""

from __future__ import annotations

import copy
import logging
import math
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine import HookBase
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from d2prune.core.spec import PruneSpec
from d2prune.core.surgery import removed_by
from d2prune.engine.prune import prune_model
from d2prune.engine.settings import request_from_cfg, target_from_cfg
from d2prune.errors import PruneError

logger = logging.getLogger(__name__)


def penalties(cfg: CfgNode) -> list[HookBase]:
    """The hooks that PENALTY asks for in a training by ``cfg``: none, or one.

    Raises:
        PruneError: for a PENALTY that is no penalty.
    """
    penalty = cfg.MODEL.PRUNING.PENALTY
    if not (penalty >= 0 and math.isfinite(penalty)):
        raise PruneError(
            f"MODEL.PRUNING.PENALTY is {penalty}; expected 0 (none) or a number above 0, such as 50"
        )
    if penalty and cfg.MODEL.FINETUNE:
        logger.info("PENALTY %g is for the training before MODEL.PRUNE: fine-tuning goes without", penalty)
        return []
    return [GrowingPenalty(cfg)] if penalty else []


class GrowingPenalty(HookBase):
    """Decays, after each step, the weights that a prune by MODEL.PRUNING.* would take, ever harder.

    Wang et al., "Neural Pruning via Growing Regularization" (arXiv 2012.09243), with the decay apart from
    the gradient, as in AdamW: ``w -= learning_rate * penalty * w``. The penalty grows linearly from 0 to
    MODEL.PRUNING.PENALTY over the first half of the training, and stays there. What goes is chosen before
    the first step and kept in checkpoints, so that a resumed training goes on with the same.

    The channels fade, they are not cut: the model is as wide as before, and any code can train it on.
    """

    def __init__(self, cfg: CfgNode) -> None:
        self._cfg = cfg
        self._spec: PruneSpec | None = None
        self._fading: list[tuple[nn.Parameter, Tensor, dict[str, Any]]] = []

    def before_train(self) -> None:
        """Chooses what goes, unless a checkpoint has said so.

        Raises:
            PruneError: if the model can't be pruned so, or the optimizer trains nothing of what goes.
        """
        model = self.trainer.model
        model = model.module if isinstance(model, DistributedDataParallel) else model
        if self._spec is None:
            self._spec = self._choose(model)
        trained = {id(p): group for group in self.trainer.optimizer.param_groups for p in group["params"]}
        named = dict(model.named_parameters())
        self._fading = [
            (named[name], mark, trained[id(named[name])])
            for name, mark in removed_by(model, self._spec).items()
            if id(named[name]) in trained
        ]
        if not self._fading:
            raise PruneError(
                "MODEL.PRUNING.PENALTY: the optimizer trains no layer that MODEL.PRUNE would cut"
            )
        logger.info(
            "PENALTY: %d of %d weights fade; the decay grows to %g within %d of %d iterations",
            sum(int(mark.sum()) for _, mark, _ in self._fading), sum(p.numel() for p in named.values()),
            self._cfg.MODEL.PRUNING.PENALTY, self._growing, self.trainer.max_iter,
        )  # fmt: skip

    def _choose(self, model: nn.Module) -> PruneSpec:
        request, target = request_from_cfg(self._cfg), target_from_cfg(self._cfg, model)
        return prune_model(copy.deepcopy(model).eval(), request, target, prove=False).step

    @property
    def _growing(self) -> int:
        return max(1, self.trainer.max_iter // 2)

    @torch.no_grad()
    def after_step(self) -> None:
        """Decays what goes by this iteration's penalty."""
        penalty = self._cfg.MODEL.PRUNING.PENALTY * min(1.0, (self.trainer.iter + 1) / self._growing)
        for parameter, mark, group in self._fading:
            parameter.addcmul_(parameter, mark, value=-min(1.0, group["lr"] * penalty))

    def state_dict(self) -> dict[str, Any]:
        """What goes, for checkpoints."""
        return {} if self._spec is None else {"spec": self._spec.to_json()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes what :meth:`state_dict` gave."""
        self._spec = PruneSpec.from_json(state["spec"])
