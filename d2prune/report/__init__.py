"""What a prune came to: latency, images, tables, verdict, report."""

from d2prune.report.html import write_report
from d2prune.report.images import Image, ImageRow, example_images
from d2prune.report.machine import environment
from d2prune.report.table import latency_table, stage_table
from d2prune.report.timing import Latency, latency, real_inputs
from d2prune.report.verdict import verdict

__all__ = [
    "Latency",
    "Image",
    "ImageRow",
    "environment",
    "example_images",
    "latency",
    "latency_table",
    "real_inputs",
    "stage_table",
    "verdict",
    "write_report",
]
