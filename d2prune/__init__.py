"""Structured (channel) pruning for Detectron2 and AdelaiDet.

Train, prune, prove, fine-tune, export. Importing it fills Detectron2's registries, with AdelaiDet's
own classes where AdelaiDet is installed, and changes nothing else.
"""

from importlib.metadata import PackageNotFoundError, version

import d2prune.data  # noqa: F401  (registers the embedded data set)
from d2prune.adapters import Adapter, register_adapter
from d2prune.checkpoint import PruningCheckpointer, load, save
from d2prune.config import add_prune_config, get_cfg
from d2prune.core.cut.spec import PruneSpec
from d2prune.core.layers.registered import register_layer
from d2prune.core.plan.criteria import register_criterion
from d2prune.core.trace.operators import register_operator
from d2prune.engine.detections import compare_detections
from d2prune.engine.trainer import PruneTrainer, PruningMixin
from d2prune.errors import PruneError
from d2prune.pruning import PruneResult, prune
from d2prune.rebuild import rebuild
from d2prune.traceable import traceable

try:
    __version__ = version("d2prune")  # setup.py holds it
except PackageNotFoundError:  # a checkout on the path that was never installed
    __version__ = "0+unknown"

__all__ = [
    "Adapter",
    "PruneError",
    "PruneResult",
    "PruneSpec",
    "PruneTrainer",
    "PruningCheckpointer",
    "PruningMixin",
    "add_prune_config",
    "compare_detections",
    "get_cfg",
    "load",
    "prune",
    "rebuild",
    "register_adapter",
    "register_criterion",
    "register_layer",
    "register_operator",
    "save",
    "traceable",
]
