"""The part of a detector that is exported: raw images in, dense tensors out."""

from __future__ import annotations

import copy

from torch import Tensor, nn

from d2prune.adapters import find_adapter
from d2prune.errors import PruneError


class DenseModel(nn.Module):
    """A float32 copy of a detector in eval mode, run up to the last tensor without a choice in it.

    Thresholds, sorting and NMS stay outside: their sizes depend on the image, and every runtime
    has its own idea of them.
    """

    def __init__(self, model: nn.Module) -> None:
        """Copy ``model``, which stays as it is.

        Raises:
            PruneError: there is no adapter that says what the model computes.
        """
        super().__init__()
        adapter = find_adapter(model)
        if adapter is None:
            raise PruneError(
                f"no adapter for {type(model).__name__}, so its dense outputs are not known; "
                "register one with @d2prune.register_adapter"
            )
        self.adapter = adapter
        self.model = copy.deepcopy(model).float().eval().requires_grad_(False)
        self.eval()

    def outputs(self, images: Tensor) -> dict[str, Tensor]:
        """Return the dense outputs of images (N, 3, H, W), raw pixels 0..255, by name."""
        return dict(self.adapter.dense(self.model, images, training_branches=False))

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return the values of ``outputs``, in its order."""
        return tuple(self.outputs(images).values())
