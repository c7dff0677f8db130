"""What a prune came to: latency, pictures, tables, verdict, report."""

from d2prune.report.html import write_report
from d2prune.report.images import Picture, PictureRow, example_pictures
from d2prune.report.machine import environment
from d2prune.report.table import latency_table, stage_table
from d2prune.report.timing import Latency, latency, real_inputs
from d2prune.report.verdict import verdict

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
