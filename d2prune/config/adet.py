"""AdelaiDet's configuration keys with AdelaiDet's defaults (``adet.json``), so that its YAML files merge.

Only the keys are there; which of them change what d2prune's own FCOS and BlendMask do is said in
``d2prune.modeling``. The nodes of other architectures exist so that files naming them can be read.
``FCOS.USE_RELU`` is never read, by AdelaiDet either: the regression always goes through a relu.
"""

from __future__ import annotations

import json
from pathlib import Path

from detectron2.config import CfgNode

from .prune import add_missing


def add_adet_config(cfg: CfgNode) -> None:
    """Add every AdelaiDet key that ``cfg`` lacks; keys that are there keep their values."""
    add_missing(cfg, json.loads(Path(__file__).with_name("adet.json").read_text(encoding="utf-8")))
