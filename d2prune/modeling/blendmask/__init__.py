"""BlendMask: instance masks blended from bases (arXiv 2001.00309).

protonet    backbone features -> bases (N, B, H/4, W/4), and a semantic loss
blender     bases, boxes, coefficients -> masks, or the mask loss
basis_sem   ground truth masks -> the semantic map that the bases' loss needs
blendmask   the architecture that ties them to FCOS
"""

from __future__ import annotations

from .basis_sem import basis_sem_from_instances
from .blender import Blender
from .blendmask import BlendMask
from .protonet import BASIS_MODULE_REGISTRY, ProtoNet, build_basis_module

__all__ = [
    "BASIS_MODULE_REGISTRY",
    "BlendMask",
    "Blender",
    "ProtoNet",
    "basis_sem_from_instances",
    "build_basis_module",
]
