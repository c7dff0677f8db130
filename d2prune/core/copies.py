"""Copies of models that do not copy what is not needed."""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
from torch import Tensor, nn

Model = TypeVar("Model", bound=nn.Module)


def on_meta(model: Model) -> Model:
    """Return a copy on the meta device: sizes without values, which take neither time nor memory."""
    tensors = (*model.parameters(), *model.buffers())
    return copy.deepcopy(model, {id(tensor): _sizes_of(tensor) for tensor in tensors})


def in_float32(model: Model) -> Model:
    """Return a float32 copy in eval mode that shares the values of parameters that are float32 already.

    It is for runs that change no parameter's values; gradients and ``requires_grad`` are its own, and buffers
    are copied.
    """
    floats = (p for p in model.parameters() if p.dtype == torch.float32)
    shared = {id(p): nn.Parameter(p.detach(), p.requires_grad) for p in floats}
    return copy.deepcopy(model, shared).float().eval()


def _sizes_of(tensor: Tensor) -> Tensor:
    empty = tensor.detach().to("meta")
    return nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty
