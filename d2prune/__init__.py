"""Structured (channel) pruning for Detectron2, AdelaiDet and plain PyTorch.

Train, prune, prove, fine-tune, export. Importing the package fills Detectron2's registries, with
AdelaiDet's own classes if AdelaiDet is installed, and changes nothing else. Without Detectron2 it
prunes, saves and loads models of any other kind.
"""

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from d2prune.adapters import Adapter, register_adapter
from d2prune.checkpoint import load, save
from d2prune.core.cut.spec import PruneSpec
from d2prune.core.layers.registered import register_layer
from d2prune.core.plan.criteria import register_criterion
from d2prune.core.trace.operators import register_operator
from d2prune.errors import PruneError
from d2prune.optional import HAS_DETECTRON2, needs_detectron2
from d2prune.pruning import PruneResult, prune
from d2prune.rebuild import rebuild
from d2prune.traceable import traceable

if HAS_DETECTRON2:
    import d2prune.data  # noqa: F401  (registers the embedded data set)
if TYPE_CHECKING:
    from d2prune.checkpoint import PruningCheckpointer as PruningCheckpointer
    from d2prune.config import add_prune_config as add_prune_config
    from d2prune.config import get_cfg as get_cfg
    from d2prune.engine.detections import compare_detections as compare_detections
    from d2prune.engine.trainer import PruneTrainer as PruneTrainer
    from d2prune.engine.trainer import PruningMixin as PruningMixin

try:
    __version__ = version("d2prune")  # setup.py holds it
except PackageNotFoundError:  # a checkout on the path that was never installed
    __version__ = "0+unknown"

_OF_DETECTRON2 = {
    "PruneTrainer": "engine.trainer",
    "PruningCheckpointer": "checkpoint",
    "PruningMixin": "engine.trainer",
    "add_prune_config": "config",
    "compare_detections": "engine.detections",
    "get_cfg": "config",
}
"""Names that need Detectron2, with their modules, which are imported on first use."""

__all__ = [
    "Adapter",
    "PruneError",
    "PruneResult",
    "PruneSpec",
    "load",
    "prune",
    "rebuild",
    "register_adapter",
    "register_criterion",
    "register_layer",
    "register_operator",
    "save",
    "traceable",
    *(_OF_DETECTRON2 if HAS_DETECTRON2 else ()),
]


def __getattr__(name: str) -> Any:
    if name not in _OF_DETECTRON2:
        raise AttributeError(f"module 'd2prune' has no attribute {name!r}")
    if not HAS_DETECTRON2:
        raise needs_detectron2(f"d2prune.{name}")
    return getattr(import_module(f"d2prune.{_OF_DETECTRON2[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
