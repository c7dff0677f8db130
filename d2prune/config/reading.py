"""From a command line's config file and KEY VALUE pairs to a config."""

from __future__ import annotations

import importlib
import logging
import os
from collections.abc import Sequence

from detectron2.config import CfgNode

from d2prune.config.merging import UNFIT, merge_file, refusal
from d2prune.errors import PruneError

logger = logging.getLogger(__name__)


def read_config(cfg: CfgNode, file: str, opts: Sequence[str] = (), imports: Sequence[str] = ()) -> CfgNode:
    """Merge a YAML file, read as plain data, and options into ``cfg``, and freeze it.

    Args:
        cfg: a fresh config that has all keys (:func:`d2prune.get_cfg`).
        file: path of the YAML file.
        opts: KEY VALUE KEY VALUE …
        imports: modules to import first: they register data sets and models.

    Raises:
        PruneError: if the file or a module is missing, the file holds more than plain values, a key is
            unknown, or a value is of another type.
    """
    import_modules(imports)
    if not os.path.isfile(file):
        raise PruneError(f"--config-file {file!r} does not exist")
    if len(opts) % 2:
        raise PruneError(f"expected KEY VALUE pairs after the options; got {' '.join(opts)}")
    merge_file(cfg, file)
    try:
        _follow_move(cfg, file)
        cfg.merge_from_list(list(opts))
    except UNFIT as error:
        raise refusal(file, error) from error
    cfg.freeze()
    return cfg


def _follow_move(cfg: CfgNode, file: str) -> None:
    pruning = cfg.MODEL.PRUNING
    if pruning.BASE:
        pruning.SPEC, cfg.MODEL.WEIGHTS = (found_beside(file, p) for p in (pruning.SPEC, cfg.MODEL.WEIGHTS))


def found_beside(file: str, path: str) -> str:
    """Return ``path``, or one of its name beside ``file``, where a pruned model's folder was moved."""
    beside = os.path.join(os.path.dirname(os.path.abspath(file)), os.path.basename(path))
    if not path or os.path.isfile(path) or not os.path.isfile(beside):
        return path
    logger.info("'%s' is gone; taking the one beside %s", path, file)
    return beside


def import_modules(names: Sequence[str]) -> None:
    """Import what ``--import`` names.

    Raises:
        PruneError: if a module, or what it imports, is not found.
    """
    for name in names:
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            raise PruneError(f"--import {name}: {error}; is its folder on PYTHONPATH?") from error
