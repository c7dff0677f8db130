"""Checks of a file's weights against the model's tensors of the same name: kinds of number, and NaN."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from d2prune.errors import PruneError


def same_kind(one: Tensor, other: Tensor) -> bool:
    """Return whether both hold floats, or complex numbers, or integers, or truth values."""
    return _kind(one.dtype) == _kind(other.dtype)


def _kind(dtype: torch.dtype) -> str:
    if dtype.is_floating_point:
        return "floating-point"
    if dtype.is_complex:
        return "complex"
    return "boolean" if dtype == torch.bool else "quantized" if "q" in str(dtype) else "integer"


def check_kinds(path: str, own: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> None:
    """Refuse weights of another kind of number than the model's, which PyTorch would convert in silence.

    Args:
        path: the file, for messages.
        own: the model's state dict.
        weights: the file's, under the model's names.

    Raises:
        PruneError: naming the first such key.
    """
    for name, tensor in own.items():
        held = weights.get(name)
        if held is not None and not same_kind(tensor, held):
            raise PruneError(
                f"'{path}' holds {held.dtype} for '{name}'; expected {_kind(tensor.dtype)} values, as the "
                f"model's {tensor.dtype}"
            )


def first_not_finite(model: nn.Module, weights: Mapping[str, Tensor]) -> str | None:
    """Return the name of the first weight that holds NaN or infinity; None if there is none.

    A number that is too large for the model's dtype becomes infinity. Infinities are right in buffers such
    as masks; only the statistics of norms must be finite, too.

    Args:
        model: gives the names to look at.
        weights: the file's, under the model's names.
    """
    buffers = {
        name for name, _ in model.named_buffers() if not name.endswith(("running_mean", "running_var"))
    }
    for name, own in model.state_dict().items():
        held = weights.get(name)
        if held is not None and held.is_floating_point():
            loaded = held.to(own.dtype) if own.is_floating_point() else held
            if not _is_sound(loaded, name in buffers):
                return name
    return None


def _is_sound(tensor: Tensor, may_be_infinite: bool) -> bool:
    values = tensor.float() if tensor.element_size() == 1 else tensor  # of 8 bits: torch has no isfinite
    return bool((~values.isnan() if may_be_infinite else values.isfinite()).all())
