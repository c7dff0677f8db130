"""What a run leaves beside the checkpoint and the report: the spec, pruned.yaml, the next command."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Collection, Sequence
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.config import get_cfg as detectron2_cfg

from d2prune.checkpoint.pruned_model import CONFIG_FILE
from d2prune.core.cut.spec import PruneSpec
from d2prune.files import atomic_write

SPEC_FILE, STOCK_FILE = "pruning_spec.json", "pruned_stock.yaml"


def write_spec(spec: PruneSpec, folder: str) -> None:
    """Write pruning_spec.json, whole or not at all."""
    with atomic_write(os.path.join(folder, SPEC_FILE)) as file:
        file.write(spec.to_json())


def write_pruned_config(cfg: CfgNode, folder: str, weights: str) -> str:
    """Write ``cfg`` whole, with META_ARCHITECTURE "PrunedModel", as pruned.yaml; return its path.

    pruned_stock.yaml beside it is the same with Detectron2's own keys only, for scripts that start
    from Detectron2's get_cfg(), which refuses a file with any other key.
    """
    out = cfg.clone()
    out.defrost()
    if not out.MODEL.PRUNING.BASE:  # it is set where a pruned.yaml was fine-tuned or pruned again
        out.MODEL.PRUNING.BASE = out.MODEL.META_ARCHITECTURE
    out.MODEL.META_ARCHITECTURE = "PrunedModel"
    out.MODEL.PRUNING.SPEC = os.path.abspath(os.path.join(folder, SPEC_FILE))
    out.MODEL.WEIGHTS = os.path.abspath(weights)
    out.MODEL.PRUNE = out.MODEL.FINETUNE = False
    path = os.path.join(folder, CONFIG_FILE)
    with atomic_write(path) as file:
        file.write(out.dump())
    with atomic_write(os.path.join(folder, STOCK_FILE)) as file:
        file.write(_restricted(out, detectron2_cfg()).dump())
    return path


def _restricted(cfg: CfgNode, to: CfgNode) -> CfgNode:
    """Give the keys of ``to``, in place, their values in ``cfg``."""
    for key, value in to.items():
        to[key] = _restricted(cfg[key], value) if isinstance(value, CfgNode) else cfg[key]
    return to


def next_command(weights: str) -> str:
    """Return the command that was run, turned into the one that fine-tunes its result."""
    kept = _words_without({"MODEL.PRUNE", "MODEL.FINETUNE", "MODEL.WEIGHTS"})
    return same_script("train_net.py", [*kept, "MODEL.FINETUNE", "True", "MODEL.WEIGHTS", weights])


def control_command(cfg: CfgNode, baseline: str) -> str:
    """Return the command that trains ``baseline`` as a fine-tuning was; empty beside no train_control.py."""
    script = Path(sys.argv[0]).with_name("train_control.py")
    if not script.is_file():
        return ""
    kept = _words_without({"MODEL.PRUNE", "MODEL.FINETUNE", "MODEL.WEIGHTS", "OUTPUT_DIR"})
    where = ["MODEL.WEIGHTS", baseline, "OUTPUT_DIR", os.path.join(cfg.OUTPUT_DIR, "control")]
    return shlex.join(["python", str(script), "--report", cfg.OUTPUT_DIR, *kept, *where])


def _words_without(keys: Collection[str]) -> list[str]:
    """Return the command line without --resume and these keys with their values."""
    words, kept = sys.argv[1:], []
    while words:
        word = words.pop(0)
        if word in keys:
            words = words[1:]
        elif word != "--resume":
            kept.append(word)
    return kept


def same_script(otherwise: str, words: Sequence[str]) -> str:
    """Return a command of the script that runs, or of ``otherwise`` if none does."""
    script = sys.argv[0] if sys.argv[0].endswith(".py") else otherwise
    return shlex.join(["python", script, *words])
