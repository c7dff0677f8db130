"""The keys of LSKNet: the model's, not the pruning's. The defaults are LSKNet-S."""

from __future__ import annotations

from detectron2.config import CfgNode

from .prune import add_missing


def add_lsknet_config(cfg: CfgNode) -> None:
    """Add MODEL.LSKNET to a CfgNode; values that are set already stay."""
    keys = CfgNode()
    # Channels of each stage's output.
    keys.EMBED_DIMS = [64, 128, 320, 512]
    # Blocks in each stage.
    keys.DEPTHS = [2, 2, 4, 2]
    # Width of each stage's MLPs, in multiples of the stage's channels.
    keys.MLP_RATIOS = [8, 8, 4, 4]
    # Each kernel's branch of a gate has the stage's channels divided by this, rounded down.
    keys.BRANCH_DIVISORS = [2, 2, 2, 2]
    # Dropout in the MLPs, and the stochastic depth that the last block reaches (linear from 0).
    keys.DROP_RATE = 0.1
    keys.DROP_PATH_RATE = 0.1
    # Of the patch embeddings and the blocks: "BN", "SyncBN", "FrozenBN", …
    keys.NORM = "SyncBN"
    # Any of stage1 to stage4 (strides 4, 8, 16, 32).
    keys.OUT_FEATURES = ["stage1", "stage2", "stage3", "stage4"]
    add_missing(cfg.MODEL, {"LSKNET": keys})
