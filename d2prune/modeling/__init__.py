"""Architectures under AdelaiDet's registry names, written from the papers.

Importing this package fills Detectron2's registries (``registration``): with AdelaiDet's own classes
where ``import adet.modeling`` succeeds, else with the ones here. The names below are the classes in
use; ProtoNet, LSKNet, the rotated proposal networks and the narrow backbones are always d2prune's.
Without Detectron2 there is nothing to register, and only ``unfuse`` and ``norm_names`` work.
"""

from __future__ import annotations

from d2prune.optional import HAS_DETECTRON2

if HAS_DETECTRON2:
    from detectron2.modeling import (
        BACKBONE_REGISTRY,
        META_ARCH_REGISTRY,
        PROPOSAL_GENERATOR_REGISTRY,
    )

    from .backbone import (
        build_fcos_narrow_resnet_fpn_backbone,
        build_narrow_resnet_backbone,
        build_narrow_resnet_fpn_backbone,
    )
    from .blendmask import ProtoNet, basis_sem_from_instances
    from .lsknet import LSKNet, build_lsknet_backbone, build_lsknet_fpn_backbone
    from .registration import register
    from .rotated import OrientedRPN, RotatedRPN

    HAS_ADELAIDET = register()

    BlendMask = META_ARCH_REGISTRY.get("BlendMask")
    OneStageDetector = META_ARCH_REGISTRY.get("OneStageDetector")
    FCOS = PROPOSAL_GENERATOR_REGISTRY.get("FCOS")
    build_fcos_resnet_fpn_backbone = BACKBONE_REGISTRY.get("build_fcos_resnet_fpn_backbone")

__all__ = [
    "FCOS",
    "HAS_ADELAIDET",
    "BlendMask",
    "LSKNet",
    "OneStageDetector",
    "OrientedRPN",
    "ProtoNet",
    "RotatedRPN",
    "basis_sem_from_instances",
    "build_fcos_narrow_resnet_fpn_backbone",
    "build_fcos_resnet_fpn_backbone",
    "build_lsknet_backbone",
    "build_lsknet_fpn_backbone",
    "build_narrow_resnet_backbone",
    "build_narrow_resnet_fpn_backbone",
]
