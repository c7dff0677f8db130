"""Proposal networks for rotated boxes, on Detectron2's RRPN."""

from __future__ import annotations

from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.modeling.proposal_generator.rpn import StandardRPNHead
from detectron2.modeling.proposal_generator.rrpn import RRPN

from d2prune.errors import PruneError

OPERATORS = ("box_iou_rotated", "nms_rotated", "roi_align_rotated_forward")


def has_rotated_operators() -> bool:
    """Return whether Detectron2 was installed with its compiled operators."""
    return all(hasattr(torch.ops.detectron2, name) for name in OPERATORS)


class RotatedRPN(RRPN):
    """Detectron2's RRPN, with an error that explains what is missing if its operators are not compiled.

    Building, counting and pruning need none of them; training and detecting do.
    """

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run RRPN, if its operators are there.

        Raises:
            PruneError: without compiled operators.
        """
        if not has_rotated_operators():
            raise PruneError(
                "MODEL.PROPOSAL_GENERATOR.NAME is 'RotatedRPN', which needs Detectron2's compiled "
                f"operators ({', '.join(OPERATORS)}) to train or detect; this Detectron2 is pure Python: "
                "install a compiled one, or take axis-aligned boxes ('RPN', with StandardROIHeads)"
            )
        return super().forward(*args, **kwargs)


class OrientedRPN(RRPN):
    """The layers of Oriented R-CNN's proposal network (arXiv 2108.05699): six numbers per anchor.

    They can be counted and pruned. Decoding the six numbers, a box and two offsets of its corners, is
    not part of d2prune.
    """

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, Any]) -> dict[str, Any]:
        """Read what RRPN reads, with a head of six numbers per anchor."""
        parts = super().from_config(cfg, input_shape)
        shapes = [input_shape[name] for name in cfg.MODEL.RPN.IN_FEATURES]
        parts["head"] = StandardRPNHead(**{**StandardRPNHead.from_config(cfg, shapes), "box_dim": 6})
        return parts

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Refuse to run.

        Raises:
            PruneError: always.
        """
        raise PruneError(
            "MODEL.PROPOSAL_GENERATOR.NAME is 'OrientedRPN', whose six numbers an anchor are counted and "
            "pruned here, but not decoded; to train or detect take 'RotatedRPN'"
        )
