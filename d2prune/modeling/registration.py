"""The registration of d2prune's architectures, or AdelaiDet's own if installed, with Detectron2.

The classes register nothing when their modules are imported; only this module does.
"""

from __future__ import annotations

import importlib

from detectron2.modeling import (
    BACKBONE_REGISTRY,
    META_ARCH_REGISTRY,
    PROPOSAL_GENERATOR_REGISTRY,
)

from d2prune.errors import PruneError

from . import backbone, lsknet
from .blendmask import BASIS_MODULE_REGISTRY, BlendMask, ProtoNet
from .fcos import FCOS
from .one_stage import OneStageDetector
from .rotated import OrientedRPN, RotatedRPN

# AdelaiDet registers the same names; what follows them is d2prune's alone.
_SHARED = (
    (META_ARCH_REGISTRY, BlendMask),
    (META_ARCH_REGISTRY, OneStageDetector),
    (PROPOSAL_GENERATOR_REGISTRY, FCOS),
    (BACKBONE_REGISTRY, backbone.build_fcos_resnet_fpn_backbone),
)
_OWN = (
    (BASIS_MODULE_REGISTRY, ProtoNet),
    (BACKBONE_REGISTRY, backbone.build_narrow_resnet_backbone),
    (BACKBONE_REGISTRY, backbone.build_narrow_resnet_fpn_backbone),
    (BACKBONE_REGISTRY, backbone.build_fcos_narrow_resnet_fpn_backbone),
    (BACKBONE_REGISTRY, lsknet.build_lsknet_backbone),
    (BACKBONE_REGISTRY, lsknet.build_lsknet_fpn_backbone),
    (PROPOSAL_GENERATOR_REGISTRY, RotatedRPN),
    (PROPOSAL_GENERATOR_REGISTRY, OrientedRPN),
)


def register() -> bool:
    """Register everything once; return whether AdelaiDet's own architectures are in use.

    Raises:
        PruneError: if AdelaiDet is installed, but its import fails after it has registered some of
            the names.
    """
    failure = _import_adelaidet()
    if failure is not None:
        _refuse_half_imported(failure)
        for registry, thing in _SHARED:
            registry.register(thing)
    for registry, thing in _OWN:
        registry.register(thing)
    return failure is None


def _import_adelaidet() -> ImportError | None:
    try:
        importlib.import_module("adet.modeling")
    except ImportError as error:  # absent, or PyPI's unrelated package called adet
        return error
    return None


def _refuse_half_imported(failure: ImportError) -> None:
    taken = [thing.__name__ for registry, thing in _SHARED if thing.__name__ in registry]
    if taken:
        raise PruneError(
            f"AdelaiDet registered {', '.join(taken)} but adet.modeling cannot be imported "
            f"({failure}); repair or uninstall AdelaiDet"
        ) from failure
