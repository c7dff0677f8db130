"""A detector that consists of a backbone and a proposal generator only."""

from __future__ import annotations

from typing import Any

from detectron2.modeling.meta_arch import ProposalNetwork


class OneStageDetector(ProposalNetwork):
    """Detectron2's ProposalNetwork, whose proposals are the detections."""

    def forward(self, batched_inputs: list[dict[str, Any]]) -> Any:
        """Return the losses in training, else ``[{"instances": Instances}, ...]`` per image.

        Args:
            batched_inputs: per image "image" ``(C, H, W)``, in training "instances", and for
                evaluation optionally "height" and "width" of the output, in pixels.
        """
        results = super().forward(batched_inputs)
        if self.training:
            return results
        return [{"instances": result["proposals"]} for result in results]
