"""Carrying out a recipe: the channels that count least go, by an ordinary prune, and weights stay."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch import nn

from d2prune.adapters import TraceInput
from d2prune.checkpoint.narrowing import TensorRow, load_narrower
from d2prune.core.types import Request
from d2prune.engine.settings import trace_input_from_cfg
from d2prune.errors import PruneError
from d2prune.pruning import PruneResult, find_groups, measure_model, prune_model
from d2prune.recipes.changes import Change, changes_between, refuse_inexact
from d2prune.recipes.modules import widths_with
from d2prune.recipes.what_if import outline


@dataclass(frozen=True, eq=False)
class Narrowed:
    """What :func:`carry_out` returns.

    Attributes:
        model: as the narrower configuration builds it, with the weights that are left.
        result: of the prune; None if no channel of the recipe could go that way.
        changes: all that is different.
        rows: what became of every tensor that the prune left.
    """

    model: nn.Module
    result: PruneResult[nn.Module] | None
    changes: tuple[Change, ...]
    rows: tuple[TensorRow, ...]


def carry_out(cfg: CfgNode, model: nn.Module, narrower: CfgNode, allow_inexact: bool = False) -> Narrowed:
    """Prune ``model``, of ``cfg``, to the widths of ``narrower``, and prove it.

    Args:
        cfg: of the model at hand; its MODEL.PRUNING.CRITERION and VERIFY are heeded.
        model: with its weights; not changed.
        narrower: the same configuration with smaller widths.
        allow_inexact: go on where a change is not exact: channels under a LayerNorm, or that code takes
            the mean of, go by their scores like the others; of a layer that is gone nothing is kept.

    Raises:
        PruneError: if a change is not exact and that is not allowed, or the prune fails its proof.
    """
    trace_input = trace_input_from_cfg(cfg, model)
    groups = find_groups(model, trace_input)
    changes = changes_between(model, groups, outline(narrower))
    if not allow_inexact:
        refuse_inexact(changes)
    result = None
    if any(change.group for change in changes):
        request = request_of(cfg, model, changes, allow_inexact)
        result = prune_model(model, request, trace_input, cfg.MODEL.PRUNING.VERIFY)
    final = build_model(narrower)
    rows = load_narrower(final, (result.model if result is not None else model).state_dict())
    if result is not None and not any(change.reason for change in changes):
        _check_same(final.eval(), result.model, rows, trace_input)
    return Narrowed(final.eval(), result, changes, rows)


def request_of(cfg: CfgNode, model: nn.Module, changes: Sequence[Change], allow_inexact: bool) -> Request:
    """Return the prune that takes out just the changes' channels: a ratio for each group, and no other group.

    Raises:
        PruneError: if nothing would go.
    """
    chosen = [(change.group, change.units) for change in changes if change.group is not None]
    if not chosen:
        raise PruneError("nothing of the recipe can be done by taking channels out")
    costs = measure_model(model, trace_input_from_cfg(cfg, model))
    left = costs.total("params", widths_with(chosen, costs))
    ratios = {n: 1 - left / group.units for group, left in chosen for n in group.producers}
    return Request(
        amount=1 - left / costs.totals.params,
        target="params",
        criterion=cfg.MODEL.PRUNING.CRITERION,
        ratios=tuple(ratios.items()),
        include=tuple(ratios),
        allow_inexact=allow_inexact,
    )


def keys_of(request: Request) -> dict[str, Any]:
    """Return the request as MODEL.PRUNING.* keys, for a trainer."""
    return {
        "MODEL.PRUNING.AMOUNT": request.amount,
        "MODEL.PRUNING.TARGET": request.target,
        "MODEL.PRUNING.RATIOS": [[pattern, ratio] for pattern, ratio in request.ratios],
        "MODEL.PRUNING.INCLUDE": list(request.include),
        "MODEL.PRUNING.PROTECT": [],
        "MODEL.PRUNING.ROUND_TO": request.round_to,
        "MODEL.PRUNING.ALLOW_INEXACT": request.allow_inexact,
    }


def _check_same(
    final: nn.Module, pruned: nn.Module, rows: Sequence[TensorRow], trace_input: TraceInput
) -> None:
    """The configuration must build what was proved, not something else of the same shapes."""
    wrong = [str(row) for row in rows if row.how != "taken"]
    if not wrong:
        with torch.no_grad():
            got, want = trace_input.outputs(final), trace_input.outputs(pruned.eval())
        wrong = [name for name in want if not torch.allclose(got[name], want[name], rtol=1e-3, atol=1e-4)]
    if wrong:
        raise PruneError(
            f"the recipe's configuration does not build the pruned model: {wrong[0]} differs; prune with "
            "MODEL.PRUNE and MODEL.PRUNING.RATIOS, whose pruned.yaml builds it"
        )
