"""The pruning keys."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from detectron2.config import CfgNode

REMOVED = ("MODEL.PRUNING.FADE",)
"""Keys of earlier versions: files that have them are read, and a warning says that they do nothing."""


def add_prune_config(cfg: CfgNode) -> None:
    """Add the pruning keys to any CfgNode, Detectron2's or AdelaiDet's; values set before stay."""
    keys = CfgNode()
    # Prune MODEL.WEIGHTS, prove, evaluate, save; then stop, unless MODEL.FINETUNE is also on.
    keys.PRUNE = False
    # Train a pruned checkpoint: MODEL.WEIGHTS must be one, or MODEL.PRUNE on.
    keys.FINETUNE = False
    keys.PRUNING = CfgNode()
    # What AMOUNT counts: "channels", "params", "macs", or "latency", measured on MODEL.DEVICE.
    keys.PRUNING.TARGET = "macs"
    # Fraction of the whole model's TARGET to remove: 0 < AMOUNT < 1.
    keys.PRUNING.AMOUNT = 0.5
    # In place of TARGET and AMOUNT, what may be left: "25 ms", "60 GMACs", "12 M params"; or, in place of
    # AMOUNT, the largest cut that loses so many points at most, after repair: "0.5 AP on NAME" of a data set,
    # or "0.5 AP" on 200 images of DATASETS.TRAIN (models that know them lose more there).
    keys.PRUNING.BUDGET = ""
    # A file of latencies for TARGET "latency" or a BUDGET in ms, of this machine or another; written if there
    # is none. Empty: in the folder D2PRUNE_CACHE, or ~/.cache/d2prune.
    keys.PRUNING.LATENCY_TABLE = ""
    # How channels are chosen: "reconstruction" (what the others can replace goes), "fisher", "taylor",
    # "magnitude", "random", a name given to @d2prune.register_criterion, or an importance of torch-pruning:
    # "torch_pruning.LAMPImportance". "auto": one of the first two where there are images, else "magnitude".
    keys.PRUNING.CRITERION = "auto"
    # How AMOUNT is shared out: "per_cost" (least error per cost saved), "global" (lowest scores) or "uniform"
    # (same fraction of every group). "auto": where there are images, what costs least on some.
    keys.PRUNING.ALLOCATION = "auto"
    # Images of DATASETS.TRAIN, with their labels, that channels are chosen and repaired by; 0: none;
    # -1: 240, or fewer large ones: 50 megapixels together, but at least 32.
    keys.PRUNING.CALIBRATION_IMAGES = -1
    # What is left of a layer's input takes over what was removed, by least squares: "refit", "fold" (faster,
    # weaker) or "" (weights stay as they are).
    keys.PRUNING.REPAIR = "refit"
    # [[pattern, fraction of channels], ...]: fixed ratios for the groups they match.
    keys.PRUNING.RATIOS = []
    # Shell-style patterns over dotted module names: layers whose output channels stay.
    keys.PRUNING.PROTECT = []
    # The only layers whose output channels may go, as patterns; empty: all.
    keys.PRUNING.INCLUDE = []
    # Largest fraction of any one group's channels: 0 < MAX_RATIO < 1.
    keys.PRUNING.MAX_RATIO = 0.75
    # Widths are multiples of this (channels).
    keys.PRUNING.ROUND_TO = 8
    # Patterns over names of weights that MODEL.WEIGHTS may lack (a new head's, say); others are refused.
    keys.PRUNING.ALLOW_MISSING = []
    # Pass over images of DATASETS.TRAIN that can't be read, and say so; else they end the run.
    keys.PRUNING.SKIP_UNREADABLE = False
    # (height, width) in pixels that MACs are counted on; empty: the config's test size.
    keys.PRUNING.INPUT_SIZE = ()
    # Prove that the pruned model equals the masked one (seconds; fails the run if it does not).
    keys.PRUNING.VERIFY = True
    # Prune also what can't be proved: channels under a LayerNorm.
    keys.PRUNING.ALLOW_INEXACT = False
    # Seconds that the report's timing of the models may take; 0: none.
    keys.PRUNING.TIMING = 20.0
    # False: FINETUNE trains FrozenBN as BN and ignores FREEZE_AT, and says so.
    keys.PRUNING.KEEP_FROZEN = False
    # Write the whole module into checkpoints, under "struct".
    keys.PRUNING.SAVE_STRUCT = True
    # Unpickle "struct" when a checkpoint is read. It runs code from the file: only for your own.
    keys.PRUNING.TRUST_STRUCT = False
    # With META_ARCHITECTURE "PrunedModel": the spec's path (empty: the one in MODEL.WEIGHTS) ...
    keys.PRUNING.SPEC = ""
    # ... and the META_ARCHITECTURE that was pruned.
    keys.PRUNING.BASE = ""
    add_missing(cfg.MODEL, keys)
    for key in REMOVED:
        if not cfg.key_is_deprecated(key):
            cfg.register_deprecated_key(key)


def add_missing(node: CfgNode, defaults: Mapping[str, Any]) -> None:
    """Add the keys that ``node`` lacks, at every depth; keys that are there keep their values."""
    for key, value in defaults.items():
        if key not in node:
            node[key] = CfgNode(value) if isinstance(value, dict) else value
        elif isinstance(value, dict):
            add_missing(node[key], value)
