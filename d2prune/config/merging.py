"""Config files and the files that they build on, merged as Detectron2 does, but read as plain data."""

from __future__ import annotations

import logging
import os
from typing import Any

from detectron2.config import CfgNode, downgrade_config, upgrade_config
from detectron2.config.compat import guess_version
from fvcore.common.config import BASE_KEY

from d2prune.config.safe_yaml import read_mapping
from d2prune.errors import PruneError

logger = logging.getLogger(__name__)
# yacs asserts that a key exists, and compiles what a text may spell in Python.
UNFIT = (AssertionError, KeyError, MemoryError, RecursionError, TypeError, ValueError)
_REMOTE = ("http://", "https://")


def merge_file(cfg: CfgNode, file: str) -> None:
    """Merge a YAML file into ``cfg``: CfgNode.merge_from_file, which would run what the file's tags name.

    Args:
        cfg: a config that has all keys; changed in place.
        file: path of the YAML file; its ``_BASE_`` files are read alike.

    Raises:
        PruneError: if a file can't be read or holds more than plain values, a key is unknown, or a value is
            of another type.
    """
    content = read_with_bases(file)
    try:
        _merge(cfg, type(cfg)(content), file)
    except PruneError:
        raise
    except UNFIT as error:
        raise refusal(file, error) from error


def refusal(file: str, error: BaseException) -> PruneError:
    """Return the error, in one line, for what yacs says of values that do not fit a config."""
    said = " ".join(str(error.args[0] if error.args else error).split())
    return PruneError(f"{file}: {said if len(said) <= 500 else f'{said[:300]} … {said[-150:]}'}")


def _shown(value: Any) -> str:
    try:
        text = repr(value)
    except ValueError:  # Python writes no number of 5000 digits
        text = "a number of thousands of digits"
    return text if len(text) <= 200 else f"{text[:200]}…"


def read_with_bases(file: str, above: tuple[str, ...] = ()) -> dict[str, Any]:
    """Read a YAML file on top of what its ``_BASE_`` names: one file, or a list, of which later ones win.

    Args:
        file: path or http(s) address.
        above: the files whose ``_BASE_`` led here.

    Raises:
        PruneError: as :func:`d2prune.config.safe_yaml.read_mapping`, and if a file is its own base, a key
            is no text, or a base has a value where ``file`` has keys.
    """
    if os.path.realpath(file) in map(os.path.realpath, above):
        raise PruneError(f"'{above[-1]}': {BASE_KEY} leads in a circle: {' -> '.join((*above, file))}")
    content = read_mapping(file)
    _check_keys(content, file)
    bases = content.pop(BASE_KEY, [])
    merged: dict[str, Any] = {}
    for base in bases if isinstance(bases, list) else [bases]:
        _lay_over(read_with_bases(_path_of_base(base, file), (*above, file)), merged, file)
    _lay_over(content, merged, file)
    return merged


def _path_of_base(base: Any, file: str) -> str:
    if not isinstance(base, str) or not base:
        expected = "expected the path of a file, or a list of paths"
        raise PruneError(f"'{file}': {BASE_KEY} is {_shown(base)}; {expected}")
    if base.startswith(_REMOTE):
        return base
    path = os.path.join(os.path.dirname(file), os.path.expanduser(base))
    if not path.startswith(_REMOTE) and not os.path.isfile(path):
        raise PruneError(f"'{file}': {BASE_KEY} {_shown(path)} does not exist")
    return path


def _check_keys(content: dict[Any, Any], file: str) -> None:
    for key, value in content.items():
        if not isinstance(key, str):  # `on` and `1` are no text in YAML
            raise PruneError(f"'{file}' holds the key {_shown(key)}; expected text")
        if isinstance(value, dict):
            _check_keys(value, file)


def _lay_over(content: dict[str, Any], under: dict[str, Any], file: str) -> None:
    """Set in ``under`` what ``content`` has, key by key."""
    for key, value in content.items():
        if isinstance(value, dict) and key in under:
            if not isinstance(under[key], dict):
                value = _shown(under[key])
                raise PruneError(f"'{file}': {key} has keys; its {BASE_KEY} has the value {value}")
            _lay_over(value, under[key], file)
        else:
            under[key] = value


def _merge(cfg: CfgNode, loaded: CfgNode, file: str) -> None:
    """Merge, as Detectron2 does it, what may be written for an older version of its keys."""
    for key, value in loaded.items():
        if isinstance(cfg.get(key), CfgNode) and not isinstance(value, CfgNode):
            raise PruneError(f"'{file}': {key} is {_shown(value)}; expected keys and values")
    version = loaded["VERSION"] if "VERSION" in loaded else guess_version(loaded, file)
    if version == cfg.VERSION:
        cfg.merge_from_other_cfg(loaded)
        return
    if version not in range(1, cfg.VERSION):
        raise PruneError(f"'{file}': VERSION is {_shown(version)}; expected at most {cfg.VERSION}")
    logger.warning("'%s' is of version %s; its keys are upgraded to version %s", file, version, cfg.VERSION)
    old = downgrade_config(cfg, to_version=version)
    old.merge_from_other_cfg(loaded)
    upgraded = upgrade_config(old)
    cfg.clear()
    cfg.update(upgraded)
