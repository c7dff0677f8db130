"""What tells a narrower model from the one at hand, group by group, and which of it is exact."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import nn

from d2prune.core.layers.kinds import axis_width, groups_after, groups_of, has_inputs, is_layer, weight_on
from d2prune.core.types import Group, Member, Site
from d2prune.errors import PruneError


@dataclass(frozen=True)
class Change:
    """Layers that get narrower together, or one that is gone, new or another.

    Attributes:
        layers: dotted paths of what makes the channels.
        before: output channels of the first of them.
        after: the same of the narrower model; 0 if the layer is gone.
        reason: why it is not exact; empty where it is.
        group: the channels that go; None where no removal of channels does it.
        units: how many of the group's units stay.
    """

    layers: tuple[str, ...]
    before: int
    after: int
    reason: str = ""
    group: Group | None = None
    units: int = 0

    def __str__(self) -> str:
        more = f" and {len(self.layers) - 1} more" if len(self.layers) > 1 else ""
        return f"{self.layers[0]}{more} {self.before} → {self.after or 'gone'}"


def changes_between(model: nn.Module, groups: Sequence[Group], narrower: nn.Module) -> tuple[Change, ...]:
    """Say how ``narrower`` differs from ``model``.

    Args:
        model: the model at hand.
        groups: its groups of channels, as :func:`d2prune.pruning.find_groups` returns them.
        narrower: of the same architecture with other widths; on any device, meta included.
    """
    old, new = (dict(_layers(m)) for m in (model, narrower))
    found: list[Change] = []
    explained: set[str] = set()
    for group in groups:
        change = _of_group(group, old, new)
        if change is not None:
            found.append(change)
            explained |= {member.layer for member in group.members}
    for name in (name for name in old if name not in new):
        found.append(Change((name,), axis_width(old[name], "out"), 0, "a layer less"))
    for name in (name for name in new if name not in old):
        found.append(Change((name,), 0, axis_width(new[name], "out"), "a new layer"))
    for name in (name for name in old if name in new):
        before, after = (axis_width(layers[name], "out") for layers in (old, new))
        if _kernel(old[name]) != _kernel(new[name]):
            found.append(Change((name,), before, after, "another kernel"))
        elif before != after and name not in explained:
            found.append(Change((name,), before, after, "its channels do not go together as asked for"))
    return tuple(found)


def refuse_inexact(changes: Sequence[Change]) -> None:
    """Raise PruneError if any change is not exact, naming the first few and how to go on."""
    wrong = [change for change in changes if change.reason]
    if wrong:
        raise PruneError(
            f"{len(wrong)} of {len(changes)} changes are not exact; the first: {wrong[0]} "
            f"({wrong[0].reason}). Leave them out of the recipe, or allow them (--allow-inexact) and train "
            "the result before you judge it"
        )


def _layers(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for name, module in model.named_modules():
        if is_layer(module) and any(True for _ in module.parameters(recurse=False)):
            yield name, module


def _kernel(layer: nn.Module) -> tuple[int, ...]:
    weight = weight_on(layer, "out")
    return tuple(weight.tensor.shape[2:]) if weight is not None else ()


def _of_group(group: Group, old: dict[str, nn.Module], new: dict[str, nn.Module]) -> Change | None:
    if any(name in old and name not in new for name in group.producers):
        return None  # said as a layer that is gone
    shares = {}
    for member in group.members:
        pair = _widths(member, old, new)
        if pair is not None:
            shares[member.site] = pair
    if all(before == after for before, after in shares.values()):
        return None
    layers = group.producers or (group.name,)
    before, after = next(pair for pair in shares.values() if pair[0] != pair[1])
    units = {after * group.units / before for before, after in shares.values()}
    if len(units) > 1:
        return Change(layers, before, after, f"layers of one group would differ ({_named(shares)})")
    if not (left := units.pop()).is_integer() or not 0 < left < group.units:
        return Change(
            layers, before, after, f"these channels go in steps of {group.step}, and not all of them"
        )
    reason = group.fixed or group.inexact or _other_norm(group, old, new)
    own = shares.get((layers[0], "out"), (before, after))
    return Change(layers, *own, reason, None if group.fixed else group, int(left))


def _other_norm(group: Group, old: dict[str, nn.Module], new: dict[str, nn.Module]) -> str:
    """A cut takes whole groups out of a GroupNorm; a narrower config has as many groups as before."""
    for name in {member.layer for member in group.members if member.layer in old and member.layer in new}:
        norm = new[name]
        left, planned = groups_after(old[name], axis_width(norm, "out")), groups_of(norm)
        if planned is not None and left not in (None, planned):
            return f"a cut leaves {left} groups of {name}, a {type(norm).__name__}, and the recipe {planned}"
    return ""


def _named(shares: dict[Site, tuple[int, int]]) -> str:
    return ", ".join(f"{name} {b} → {a}" for (name, _), (b, a) in list(shares.items())[:3])


def _widths(member: Member, old: dict[str, nn.Module], new: dict[str, nn.Module]) -> tuple[int, int] | None:
    """Width of the member's axis in both models; None where it has other channels, too, or is not there."""
    name, axis = member.site
    if name not in old or name not in new or (axis == "in" and not has_inputs(old[name])):
        return None
    before = axis_width(old[name], axis)
    return (before, axis_width(new[name], axis)) if member.indices.size == before else None
