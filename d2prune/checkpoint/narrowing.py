"""Loading the weights of a wider model into a narrower one, with a report on every tensor."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from d2prune.checkpoint.values import same_kind


@dataclass(frozen=True)
class TensorRow:
    """The report on one tensor of a file, or of the model.

    Attributes:
        name: its name in the model.
        held: its shape in the file; None if it is not there.
        wanted: its shape in the model; None if it is not there.
        how: taken whole, sliced to its leading channels, skipped, or left as it was built ("fresh").
    """

    name: str
    held: tuple[int, ...] | None
    wanted: tuple[int, ...] | None
    how: Literal["taken", "sliced", "skipped", "fresh"]

    def __str__(self) -> str:
        held, wanted = (
            "none" if s is None else "×".join(map(str, s)) or "scalar" for s in (self.held, self.wanted)
        )
        return f"{self.how:8}{self.name}: {held} → {wanted}"


@torch.no_grad()
def load_narrower(model: nn.Module, weights: Mapping[str, Tensor], prefix: str = "") -> tuple[TensorRow, ...]:
    """Fill ``model`` from the weights of a wider one, and report on every tensor.

    Of a tensor that is larger in some dimensions the leading rows and columns are taken. These are the
    first channels, not the best, and where code concatenates channels they may be the wrong ones: to keep
    the important channels, prune instead (:func:`d2prune.recipes.carry_out`).

    Args:
        model: changed in place.
        weights: by name, as in a state dict.
        prefix: put before the names in ``weights`` ("backbone.bottom_up." for a backbone's checkpoint).

    Returns:
        One row for every tensor of the model or of ``weights``; nothing is left out.
    """
    own, given = model.state_dict(), {f"{prefix}{name}": tensor for name, tensor in weights.items()}
    rows = []
    for name, tensor in own.items():
        held = given.get(name)
        rows.append(_fill(name, tensor, torch.as_tensor(held) if held is not None else None))
    rest = [name for name in given if name not in own]
    return (*rows, *(TensorRow(name, tuple(given[name].shape), None, "skipped") for name in rest))


def _fill(name: str, tensor: Tensor, held: Tensor | None) -> TensorRow:
    wanted = tuple(tensor.shape)
    if held is None:
        return TensorRow(name, None, wanted, "fresh")
    shape = tuple(held.shape)
    fits = len(shape) == len(wanted) and all(h >= w for h, w in zip(shape, wanted, strict=True))
    fits = fits and shape[2:] == wanted[2:]  # a kernel's middle is not its corner
    if not fits or not same_kind(tensor, held):
        return TensorRow(name, shape, wanted, "skipped")
    tensor.copy_(held[tuple(slice(size) for size in wanted)])
    return TensorRow(name, shape, wanted, "taken" if shape == wanted else "sliced")


def loading_table(rows: Sequence[TensorRow]) -> str:
    """Return a table of how many tensors were taken, and each of the others by name."""
    counts = Counter(row.how for row in rows)
    head = ", ".join(f"{counts[how]} {how}" for how in ("taken", "sliced", "skipped", "fresh"))
    return "\n".join([f"{len(rows)} tensors: {head}", *(f"  {row}" for row in rows if row.how != "taken")])
