"""Recipes: named steps that set keys of a configuration to smaller widths."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from detectron2.config import CfgNode

from d2prune.config.safe_yaml import read_yaml
from d2prune.errors import PruneError
from d2prune.files import atomic_write

RPN_WIDTH = "MODEL.RPN.CONV_DIMS"


@dataclass(frozen=True)
class Step:
    """Keys that change together, and their new values."""

    name: str
    keys: Mapping[str, Any]


@dataclass(frozen=True)
class Recipe:
    """What a recipe's file holds; its name is the file's, without the extension."""

    name: str
    steps: tuple[Step, ...]


def read_recipe(path: str) -> Recipe:
    """Read a YAML file: a mapping of each step's name to the keys that it sets.

    Raises:
        PruneError: if there is no such file, or it holds anything else.
    """
    if not os.path.isfile(path):
        raise PruneError(f"--recipe {path!r} does not exist")
    try:
        content = read_yaml(path)
    except PruneError as error:
        raise PruneError(f"--recipe {error}") from error
    steps = list(content.items()) if isinstance(content, dict) else []
    if not steps or not all(isinstance(keys, dict) and keys for _, keys in steps):
        raise PruneError(f"--recipe {path!r}: expected steps, each a name with the keys that it sets")
    for name, keys in steps:
        for key in keys:
            if not str(key).startswith("MODEL."):
                raise PruneError(f"--recipe {path!r}, step {name!r}: {key} is no key of the model (MODEL.…)")
    return Recipe(Path(path).stem, tuple(Step(str(name), keys) for name, keys in steps))


def narrowed(cfg: CfgNode, steps: Sequence[Step]) -> CfgNode:
    """Return ``cfg`` with the steps' keys set.

    Where a step makes the FPN narrower, the RPN's own channels stay, unless a step sets MODEL.RPN.CONV_DIMS:
    what a proposal network misses, no later part finds.

    Raises:
        PruneError: for a key that the config does not have, or a value of another type.
    """
    out = cfg.clone()
    out.defrost()
    pairs = [x for key, value in changes_of(cfg, steps).items() for x in (key, value)]
    try:
        out.merge_from_list(pairs)
    except (AssertionError, KeyError, ValueError) as error:  # yacs asserts that a key exists
        raise PruneError(f"recipe: {error.args[0] if error.args else error}") from error
    out.freeze()
    return out


def changes_of(cfg: CfgNode, steps: Sequence[Step]) -> dict[str, Any]:
    """Return all keys that the steps set, and what follows from them."""
    keys = {key: value for step in steps for key, value in step.keys.items()}
    if "MODEL.FPN.OUT_CHANNELS" in keys and RPN_WIDTH not in keys:
        width, dims = cfg.MODEL.FPN.OUT_CHANNELS, cfg.MODEL.RPN.CONV_DIMS
        keys[RPN_WIDTH] = [width if dim == -1 else dim for dim in dims]
    return keys


def write_narrowed(file: str, changes: Mapping[str, Any], path: str) -> None:
    """Write a config at ``path`` that is ``file`` with ``changes``, whole or not at all."""
    content: dict[str, Any] = {"_BASE_": os.path.relpath(file, os.path.dirname(path) or ".")}
    for key, value in changes.items():
        *nodes, last = key.split(".")
        node = content
        for name in nodes:
            node = node.setdefault(name, {})
        node[last] = value
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    with atomic_write(path) as out:
        yaml.safe_dump(content, out, sort_keys=False)
