"""The plain data that the core's stages hand to each other: no tensors, no models, no config."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Axis = Literal["out", "in"]
Indices = NDArray[np.int64]
OUTPUT = "is the model's output"
SINGLE = "has a single channel"
"""Beginnings of ``Group.fixed`` for groups that no rule could open: the model itself fixes them."""
Site = tuple[str, Axis]
"""One axis of one layer: (dotted path, axis). Layers that keep channels apart have only "out"."""


@dataclass(frozen=True)
class SizeLiteral:
    """Numbers of channels written in a call in a module's ``forward``, such as 64 in ``view(b, n, 64)``.

    Attributes:
        kind: "view" (a size of the result), "slice" and "split" (places on the input), or "scale" (a
            width that attention derives its scale from).
        dims: number of dimensions of the tensor that the numbers refer to.
        dim: index of the dimension that they refer to.
        size: size of that dimension.
        numbers: a view's size; a slice's start and end; a split's lengths; empty for a scale.
        inferred_dim: dimension of the same view whose size is given as -1; -1 if there is none.
    """

    kind: str
    dims: int
    dim: int
    size: int
    numbers: tuple[int, ...]
    inferred_dim: int = -1


CallKey = tuple[str, int]
"""(dotted path of a module, index of the call among those in its forward that can name numbers)."""


@dataclass(frozen=True, eq=False)
class LiteralUse:
    """A literal of a call, and where each unit of a group lies on the literal's dimension.

    Attributes:
        call: the call that contains the literal.
        literal: the numbers; they may be ``TrackedInt``, which know the attributes they come from.
        indices: (U, K) positions; row u belongs to unit u.
    """

    call: CallKey
    literal: SizeLiteral
    indices: Indices

    @property
    def key(self) -> tuple[CallKey, SizeLiteral]:
        """The call and the literal, as a key."""
        return self.call, self.literal


@dataclass(frozen=True, eq=False)
class Member:
    """A layer's axis that shrinks when units of its group are removed.

    Attributes:
        layer: dotted path of the module (or bare parameter), as in the model passed in.
        axis: "out" or "in".
        indices: (U, K) positions on that axis; row u belongs to unit u.
    """

    layer: str
    axis: Axis
    indices: Indices

    @property
    def site(self) -> Site:
        """The axis as a key."""
        return self.layer, self.axis


@dataclass(frozen=True, eq=False)
class Group:
    """Channels that are cut together over several layers.

    A *unit* is the smallest set that can be removed exactly: one channel, a whole GroupNorm group, or
    the same channel of every group of a grouped convolution.

    Attributes:
        name: path of its first producing layer.
        members: every axis that the group cuts; the first is the producer that names it.
        producers: paths of the layers whose output channels these are; none where only layers that
            carry channels were found, which then stay.
        fixed: why it can't be pruned; empty when it can.
        inexact: why removal can't equal masking (LayerNorm); empty when it does.
        contracted: whether activations are multiplied with each other and summed over these channels
            (queries and keys, say), so that not only layers' weights read them.
        literals: the numbers in the model's code that count or index these channels.
    """

    name: str
    members: tuple[Member, ...]
    producers: tuple[str, ...]
    fixed: str = ""
    inexact: str = ""
    contracted: bool = False
    literals: tuple[LiteralUse, ...] = ()

    @property
    def units(self) -> int:
        """Number of units."""
        return int(self.members[0].indices.shape[0])

    @property
    def step(self) -> int:
        """Channels of the first producer that one unit holds."""
        return int(self.members[0].indices.shape[1])

    @property
    def width(self) -> int:
        """Channels of the first producer that the group holds."""
        return self.units * self.step


@dataclass(frozen=True)
class LayerCost:
    """A layer's cost as a function of its widths: ``pair * out * in + single * out + read * in``.

    MACs of products of activations (attention) are attributed to the layers that make the factors, as part
    of ``macs_single``, and to the layer that reads the result, as ``macs_read``.
    """

    layer: str
    out: int
    inp: int
    macs_pair: float
    macs_single: float
    params_pair: float
    params_single: float
    macs_read: float = 0


@dataclass(frozen=True)
class Totals:
    """Parameters (count) and MACs (multiply-accumulates of one image) of a whole model."""

    params: int
    macs: int


@dataclass(frozen=True)
class Request:
    """What to prune: the keys MODEL.PRUNING.* as plain values (see ``add_prune_config``).

    ``amount`` is a fraction of the whole model's params, macs or latency, and with target "channels" of the
    channels of the groups that may be pruned. With ``at_least`` no less than that is removed.
    """

    amount: float = 0.5
    target: str = "macs"
    criterion: str = "magnitude"
    allocation: str = "global"
    ratios: tuple[tuple[str, float], ...] = ()
    protect: tuple[str, ...] = ()
    include: tuple[str, ...] = ()
    max_ratio: float = 0.75
    round_to: int = 1
    allow_inexact: bool = False
    at_least: bool = False


@dataclass(frozen=True, eq=False)
class PrunePlan:
    """The units that stay, for every group.

    Attributes:
        groups: all groups of the model, pruned or not.
        kept: for each group the (K,) sorted indices of the units that stay.
        reasons: for each group why it was left whole; empty where it was open to pruning.
        reached: fraction of the target's cost that the plan removes.
    """

    groups: tuple[Group, ...]
    kept: tuple[Indices, ...]
    reasons: tuple[str, ...]
    reached: float


@dataclass(frozen=True)
class Coverage:
    """One row per parameterised layer: ``before`` and ``after`` are its output widths.

    ``macs`` is the cost of the unpruned layer.
    """

    name: str
    before: int
    after: int
    status: Literal["pruned", "protected", "skipped"]
    reason: str
    macs: int


@dataclass(frozen=True)
class Proof:
    """The verdict of :func:`d2prune.core.cut.proof.verify`.

    Attributes:
        exact: whether masked equals pruned and the control shows that the test can fail.
        error: largest error over the outputs, relative to each output's largest magnitude.
        control_error: the same for a mask of as many *kept* channels.
        dtype: dtype that both models were run in, "float64".
        compared: names of the outputs compared.
        reason: why it is not exact; empty when it is.
        inputs: sizes of the inputs compared on, such as "1x3x64x64"; more than one where numbers in the
            model's code were changed.
        constant: names of outputs that depend neither on the mask nor on the input, and so prove nothing.
    """

    exact: bool
    error: float
    control_error: float
    dtype: str
    compared: tuple[str, ...]
    reason: str = ""
    inputs: tuple[str, ...] = ()
    constant: tuple[str, ...] = ()


Widths = Mapping[Site, int]
