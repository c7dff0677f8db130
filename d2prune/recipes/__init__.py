"""Recipes of smaller widths: what they would save, carrying them out, and trying them one step at a time."""

from d2prune.recipes.ablation import Trial, ablate, ablation_table, largest_kept
from d2prune.recipes.changes import Change, changes_between
from d2prune.recipes.execution import Narrowed, carry_out
from d2prune.recipes.modules import ModuleRow, grouped, module_rows, module_table
from d2prune.recipes.recipe import Recipe, Step, narrowed, read_recipe
from d2prune.recipes.what_if import WhatIf, what_if, what_if_table
from d2prune.recipes.writing import write_recipe

__all__ = [
    "Change",
    "ModuleRow",
    "Narrowed",
    "Recipe",
    "Step",
    "Trial",
    "WhatIf",
    "ablate",
    "ablation_table",
    "carry_out",
    "changes_between",
    "grouped",
    "largest_kept",
    "module_rows",
    "module_table",
    "narrowed",
    "read_recipe",
    "what_if",
    "what_if_table",
    "write_recipe",
]
