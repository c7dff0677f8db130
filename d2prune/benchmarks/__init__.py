"""The zoo: every architecture pruned, proved, run, trained and reloaded, with torch-pruning beside it.

entries   names -> how to build a model, random weights
row       one entry -> what came of it
peer      the same with plain torch-pruning
table     rows -> Markdown
"""

from __future__ import annotations

from d2prune.benchmarks.entries import ENTRIES, QUICK, Entry
from d2prune.benchmarks.row import Row, measure_entry
from d2prune.benchmarks.table import markdown

__all__ = ["ENTRIES", "QUICK", "Entry", "Row", "markdown", "measure_entry"]
