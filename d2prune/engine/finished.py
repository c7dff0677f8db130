"""A mark in OUTPUT_DIR that a prune was carried to its end, and what it was asked for.

Its checkpoint is written long before the evaluation and the report: a run that was killed in between would
be taken for a finished one by it alone.
"""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode

from d2prune.errors import PruneError
from d2prune.files import atomic_write

logger = logging.getLogger(__name__)
FILE = "pruning_finished.json"
REQUEST = (
    "TARGET", "AMOUNT", "BUDGET", "LATENCY_TABLE", "CRITERION", "ALLOCATION", "CALIBRATION_IMAGES", "REPAIR",
    "RATIOS", "PROTECT", "INCLUDE", "MAX_RATIO", "ROUND_TO", "INPUT_SIZE", "ALLOW_INEXACT",
)  # fmt: skip
"""The keys of MODEL.PRUNING that decide what comes out."""


def begin(cfg: CfgNode) -> None:
    """Take the mark of an earlier prune away."""
    (Path(cfg.OUTPUT_DIR) / FILE).unlink(missing_ok=True)


def end(cfg: CfgNode) -> None:
    """Leave the mark; the last thing that a prune writes."""
    with atomic_write(Path(cfg.OUTPUT_DIR) / FILE) as file:
        json.dump(_request(cfg), file, indent=1)


def is_finished(cfg: CfgNode) -> bool:
    """Return whether the prune that OUTPUT_DIR's checkpoint is of was carried to its end.

    Raises:
        PruneError: if it was asked for something else.
    """
    path = Path(cfg.OUTPUT_DIR) / FILE
    if not path.is_file():
        logger.warning("'%s' holds a prune that was interrupted: it is made anew", cfg.OUTPUT_DIR)
        return False
    done, asked = json.loads(path.read_text(encoding="utf-8")), _request(cfg)
    changed = next((key for key, value in asked.items() if done.get(key) != value), "")
    if changed:
        raise PruneError(
            f"'{cfg.OUTPUT_DIR}' was pruned with {changed} {done.get(changed)!r}, and {changed} is "
            f"{asked[changed]!r} now: set OUTPUT_DIR to another folder, or go on with the same",
            keys=(changed, "OUTPUT_DIR"),
        )
    return True


def _request(cfg: CfgNode) -> dict[str, Any]:
    """Return what a prune by ``cfg`` is decided by, as JSON gives it back."""
    keys = {f"MODEL.PRUNING.{key}": cfg.MODEL.PRUNING[key] for key in REQUEST}
    weights = cfg.MODEL.WEIGHTS if "://" in cfg.MODEL.WEIGHTS else os.path.abspath(cfg.MODEL.WEIGHTS)
    found: dict[str, Any] = json.loads(json.dumps({**keys, "MODEL.WEIGHTS": weights}))
    return found
