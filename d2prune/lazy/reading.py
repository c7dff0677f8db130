"""LazyConfigs in YAML, read without running what their tags name."""

from __future__ import annotations

import sys
from functools import partial
from typing import Any

import yaml
from detectron2.layers import ShapeSpec
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import nn

from d2prune.config.safe_yaml import TAGS, PlainLoader, read_mapping
from d2prune.errors import PruneError


class _LazyLoader(PlainLoader):
    """With what LazyConfig.save writes as tags and is harmless: ShapeSpecs, and names of network classes."""


def _shape_spec(loader: _LazyLoader, node: yaml.Node) -> ShapeSpec:
    """Detectron2's four sizes of a feature map."""
    fields = loader.construct_mapping(node, deep=True) if isinstance(node, yaml.MappingNode) else {}
    plain = all(isinstance(value, int | None) for value in fields.values())
    if not (fields and plain and fields.keys() <= ShapeSpec.__dataclass_fields__.keys()):
        loader.refuse(node)
    return ShapeSpec(**fields)


def _class(loader: _LazyLoader, name: str, node: yaml.Node) -> type[nn.Module]:
    """A class that is there already, a ResNet's ``block_class`` say: importing a module would run it."""
    module, _, attribute = name.rpartition(".")
    found = vars(sys.modules[module]).get(attribute) if module in sys.modules else None
    if not (isinstance(found, type) and issubclass(found, nn.Module)):
        allowed = "plain values, or an nn.Module of an imported module (--import)"
        loader.refuse(node, f"{allowed}, which {name} is not")
    return found


def _partial(loader: _LazyLoader, node: yaml.Node) -> partial[nn.Module]:
    """A class of a network with some of its arguments, ViTDet's ``norm_layer`` say; calls nothing."""
    fields = loader.construct_mapping(node, deep=True) if isinstance(node, yaml.MappingNode) else {}
    state = fields.get("state")
    if fields.keys() != {"args", "state"} or not (isinstance(state, tuple) and len(state) == 4):
        loader.refuse(node)
    kind, given, named, attributes = state
    network = isinstance(kind, type) and issubclass(kind, nn.Module) and fields["args"] == [kind]
    values = named.values() if isinstance(named, dict) and not given and attributes is None else [object]
    if not (network and all(isinstance(value, bool | int | float | str | None) for value in values)):
        loader.refuse(node)
    return partial(kind, **named)


_LazyLoader.add_constructor(f"{TAGS}python/object/apply:functools.partial", _partial)
_LazyLoader.add_constructor(f"{TAGS}python/object:detectron2.layers.shape_spec.ShapeSpec", _shape_spec)
_LazyLoader.add_multi_constructor(f"{TAGS}python/name:", _class)


def read_lazy_yaml(file: str) -> DictConfig:
    """Read a LazyConfig as LazyConfig.load does, which would run what the file's tags name.

    ``_target_`` still names what instantiating it calls.

    Args:
        file: path of the YAML file.

    Raises:
        PruneError: if the file holds anything but keys, plain values, ShapeSpecs and network classes.
    """
    content: Any = read_mapping(file, _LazyLoader)
    try:
        return OmegaConf.create(content, flags={"allow_objects": True})
    except OmegaConfBaseException as error:
        raise PruneError(f"'{file}': {str(error).splitlines()[0]}") from error
