"""What could be pruned, and what a prune came to: plans, latency, pictures, tables, verdict, report."""

from d2prune.analysis.benchmark import Latency, latency, real_inputs
from d2prune.analysis.carrying_out import Narrowed, carry_out
from d2prune.analysis.changes import Change, changes_between
from d2prune.analysis.machine import environment
from d2prune.analysis.modules import ModuleRow, grouped, module_rows, module_table
from d2prune.analysis.pictures import Picture, PictureRow, example_pictures
from d2prune.analysis.plans import Plan, Step, narrowed, read_plan
from d2prune.analysis.report import write_report
from d2prune.analysis.table import latency_table, stage_table
from d2prune.analysis.what_if import WhatIf, what_if, what_if_table
from d2prune.analysis.wording import verdict
from d2prune.analysis.writing import write_plan

__all__ = [
    "Change",
    "Latency",
    "ModuleRow",
    "Narrowed",
    "Picture",
    "PictureRow",
    "Plan",
    "Step",
    "WhatIf",
    "carry_out",
    "changes_between",
    "environment",
    "example_pictures",
    "grouped",
    "latency",
    "latency_table",
    "module_rows",
    "module_table",
    "narrowed",
    "read_plan",
    "real_inputs",
    "stage_table",
    "verdict",
    "what_if",
    "what_if_table",
    "write_plan",
    "write_report",
]
