"""What a prune came to: latency, pictures, tables, verdict, report."""

from d2prune.analysis.benchmark import Latency, latency, real_inputs
from d2prune.analysis.machine import environment
from d2prune.analysis.pictures import Picture, PictureRow, example_pictures
from d2prune.analysis.report import write_report
from d2prune.analysis.table import latency_table, stage_table
from d2prune.analysis.wording import verdict

__all__ = [
    "Latency",
    "Picture",
    "PictureRow",
    "environment",
    "example_pictures",
    "latency",
    "latency_table",
    "real_inputs",
    "stage_table",
    "verdict",
    "write_report",
]
