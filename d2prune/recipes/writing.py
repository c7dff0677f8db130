"""A recipe's files: the narrower configuration, and the weights it names."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from torch import nn

from d2prune.checkpoint import loading_table, write_checkpoint
from d2prune.recipes.execution import Narrowed, carry_out
from d2prune.recipes.recipe import Recipe, changes_of, narrowed, write_narrowed
from d2prune.report.table import quantity


def write_recipe(
    cfg: CfgNode,
    file: str,
    opts: Sequence[str],
    recipe: Recipe,
    folder: str,
    model: nn.Module | None = None,
    allow_inexact: bool = False,
) -> str:
    """Write ``<file>_prune<recipe>.yaml``, and with a model also the pruned weights that it names.

    Args:
        cfg: the whole configuration.
        file: where it was read from.
        opts: KEY VALUE KEY VALUE … that were set besides.
        recipe: what to narrow.
        folder: where to write.
        model: of ``cfg``, with its weights: is pruned; None writes the configuration only.
        allow_inexact: see :func:`d2prune.recipes.carry_out`.

    Returns:
        What was written, and how it came out.

    Raises:
        PruneError: as :func:`d2prune.recipes.carry_out`; nothing is written then.
    """
    path = Path(folder) / f"{Path(file).stem}_prune{recipe.name}.yaml"
    changes = {key: _value(cfg, key) for key in opts[::2]} | changes_of(cfg, recipe.steps)
    changes["MODEL.WEIGHTS"], text = "", "sizes only"
    if model is not None:
        done = carry_out(cfg, model, narrowed(cfg, recipe.steps), allow_inexact)
        weights = path.with_suffix(".pth")
        write_checkpoint({"model": done.model.state_dict()}, weights)
        changes["MODEL.WEIGHTS"], text = str(weights.resolve()), _outcome(done)
    write_narrowed(file, changes, str(path))
    return f"{path}: {text}"


def _value(cfg: CfgNode, key: str) -> Any:
    return reduce(lambda node, name: node[name], key.split("."), cfg)


def _outcome(done: Narrowed) -> str:
    lines = []
    if done.result is not None:
        before, after, proof = done.result.before.params, done.result.after.params, done.result.proof
        lines.append(f"pruned, {quantity(before)} to {quantity(after)} parameters")
        if proof is not None:
            lines.append(f"exact, error {proof.error:.1e}" if proof.exact else f"not exact: {proof.reason}")
    if any(row.how != "taken" for row in done.rows):
        lines.append(f"the rest as it fits: {loading_table(done.rows)}")
    return "; ".join(lines)
