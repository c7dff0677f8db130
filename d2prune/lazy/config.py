"""LazyConfigs: the node ``prune``, and the settings that the engine reads, as a CfgNode."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from typing import Any

from detectron2.config import CfgNode, LazyConfig
from omegaconf import DictConfig, OmegaConf

from d2prune.config import get_cfg
from d2prune.config.reading import found_beside, import_modules
from d2prune.errors import PruneError
from d2prune.lazy.reading import read_lazy_yaml

logger = logging.getLogger(__name__)

# The pruned model's own config says these two in `model`.
_OF_PRUNED_MODEL = ("SPEC", "BASE")
# Keys of `train` that Detectron2 reads, and its configs leave out.
_OPTIONAL = {"train.seed", "train.cudnn_benchmark"}


def read_lazy_config(file: str, opts: Sequence[str] = (), imports: Sequence[str] = ()) -> DictConfig:
    """Load a LazyConfig, complete its node ``prune``, and apply ``key=value`` options.

    Args:
        file: path of the Python file, which is run, or of the YAML file, which is read as plain data.
        opts: ``key=value`` texts, in Hydra's grammar.
        imports: modules to import first: they register data sets and models.

    Raises:
        PruneError: if the file or a module is missing, it is no LazyConfig, it is YAML that holds more than
            plain values, a key under ``prune`` is unknown or of another type, or an option names a key that
            nothing reads.
    """
    import_modules(imports)
    config = _loaded(file)
    missing = [name for name in ("model", "train") if name not in config]
    if missing:
        raise PruneError(f"{file} has no {missing[0]!r}: expected a LazyConfig (model, dataloader, train, …)")
    _complete(config)
    if "prune_spec" in config.model:
        config.model.prune_spec = found_beside(file, config.model.prune_spec)
        config.train.init_checkpoint = found_beside(file, config.train.init_checkpoint)
    for text in opts:
        _check_option(config, text)
    try:
        LazyConfig.apply_overrides(config, list(opts))
    except Exception as error:  # Hydra's parser has many of its own
        raise PruneError(f"expected key=value after the options; got {' '.join(opts)}: {error}") from error
    _complete(config)
    return config


def _loaded(file: str) -> DictConfig:
    if not os.path.isfile(file):
        raise PruneError(f"--config-file {file!r} does not exist")
    if file.endswith(".py"):
        logger.info("'%s' is Python code and is run", file)
        return LazyConfig.load(file)
    if file.endswith((".yaml", ".yml")):
        return read_lazy_yaml(file)
    raise PruneError(f"--config-file {file!r} is no LazyConfig: expected .py, .yaml or .yml")


def prune_defaults() -> dict[str, Any]:
    """Return the keys of ``prune`` and their defaults: MODEL.PRUNING's in lower case, and the two modes."""
    model = get_cfg().MODEL
    keys = {k.lower(): v for k, v in model.PRUNING.items() if k not in _OF_PRUNED_MODEL}
    return {"enabled": model.PRUNE, "finetune": model.FINETUNE, **keys}


def _complete(config: DictConfig) -> None:
    """Check the node ``prune``, and add the keys that it leaves out."""
    defaults = prune_defaults()
    if config.get("prune") is None:
        config.prune = {}
    for key, value in _plain(config.prune).items():
        if key not in defaults:
            raise PruneError(f"prune.{key} is unknown; expected one of: {', '.join(defaults)}")
        if not _same_kind(value, defaults[key]):
            kind = type(defaults[key]).__name__
            raise PruneError(f"prune.{key} is {value!r}; expected a {kind}, as its default {defaults[key]!r}")
    for key, value in defaults.items():
        if key not in config.prune:
            config.prune[key] = value


def _plain(node: Any) -> Any:
    return OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node


def _same_kind(value: Any, default: Any) -> bool:
    if isinstance(default, (list, tuple)):
        return isinstance(value, (list, tuple))
    if isinstance(default, float):
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    return type(value) is type(default)


def _check_option(config: DictConfig, text: str) -> None:
    """Refuse what would be set and never read; ``+key=value`` adds a key, as in Hydra."""
    key, equals, _ = text.partition("=")
    if not equals:
        raise PruneError(f"expected key=value after the options; got {text}")
    top = key.partition(".")[0]
    # A misspelt key of `prune` is named later, and one of `model` by the class that is called with it.
    known = top in config and (top != "train" or OmegaConf.select(config, key, default=...) is not ...)
    if not (known or key.startswith("+") or key in _OPTIONAL):
        among = config.train if top == "train" else config
        raise PruneError(f"{key} is no key of the config; expected one of: {', '.join(among)}")


def settings_of(config: DictConfig) -> CfgNode:
    """Return what pruning and fine-tuning ask of a config, as the CfgNode that they read.

    Keys that a LazyConfig has no counterpart of keep their defaults; nothing reads them.
    """
    cfg, train, prune = get_cfg(), config.train, _plain(config.prune)
    cfg.OUTPUT_DIR, cfg.MODEL.WEIGHTS = train.output_dir, train.init_checkpoint
    cfg.MODEL.DEVICE, cfg.SOLVER.MAX_ITER = str(train.device), train.max_iter
    cfg.MODEL.PRUNE, cfg.MODEL.FINETUNE = prune.pop("enabled"), prune.pop("finetune")
    for key, value in prune.items():
        cfg.MODEL.PRUNING[key.upper()] = value
    cfg.MODEL.PRUNING.BASE = str(config.model.get("prune_base", ""))
    cfg.SOLVER.IMS_PER_BATCH = OmegaConf.select(config, "dataloader.train.total_batch_size") or 0
    cfg.SOLVER.BASE_LR = OmegaConf.select(config, "optimizer.lr") or 0.0
    cfg.SOLVER.LR_SCHEDULER_NAME = "lr_multiplier"
    cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST = _test_size(config, cfg)
    cfg.DATASETS.TEST = _test_sets(config)
    cfg.freeze()
    return cfg


def _test_size(config: DictConfig, cfg: CfgNode) -> tuple[int, int]:
    """Shortest edge and largest size, in pixels, of the first resizing in dataloader.test."""
    for step in OmegaConf.select(config, "dataloader.test.mapper.augmentations") or ():
        edge, largest = (OmegaConf.select(step, key) for key in ("short_edge_length", "max_size"))
        if isinstance(edge, int) and isinstance(largest, int):
            return edge, largest
    return cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST


def _test_sets(config: DictConfig) -> tuple[str, ...]:
    """Names of the registered data sets in dataloader.test; empty where its images come another way."""
    if OmegaConf.select(config, "dataloader.test.mapper") is None:
        return ()
    names = _plain(OmegaConf.select(config, "dataloader.test.dataset.names"))
    return (names,) if isinstance(names, str) else tuple(names or ())
