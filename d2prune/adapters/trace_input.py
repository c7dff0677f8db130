"""A model's dense forward on a fixed input, for tracing, counting and comparing."""

from __future__ import annotations

import copy
import io
import sys
from collections.abc import Callable, Mapping
from contextlib import redirect_stderr
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from d2prune.adapters.base import find_adapter, flatten
from d2prune.adapters.generic import generic_adapter
from d2prune.adapters.images import PROOF_SIZE, TEST_SIZE, Size, padding_step, random_images
from d2prune.errors import PruneError


class TraceInput:
    """A model's dense forward on a fixed input, for tracing, counting and comparing."""

    def __init__(
        self,
        model: nn.Module,
        example_inputs: Any = None,
        forward_fn: Callable[[nn.Module, Any], Any] | None = None,
        count_size: Size | None = None,
    ) -> None:
        if forward_fn is None:
            _refuse_detections(model)
        self.adapter = find_adapter(model) if forward_fn is None else None
        if self.adapter is None and example_inputs is None:
            self.adapter = generic_adapter(model)
        self.forward_fn = forward_fn
        self.inputs = example_inputs if example_inputs is not None else random_images(PROOF_SIZE)
        self.counted = self.inputs
        self.step = max(32, padding_step(model))
        if self.adapter is not None and example_inputs is None:
            self.counted = torch.empty(1, 3, *padded_size(model, count_size or TEST_SIZE), device="meta")

    def outputs(self, model: nn.Module) -> Mapping[str, Tensor]:
        """Return all dense outputs, training branches included, on the fixed input."""
        return self._run(model, self.inputs, training_branches=True)

    def forwards(self, others: bool) -> dict[str, Callable[[nn.Module], Mapping[str, Tensor]]]:
        """Return :meth:`outputs` by input sizes; with ``others`` also for more images and larger ones."""
        inputs = [self.inputs]
        if others:
            inputs += [tree_map(change, self.inputs) for change in (_doubled, partial(_larger, self.step))]
        return {sizes(given): partial(self._run, inputs=given, training_branches=True) for given in inputs}

    def varied(self, model: nn.Module) -> Mapping[str, Tensor]:
        """Return :meth:`outputs` on another input of the same sizes."""
        return self._run(model, tree_map(_changed, self.inputs), training_branches=True)

    def inference(self, model: nn.Module) -> Mapping[str, Tensor]:
        """Return the dense outputs that inference needs, on the input that costs are counted on."""
        return self._run(model, self.counted, training_branches=False)

    def halved(self, model: nn.Module) -> TraceInput | None:
        """Return the same with images of half the height and width to count on; None if others give them."""
        if not isinstance(self.counted, Tensor) or not self.counted.is_meta:
            return None
        size = self.counted.shape[-2] // 2, self.counted.shape[-1] // 2
        other = copy.copy(self)
        other.counted = torch.empty(1, 3, *padded_size(model, size), device="meta")
        return other if other.counted.shape != self.counted.shape else None

    def dense(self, model: nn.Module, images: Tensor) -> Mapping[str, Tensor]:
        """Return all dense outputs on other images than the fixed ones; gradients flow to them."""
        return self._run(model, images, training_branches=True)

    def batch(self, model: nn.Module, batch: Any) -> list[Mapping[str, Tensor]]:
        """Return all dense outputs on a batch of a user's data: its own input, or Detectron2's list[dict]."""
        dicts = isinstance(batch, (list, tuple)) and all(isinstance(sample, Mapping) for sample in batch)
        inputs = [sample["image"][None].float() for sample in batch] if dicts else [batch]
        return [self._run(model, given, training_branches=True) for given in inputs]

    def _run(self, model: nn.Module, inputs: Any, training_branches: bool) -> Mapping[str, Tensor]:
        inputs = tree_map(lambda value: _like(value, model), inputs)
        # torch.fx prints a traceback when a model fails; here models fail on trial, and errors tell why.
        with redirect_stderr(io.StringIO()) as printed:
            outputs = self._call(model, inputs, training_branches)
        print(printed.getvalue(), end="", file=sys.stderr)
        return outputs

    def _call(self, model: nn.Module, inputs: Any, training_branches: bool) -> Mapping[str, Tensor]:
        if self.adapter is not None:
            return self.adapter.dense(model, inputs, training_branches)
        if self.forward_fn is not None:
            return flatten(self.forward_fn(model, inputs))
        return flatten(_call(model, inputs))


def _refuse_detections(model: nn.Module) -> None:
    """Raise PruneError for torchvision's detectors, which give boxes after sorting and suppression."""
    if any(cls.__module__.startswith("torchvision.models.detection.") for cls in type(model).__mro__):
        raise PruneError(
            f"{type(model).__name__} is a torchvision detector: its boxes come after sorting and "
            "suppression, where two models can't be compared; pass a forward_fn= that returns dense "
            "outputs, such as lambda model, images: model.backbone(images), with what reads these"
        )


def padded_size(model: nn.Module, size: Size) -> Size:
    """Return (height, width) in pixels, padded to the backbone's step as Detectron2's models pad."""
    step = padding_step(model)
    height, width = (-(-side // step) * step for side in size)
    return height, width


def sizes(inputs: Any) -> str:
    """Return the sizes of the tensors in ``inputs``, such as "1x3x64x64"."""
    tensors = [leaf for leaf in tree_leaves(inputs) if isinstance(leaf, Tensor)]
    return ", ".join("x".join(map(str, tensor.shape)) for tensor in tensors)


def _doubled(value: Any) -> Any:
    """Return a batch twice as large: each input, and its mirror image."""
    if not isinstance(value, Tensor) or not value.dim():
        return value
    return torch.cat([value, value.flip(-1) if value.dim() > 1 else value])


def _changed(value: Any) -> Any:
    if not isinstance(value, Tensor) or not value.dim():
        return value
    return value * 0.5 if value.is_floating_point() else value.flip(-1)


def _larger(step: int, value: Any) -> Any:
    """Return (N, C, H, W) images with height enlarged by one step and width by two."""
    if not isinstance(value, Tensor) or value.dim() != 4 or not value.is_floating_point():
        return value
    height, width = value.shape[-2:]
    return F.interpolate(value.float(), (height + step, width + 2 * step)).to(value.dtype)


def _call(model: nn.Module, inputs: Any) -> Any:
    if isinstance(inputs, Mapping):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, (tuple, list)) else model(inputs)


def _like(value: Any, model: nn.Module) -> Any:
    """Move a tensor to the model's device, floats to its dtype; return other values as they are."""
    if not isinstance(value, Tensor):
        return value
    if value.is_inference() and not torch.is_inference_mode_enabled():
        value = value.clone()  # autograd is used to find the weights that make attention's keys
    parameter = next(model.parameters())
    if value.is_meta and not parameter.is_meta:
        value = torch.zeros_like(value, device=parameter.device)
    dtype = parameter.dtype if value.is_floating_point() else value.dtype
    return value.to(parameter.device, dtype)
