"""Checkpoints of pruned models: read without running their code, written atomically, loaded strictly."""

from d2prune.checkpoint.api import load, save
from d2prune.checkpoint.narrowing import TensorRow, load_narrower, loading_table
from d2prune.checkpoint.reader import read_checkpoint, read_spec
from d2prune.checkpoint.writer import write_checkpoint, write_model
from d2prune.optional import HAS_DETECTRON2

if HAS_DETECTRON2:
    from d2prune.checkpoint.checkpointer import PruningCheckpointer
    from d2prune.checkpoint.pruned_model import (
        PrunedModel,
        build_from_cfg,
        build_model,
        spec_of_file,
        unpruned_cfg,
    )

__all__ = [
    "PrunedModel",
    "PruningCheckpointer",
    "TensorRow",
    "build_from_cfg",
    "build_model",
    "load",
    "load_narrower",
    "loading_table",
    "read_checkpoint",
    "read_spec",
    "save",
    "spec_of_file",
    "unpruned_cfg",
    "write_checkpoint",
    "write_model",
]
