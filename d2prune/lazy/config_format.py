"""LazyConfigs as pruning and fine-tuning need them."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

from detectron2.config import CfgNode, LazyConfig, instantiate
from detectron2.utils.registry import locate
from omegaconf import DictConfig, ListConfig, OmegaConf
from torch import nn

from d2prune.engine.config_format import ConfigFormat, Mapper
from d2prune.engine.outputs import SPEC_FILE, same_script
from d2prune.errors import PruneError
from d2prune.files import atomic_write
from d2prune.lazy.model import as_pruned, as_unpruned
from d2prune.lazy.reading import read_lazy_yaml

PYTHON_FILE = """\
# The pruned model's config: the one that it was pruned with, changed. Written by d2prune, because that
# one holds what YAML can't (a lambda, say).
from d2prune.lazy.model import as_pruned
from d2prune.lazy.config import read_lazy_config

pruned_from = {origin!r}
globals().update(as_pruned(read_lazy_config(**pruned_from), {spec!r}, {weights!r}).items())
"""
_NAMES = ("_target_", "prune_base")
_CHANGED = ("--resume", "prune.enabled=", "prune.finetune=", "train.init_checkpoint=")


class LazyFormat(ConfigFormat):
    """One LazyConfig, and where it came from.

    Args:
        config: as :func:`d2prune.lazy.config.read_lazy_config` gives it.
        file, opts, imports: what it was read from.
    """

    def __init__(self, config: DictConfig, file: str, opts: Sequence[str], imports: Sequence[str]) -> None:
        self.config = config
        # A pruned.py that is pruned or fine-tuned again must not come to build on itself.
        origin: Any = config.get("pruned_from") or {"file": os.path.abspath(file), "opts": (), "imports": ()}
        self.origin = {
            "file": origin["file"],
            "opts": [*origin["opts"], *opts],
            "imports": [*origin["imports"], *imports],
        }

    def instantiate(self, cfg: CfgNode) -> nn.Module:
        """See :meth:`ConfigFormat.instantiate`."""
        model = self.config.model if cfg.MODEL.PRUNING.BASE else as_unpruned(self.config)
        return instantiate(model).to(cfg.MODEL.DEVICE)

    def mapper(self, cfg: CfgNode) -> Mapper:
        """See :meth:`ConfigFormat.mapper`."""
        return instantiate(self.config.dataloader.test.mapper)

    def write_pruned(self, cfg: CfgNode, folder: str, weights: str) -> str:
        """Write pruned.yaml, complete, or where YAML can't hold the config pruned.py, on top of its file."""
        spec, weights = (os.path.abspath(p) for p in (os.path.join(folder, SPEC_FILE), weights))
        text = _yaml(as_pruned(self.config, spec, weights))
        name, other = ("pruned.yaml", "pruned.py") if text else ("pruned.py", "pruned.yaml")
        with atomic_write(os.path.join(folder, name)) as file:
            file.write(text or PYTHON_FILE.format(origin=self.origin, spec=spec, weights=weights))
        Path(folder, other).unlink(missing_ok=True)  # of an earlier run
        return os.path.join(folder, name)

    def thawed(self, cfg: CfgNode) -> str:
        """See :meth:`ConfigFormat.thawed`."""
        return "the model's FrozenBN and freeze_at are ignored; prune.keep_frozen=True keeps them"

    def next_command(self, weights: str) -> str:
        """See :meth:`ConfigFormat.next_command`."""
        kept = [word for word in sys.argv[1:] if not word.startswith(_CHANGED)]
        modes = ["prune.enabled=False", "prune.finetune=True", f"train.init_checkpoint={weights}"]
        return same_script("lazyconfig_train_net.py", [*kept, *modes])

    def held_out(self, cfg: CfgNode, data_set: str) -> CfgNode:
        """See :meth:`ConfigFormat.held_out`.

        Raises:
            PruneError: always, because its loaders read the data sets that the config's own code names.
        """
        raise PruneError("prune.budget can't be measured with a LazyConfig: set prune.amount")

    def control_command(self, cfg: CfgNode, baseline: str) -> str:
        """See :meth:`ConfigFormat.control_command`; there is no such tool for LazyConfigs."""
        return ""


def _yaml(config: DictConfig) -> str:
    """The config as YAML; empty where it would not load again."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "config.yaml")
        LazyConfig.save(config, str(path))
        try:
            # Names in YAML say nothing of classes that the config's own file defines.
            found = [locate(name) for name in _callables(read_lazy_yaml(str(path)))]
        except Exception:  # whatever the config's own objects raise
            return ""
        return path.read_text(encoding="utf-8") if all(found) else ""


def _callables(node: Any) -> Iterator[str]:
    """Every dotted path that instantiation would follow."""
    if isinstance(node, DictConfig):
        yield from (node[key] for key in _NAMES if isinstance(node.get(key), str))
        for key in node:
            name = cast(str, key)  # an int, say, is one, too: the annotation leaves some keys out
            if not (OmegaConf.is_interpolation(node, name) or OmegaConf.is_missing(node, name)):
                yield from _callables(node[key])
    elif isinstance(node, ListConfig):
        for item in node:
            yield from _callables(item)
