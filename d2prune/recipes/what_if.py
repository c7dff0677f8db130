"""What recipes would save, by building the narrower models without their weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch import nn

from d2prune.core.types import Group, Totals
from d2prune.engine.settings import trace_input_from_cfg
from d2prune.errors import PruneError
from d2prune.pruning import measure_model
from d2prune.recipes.changes import Change, changes_between
from d2prune.recipes.recipe import Recipe, Step, narrowed
from d2prune.report.table import aligned, quantity


@dataclass(frozen=True)
class StepRow:
    """One step of a recipe, on top of those before it.

    Attributes:
        step: what it sets.
        saved: parameters and MACs that it takes off what the steps before have left.
        changes: what is narrower than before all steps, for this step by itself.
    """

    step: Step
    saved: Totals
    changes: tuple[Change, ...]


@dataclass(frozen=True)
class WhatIf:
    """A recipe, counted.

    Attributes:
        recipe: the recipe.
        before: of the whole model.
        after: of the model with all steps.
        rows: one a step.
        changes: of all steps together.
    """

    recipe: Recipe
    before: Totals
    after: Totals
    rows: tuple[StepRow, ...]
    changes: tuple[Change, ...]

    @property
    def saved(self) -> float:
        """The fraction of parameters that would go."""
        return 1 - self.after.params / self.before.params

    @property
    def exact(self) -> bool:
        """Whether all of it can be carried out by an exact prune."""
        return not any(change.reason for change in self.changes)


def outline(cfg: CfgNode) -> nn.Module:
    """Return the model of ``cfg`` on the meta device: sizes without values.

    Raises:
        PruneError: if the config builds no model.
    """
    out = cfg.clone()
    out.defrost()
    out.MODEL.DEVICE = "meta"
    try:
        with torch.device("meta"):
            return build_model(out)
    except (AssertionError, KeyError, RuntimeError, ValueError, ZeroDivisionError) as error:
        if isinstance(error, PruneError):
            raise
        raise PruneError(f"the configuration builds no model: {error!r}") from error


def what_if(cfg: CfgNode, recipe: Recipe, groups: Sequence[Group]) -> WhatIf:
    """Count a recipe; no weights are read or changed.

    Args:
        cfg: of the whole model.
        recipe: its steps.
        groups: the whole model's groups of channels.

    Raises:
        PruneError: if a step sets an unknown key, or changes nothing.
    """
    models = [outline(narrowed(cfg, recipe.steps[:number])) for number in range(len(recipe.steps) + 1)]
    sizes = [measure_model(model, trace_input_from_cfg(cfg, model)).totals for model in models]
    rows = []
    for number, (step, old, new) in enumerate(zip(recipe.steps, sizes, sizes[1:], strict=False)):
        alone = models[1] if number == 0 else outline(narrowed(cfg, [step]))
        saved = Totals(old.params - new.params, old.macs - new.macs)
        rows.append(StepRow(step, saved, _changed(models[0], groups, alone, step)))
    together = changes_between(models[0], groups, models[-1])
    return WhatIf(recipe, sizes[0], sizes[-1], tuple(rows), together)


def _changed(model: nn.Module, groups: Sequence[Group], other: nn.Module, step: Step) -> tuple[Change, ...]:
    changes = changes_between(model, groups, other)
    if not changes:
        raise PruneError(f"step {step.name!r} of the recipe changes no layer: {dict(step.keys)}")
    return changes


def what_if_table(results: Sequence[WhatIf]) -> str:
    """Show all recipes, step by step: what is saved of the whole, and whether that is exact."""
    body: list[list[str]] = []
    for result in results:
        body += [_line(row, result.before) for row in result.rows]
        macs = 1 - result.after.macs / result.before.macs
        how = "exact" if result.exact else "not exact"
        whole = [quantity(result.before.params - result.after.params), f"{result.saved:.2%}", f"{macs:.2%}"]
        body.append([f"recipe {result.recipe.name}: {result.after.params:,} left", *whole, how])
    return aligned([["step", "params saved", "of all", "MACs", "by pruning"], *body], left=(0, 4))


def _line(row: StepRow, before: Totals) -> list[str]:
    wrong = [change for change in row.changes if change.reason]
    kinds = list(dict.fromkeys(change.reason.partition(", in ")[0] for change in wrong))
    how = f"not exact: {'; '.join(kinds)}" if wrong else "exact"
    params, macs = row.saved.params / before.params, row.saved.macs / before.macs
    return [f"  {row.step.name}", quantity(row.saved.params), f"{params:.2%}", f"{macs:.2%}", how]
