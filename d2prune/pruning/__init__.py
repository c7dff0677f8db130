"""One prune, with all that it decides and checks.

api          prune(), for any model
run          trace, calibrate, cut, choose, prove
cutter       one way: rank, plan, cut, repair
calibration  a user's batches -> statistics
choosing     what "auto" stands for: ways to prune, and what each loses
budget       the largest cut that costs at most so many points
measuring    groups of channels, costs
latency      a table of times by width, kept or measured; the result timed beside the unpruned model
layer_times  how it is measured, layer by layer
clock        one call's time
cutting      a plan -> a pruned copy
proving      that it equals the masked model
bisect       which groups stay whole where it does not
checks       what is wrong with a model or an input
result       what comes out
"""

from __future__ import annotations

from d2prune.pruning.api import prune
from d2prune.pruning.budget import Point
from d2prune.pruning.choosing import Tried
from d2prune.pruning.measuring import find_groups, measure_model
from d2prune.pruning.result import PruneResult, Repair
from d2prune.pruning.run import prune_model

__all__ = ["Point", "PruneResult", "Repair", "Tried", "find_groups", "measure_model", "prune", "prune_model"]
