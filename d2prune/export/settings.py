"""What model.json holds: everything besides the network that detecting needs, as plain data."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, cast

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.modeling import Backbone
from torch import nn

from d2prune.adapters import padding_step
from d2prune.errors import PruneError
from d2prune.export.decode import decoder_of

Settings = dict[str, Any]
VERSION = 1
INPUT_NAME = "images"


def describe(model: nn.Module, cfg: CfgNode, outputs: list[str]) -> Settings:
    """Collect the settings of a model with these dense outputs.

    Args:
        model: as ``cfg`` builds it, pruned or not.
        cfg: Detectron2's keys and the architecture's.
        outputs: the dense outputs' names, in the network's order.
    """
    decoder = decoder_of(model)
    return {
        "version": VERSION,
        "input": _input(model, cfg),
        "outputs": outputs,
        "decoder": {"name": decoder.name, **decoder.settings(cfg)},
        "thing_classes": _thing_classes(cfg),
    }


def _input(model: nn.Module, cfg: CfgNode) -> Settings:
    """How an image becomes the network's input; the network itself subtracts and divides."""
    backbone = cast(Backbone, model.backbone)
    return {
        "name": INPUT_NAME,
        "format": cfg.INPUT.FORMAT,
        "value_range": [0, 255],
        "pad_value": list(cfg.MODEL.PIXEL_MEAN),  # zero once normalised, as the eager model pads
        "size_divisibility": padding_step(model),
        "square_size": backbone.padding_constraints.get("square_size", 0),
        "min_size": cfg.INPUT.MIN_SIZE_TEST,
        "max_size": cfg.INPUT.MAX_SIZE_TEST,
    }


def export_size(model: nn.Module, cfg: CfgNode) -> tuple[int, int]:
    """Return the (height, width) to export at: a square of the config's test size, in pixels.

    Every other size works as well as this one; it only has to be a usual one.
    """
    step = padding_step(model)
    side = max(2, -(-cfg.INPUT.MIN_SIZE_TEST // step)) * step
    return side, side


def _thing_classes(cfg: CfgNode) -> list[str] | None:
    for name in (*cfg.DATASETS.TEST, *cfg.DATASETS.TRAIN):
        if name in MetadataCatalog.list() and MetadataCatalog.get(name).get("thing_classes"):
            return list(MetadataCatalog.get(name).thing_classes)
    return None


def to_json(settings: Settings, network: bytes) -> str:
    """Return the text of model.json, tied to the network that it belongs to."""
    return json.dumps({**settings, "sha256": hashlib.sha256(network).hexdigest()}, indent=2) + "\n"


def from_json(path: Path, network: bytes) -> Settings:
    """Read model.json.

    Raises:
        PruneError: it is missing, damaged, of another version, or of another network.
    """
    if not path.is_file():
        raise PruneError(f"'{path}' does not exist; it was written beside the network at export")
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
        version, digest = settings["version"], settings["sha256"]
    except (ValueError, KeyError, TypeError) as error:
        raise PruneError(f"'{path}' is not the settings of an export ({error!r})") from error
    if version != VERSION:
        raise PruneError(f"'{path}' has version {version!r}; expected {VERSION}")
    if digest != hashlib.sha256(network).hexdigest():
        raise PruneError(f"'{path}' belongs to another network than the one beside it; export again")
    return settings
